"""Bars of a comparison: what an export's logits may differ by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 1e-4  # in the mean, on logits of up to _PLAIN_LOGIT, in float32; in proportion beyond
_FAR = 10  # times the tolerance: what single logits may differ by
_PLAIN_LOGIT = 10.0
# Relative error of one product of rounded numbers. A step of s makes an error of s / √12 in the mean (Widrow 1956); for
# normal weights of unit deviation the steps are 4.1/15 (int4) and 4.1/255 (int8) in blocks of 32, and 7/254 in whole
# rows (w8a8), whose activations have such an error too. float16 has half its unit roundoff.
_ROUNDING = {"int4": 0.080, "int8": 0.006, "w8a8": 0.012, "float16": 2.0**-12}
_PRODUCTS_PER_LAYER = 4  # one after the other: queries, keys and values; out; gate and up; down
_ALLOWANCE = 2.0  # weights that are not normal, and errors that the next layers amplify
_UNRELATED = 1.0  # logits whose error is as large as their spread say nothing


def judge_exact(frame: pd.DataFrame, tolerance: float) -> tuple[bool, str]:
    """Return whether all tokens are equal, ties aside, and logits within the tolerance; and the figures in words."""
    largest, ties = float(frame["max_diff"].max()), int(frame["ties"].sum())
    others = round(float(((1 - frame["agreement"]) * frame["new_tokens"]).sum())) - ties
    n_tokens = int(frame["new_tokens"].sum())
    verdict = (
        f"{n_tokens - others} of {n_tokens} tokens equal ({ties} ties), largest difference of logits {largest:.1e}"
    )
    if not np.isfinite(largest):
        return False, f"{verdict}; some logits are not finite"
    if others:
        return False, verdict
    mean = float(frame["mean_diff"].max())
    allowed = tolerance * max(1.0, float(frame["largest_logit"].max()) / _PLAIN_LOGIT)
    verdict += f" of at most {_FAR * allowed:.1e}, mean {mean:.1e} of at most {allowed:.1e}"
    return mean <= allowed and largest <= _FAR * allowed, verdict


def judge_rounded(frame: pd.DataFrame, bound: float) -> tuple[bool, str]:
    """Return whether logits differ by no more than rounding explains, and the figures in words.

    Equal tokens are no bar: a model of random weights has many logits close to the highest. Of a trained model only
    real images show how good a rounded export is.
    """
    agreement = float(np.average(frame["agreement"], weights=frame["new_tokens"]))
    error = float(np.average(frame["relative_error"], weights=frame["new_tokens"]))
    verdict = f"relative error of logits {error:.1%} of at most {bound:.1%}, {agreement:.1%} of tokens equal"
    return bool(np.isfinite(frame["max_diff"].max())) and error <= bound, verdict


def rounding_bound(rounding: str, n_layers: int) -> float:
    """Return the largest relative error of logits that rounding explains.

    Errors of products one after the other are independent, so n of them have √n times the error of one. Twice that is
    allowed, and never as much as unrelated logits have.

    Parameters
    ----------
    rounding : {"int4", "int8", "w8a8", "float16"}
        How weights are rounded.
    n_layers : int
        Layers of the language model.

    Examples
    --------
    >>> [round(rounding_bound(rounding, 36), 3) for rounding in ("int8", "w8a8", "int4")]
    [0.144, 0.289, 1.0]
    """
    n_products = _PRODUCTS_PER_LAYER * n_layers + 1
    return min(_UNRELATED, _ALLOWANCE * _ROUNDING[rounding] * math.sqrt(n_products))
