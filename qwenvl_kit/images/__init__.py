"""Load the images of a cell, resized for a model.

The steps are ``classify`` (kind of source) → ``fetch`` (bytes) → ``decode`` (upright RGB) → ``resize`` (pixels);
`ImageLoader` does the last three.
"""

from qwenvl_kit._warnings import warn
from qwenvl_kit.images.classify import classify, count_images, is_null
from qwenvl_kit.images.fetch.cache import FetchCache
from qwenvl_kit.images.fetch.dispatch import Fetch, host_of
from qwenvl_kit.images.fetch.fetched import Fetched, RetryAt
from qwenvl_kit.images.load import DecodeCost, ImageLoader
from qwenvl_kit.images.resize import ExactSize, KeepSize, MaxArea, Sizing, TargetSize

__all__ = [
    "DecodeCost",
    "ExactSize",
    "Fetch",
    "FetchCache",
    "Fetched",
    "ImageLoader",
    "KeepSize",
    "MaxArea",
    "RetryAt",
    "Sizing",
    "TargetSize",
    "classify",
    "count_images",
    "host_of",
    "is_null",
]


def __getattr__(name: str) -> object:
    """Return `classify` under its former name."""
    if name != "identify":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn("qwenvl_kit.images.identify is now classify.", DeprecationWarning)
    return classify
