"""Fetch the bytes of an image: from memory, a file, HTTP or object storage."""

from qwenvl_kit.images.fetch.dispatch import FetchLimits, fetch

__all__ = ["FetchLimits", "fetch"]
