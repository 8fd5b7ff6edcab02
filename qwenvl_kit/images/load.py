"""Load an image: fetch its bytes, decode them to upright RGB, and resize them once to what the model sees.

Whatever a library raises on the way is the image's own error. What is not provably quick to decode goes to a process
of its own.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from qwenvl_kit._cpu import available_cpus
from qwenvl_kit.images import decode_pool
from qwenvl_kit.images.budget import Budget
from qwenvl_kit.images.decode import decode_array, decode_pil, decode_resized, row_error
from qwenvl_kit.images.fetch import Fetched, FetchLimits, fetch
from qwenvl_kit.images.probe import probe
from qwenvl_kit.images.resize import Sizing, resize
from qwenvl_kit.records import Picture

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwenvl_kit.config import Config
    from qwenvl_kit.records import ImageSource

# Decoding works where fetching waits: more at a time than there are CPUs would only hold more pixels in memory.
_SLOTS = max(2, available_cpus())
_decoding = Budget(_SLOTS)
_pixels = Budget(100_000_000)  # that are decoded at a time in this process, by all threads; 12 bytes each at most


@dataclass(frozen=True, slots=True)
class Limits:
    """What one image may cost."""

    fetch: FetchLimits
    max_image_pixels: int
    decode_timeout_s: float = 2.0

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return the limits that a config asks for."""
        return cls(FetchLimits.of(config), config.max_image_pixels, config.decode_timeout_s)


def load(source: ImageSource, sizing: Sizing, limits: Limits, *, cancel: threading.Event | None = None) -> Picture:
    """Load an image.

    Parameters
    ----------
    source : ImageSource
        From `identify`.
    sizing : Sizing
        The size wanted.
    limits : Limits
        What it may cost.
    cancel : threading.Event, optional
        Ends decoding once it is set.

    Returns
    -------
    Picture
        Resized exactly once.

    Raises
    ------
    RowError
        Of the stage ``fetch``, ``decode`` or ``resize``.
    """
    fetched = None if source.kind in ("pil", "array") else fetch(source, limits.fetch)
    if fetched is not None and not is_short(source, fetched, limits):
        return decode_apart(source, fetched, sizing, limits, cancel=cancel)
    return decode_here(source, fetched, sizing, limits)


def is_short(source: ImageSource, fetched: Fetched, limits: Limits) -> bool:
    """Whether bytes are decoded in less than a second, whatever they hold.

    Raises
    ------
    RowError
        They are no image, or too large a one, of the stage ``decode``.
    """
    with row_error("decode", source.label, "cannot be decoded"):
        return probe(fetched.data, source.label, max_image_pixels=limits.max_image_pixels).is_short


def decode_here(source: ImageSource, fetched: Fetched | None, sizing: Sizing, limits: Limits) -> Picture:
    """Decode what `is_short`, and pixels, in this thread.

    Raises
    ------
    RowError
        Of the stage ``decode`` or ``resize``.
    """
    with row_error("decode", source.label, "cannot be decoded"), _decoding.take(1):
        if fetched is None:
            return _from_pixels(source, sizing, limits)
        size = probe(fetched.data, source.label, max_image_pixels=limits.max_image_pixels).size or (0, 0)
        with _pixels.take(size[0] * size[1]):
            pixels, source_size = decode_resized(
                fetched.data, source.label, sizing, max_image_pixels=limits.max_image_pixels
            )
        return Picture(pixels, _digest(fetched.data), source_size, source.label, fetched.mark)


def decode_apart(
    source: ImageSource,
    fetched: Fetched,
    sizing: Sizing,
    limits: Limits,
    *,
    cancel: threading.Event | None = None,
) -> Picture:
    """Decode bytes in a process that can be ended.

    Raises
    ------
    RowError
        Of the stage ``decode`` or ``resize``; also where it took too long.
    """
    with row_error("decode", source.label, "cannot be decoded"):
        pixels, source_size = decode_pool.pool.decode(
            fetched.data,
            source.label,
            sizing,
            max_image_pixels=limits.max_image_pixels,
            timeout_s=limits.decode_timeout_s,
            cancel=cancel,
        )
        return Picture(pixels, _digest(fetched.data), source_size, source.label, fetched.mark)


def _from_pixels(source: ImageSource, sizing: Sizing, limits: Limits) -> Picture:
    decode = decode_pil if source.kind == "pil" else decode_array
    pixels: NDArray[np.uint8] = decode(source.value, source.label, max_image_pixels=limits.max_image_pixels)
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
    digest.update(repr(pixels.shape).encode())
    height, width = pixels.shape[:2]
    with row_error("resize", source.label, "cannot be resized"):
        sized = resize(pixels, sizing.target((height, width), source.label))
    return Picture(sized, digest.hexdigest(), (height, width), source.label)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
