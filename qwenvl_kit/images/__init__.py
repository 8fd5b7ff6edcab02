"""From a cell of a frame to a `LoadedImage` of the size the model sees.

The way is ``classify`` (what is it) → ``fetch`` (bytes) → ``decode`` (upright RGB) → ``resize`` (pixels).
Nothing here knows of frames, prompts or models beyond their `PatchGeometry`.
"""

from qwenvl_kit._warnings import warn
from qwenvl_kit.images.classify import classify, is_null
from qwenvl_kit.images.fetch.cache import FetchCache
from qwenvl_kit.images.fetch.dispatch import Fetch, Fetched, RetryAt, host_of, is_unchanged
from qwenvl_kit.images.fetch.idle import close_idle_connections
from qwenvl_kit.images.load import ImageLoader, Limits, load
from qwenvl_kit.images.resize import Sizing

__all__ = [
    "Fetch",
    "FetchCache",
    "Fetched",
    "ImageLoader",
    "Limits",
    "RetryAt",
    "Sizing",
    "classify",
    "close_idle_connections",
    "host_of",
    "identify",
    "is_null",
    "is_unchanged",
    "load",
]


def __getattr__(name: str) -> object:
    """Return `classify` under its former name."""
    if name != "identify":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn("qwenvl_kit.images.identify is now classify.", DeprecationWarning)
    return classify
