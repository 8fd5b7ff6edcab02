"""Fetch the bytes of an image: from memory, a file, HTTP or object storage."""

from qwenvl_kit.images.fetch.dispatch import fetch
from qwenvl_kit.images.fetch.limits import FetchLimits

__all__ = ["FetchLimits", "fetch"]
