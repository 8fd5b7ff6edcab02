"""From a cell of a frame to a `Picture` of the size the model sees.

The way is ``identify`` (what is it) → ``fetch`` (bytes) → ``decode`` (upright RGB) → ``resize`` (pixels).
Nothing here knows of frames, prompts or models beyond their `Geometry`.
"""

from qwenvl_kit.images.fetch import Fetch, Fetched, RetryAt, close_idle_connections, host_of, is_unchanged
from qwenvl_kit.images.fetch_cache import FetchCache
from qwenvl_kit.images.load import ImageLoader, Limits, load
from qwenvl_kit.images.resize import Sizing
from qwenvl_kit.images.sources import identify, is_null

__all__ = [
    "Fetch",
    "FetchCache",
    "Fetched",
    "ImageLoader",
    "Limits",
    "RetryAt",
    "Sizing",
    "close_idle_connections",
    "host_of",
    "identify",
    "is_null",
    "is_unchanged",
    "load",
]
