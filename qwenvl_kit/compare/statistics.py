"""Intervals and tests over images: how far a figure would move with other images of the same kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

N_SAMPLES = 2000
"""Bootstrap samples of an interval."""

_N_FLIPS = 10_000  # of a paired test; with up to 13 differences all sign patterns are counted instead
_MOST_EXACT = 13
_MAX_DRAWN = 4_000_000  # numbers in memory at a time


def bootstrap_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of a mean over images (Efron 1979, https://doi.org/10.1214/aos/1176344552).

    Parameters
    ----------
    values : array of float (n,)
        One per image; missing ones are left out.
    level : float
        Coverage, in (0, 1).

    Returns
    -------
    tuple of float
        Lower and upper end; NaN without values. Equal calls give equal intervals.

    Examples
    --------
    >>> bootstrap_interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    known = _known(values)
    return interval_of(lambda drawn: float(known[drawn].mean()), len(known), level)


def interval_of(measure: Callable[[NDArray[np.intp]], float], n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of a measure of images.

    Parameters
    ----------
    measure : callable
        Of the positions (n,) of the drawn images, some of them repeated.
    n : int
        Number of images.
    level : float
        Coverage, in (0, 1).

    Examples
    --------
    >>> interval_of(lambda drawn: float(len(drawn)), 3)
    (3.0, 3.0)
    """
    if not n:
        return float("nan"), float("nan")
    draw = np.random.default_rng(0)
    measured = [measure(draw.integers(n, size=n)) for _ in range(N_SAMPLES)]
    low, high = np.quantile(measured, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_counts(n_images: int) -> Iterator[NDArray[np.int64]]:
    """Yield how often each image is drawn in each bootstrap sample, in blocks of bounded memory.

    For figures that are no mean over images, such as a precision. Equal calls draw equally.

    Yields
    ------
    array of int64 (samples, n_images)
        Each row sums to `n_images`; `N_SAMPLES` rows in all.

    Examples
    --------
    >>> sum(len(block) for block in bootstrap_counts(3)), int(next(bootstrap_counts(3))[0].sum())
    (2000, 3)
    """
    draw = np.random.default_rng(0)
    n_at_once = max(1, _MAX_DRAWN // max(1, n_images))
    for done in range(0, N_SAMPLES, n_at_once):
        n = min(n_at_once, N_SAMPLES - done)
        yield draw.multinomial(n_images, np.full(n_images, 1 / n_images), size=n) if n_images else np.zeros((n, 0), int)


def paired_p_value(differences: ArrayLike) -> float:
    """Return the two-sided p-value of a sign-flip test that paired differences have mean zero (Fisher 1935).

    Parameters
    ----------
    differences : array of float (n,)
        One per image; missing ones are left out.

    Returns
    -------
    float
        The share of sign patterns whose mean is at least as far from zero; NaN without differences.

    Examples
    --------
    >>> paired_p_value([1.0, 1.0, 1.0, 1.0])
    0.125
    """
    known = _known(differences)
    if not len(known):
        return float("nan")
    known = known[known != 0]  # whose sign changes nothing
    if not len(known):
        return 1.0
    least = abs(known.sum()) - 1e-9 * np.abs(known).sum()  # rounding may take as much from an equal sum
    if len(known) <= _MOST_EXACT:
        patterns = np.arange(2 ** len(known))[:, None] >> np.arange(len(known)) & 1
        return float((_sums(patterns, known) >= least).mean())
    draw = np.random.default_rng(0)
    n_at_once = max(1, _MAX_DRAWN // len(known))
    n_far = 0
    for done in range(0, _N_FLIPS, n_at_once):
        patterns = draw.integers(2, size=(min(n_at_once, _N_FLIPS - done), len(known)))
        n_far += int((_sums(patterns, known) >= least).sum())
    return (n_far + 1) / (_N_FLIPS + 1)  # the pattern that was seen is one of them


def _known(values: ArrayLike) -> NDArray[np.float64]:
    given = np.asarray(values, np.float64)
    known: NDArray[np.float64] = given[~np.isnan(given)]
    return known


def _sums(patterns: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = np.abs((2 * patterns - 1) @ values)
    return sums
