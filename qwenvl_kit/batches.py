"""Split a sequence of images or prompts into one value per row."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from PIL import Image

from qwenvl_kit.errors import ConfigError, printable

_LONGEST_VALUE = 100
_CHANNELS = (1, 3, 4)


def rows_of(values: Any, name: str = "images") -> list[Any]:
    """Return one value per row.

    Parameters
    ----------
    values : iterable, Series, Arrow array, numpy array or tensor
        An array is split along its first axis only: (N, H, W, 3) is N images.
    name : str
        The parameter's name, for messages.

    Raises
    ------
    ConfigError
        `values` is a single string, bytes object or image, or not iterable.

    Examples
    --------
    >>> import numpy as np
    >>> [image.shape for image in rows_of(np.zeros((2, 60, 80, 3), np.uint8))]
    [(60, 80, 3), (60, 80, 3)]
    >>> rows_of("a.png")
    Traceback (most recent call last):
    qwenvl_kit.errors.ConfigError: images is a single string 'a.png', not a list. Pass ['a.png'] for one row.
    """
    if isinstance(values, str | bytes | bytearray | memoryview | os.PathLike | Image.Image | Mapping):
        raise _single(values, name)
    if isinstance(values, pd.DataFrame):
        raise ConfigError(f"{name} is a DataFrame. Pass one of its columns.")
    if isinstance(values, pd.Series | pd.Index):
        return values.tolist()
    if hasattr(values, "to_numpy_ndarray"):  # Arrow's tensor arrays, whose to_pylist flattens each tensor
        values = values.to_numpy_ndarray()
    if hasattr(values, "to_pylist"):
        return list(values.to_pylist())
    if hasattr(values, "__array__") and hasattr(values, "shape"):
        return _along_first_axis(values, name)
    if not isinstance(values, Iterable):
        raise ConfigError(f"{name} is {_shown(values)} of type {type(values).__name__}. Pass a list.")
    return list(values)


def _along_first_axis(array: Any, name: str) -> list[Any]:
    shape = tuple(array.shape)
    is_image = len(shape) in (2, 3) and "obj" not in str(getattr(array, "dtype", "")) and not _is_text(array)
    if not shape or (is_image and (len(shape) == 2 or shape[-1] in _CHANNELS)):
        raise _single(array, name)
    return list(array)


def _is_text(array: Any) -> bool:
    return getattr(getattr(array, "dtype", None), "kind", "") in ("U", "S", "T")


def _single(value: object, name: str) -> ConfigError:
    if hasattr(value, "shape"):
        return ConfigError(
            f"{name} is a single array of shape {tuple(value.shape)}. Pass a list, an array of shape (N, H, W, 3), or "
            "[array] for one row."
        )
    kind = "string" if isinstance(value, str) else "bytes object" if isinstance(value, bytes | bytearray) else "value"
    shown = _shown(value)
    return ConfigError(f"{name} is a single {kind} {shown}, not a list. Pass [{shown}] for one row.")


def _shown(value: object) -> str:
    head: object = value[:_LONGEST_VALUE] if isinstance(value, str | bytes | bytearray) else value
    return printable(repr(head), _LONGEST_VALUE)
