"""Load an image: fetch its bytes, decode them to upright RGB, and resize them once to what the model sees.

Whatever a library raises on the way is the image's own error. What is not provably quick to decode goes to a process
of its own.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from qwenvl_kit._cpu import available_cpus
from qwenvl_kit.images import decode_pool
from qwenvl_kit.images.budget import Budget
from qwenvl_kit.images.decode import decode_array, decode_pil, decode_resized
from qwenvl_kit.images.fetch.dispatch import Fetch, Fetched, FetchLimits, fetch
from qwenvl_kit.images.heap import trim_heap
from qwenvl_kit.images.probe import SHORT_PIXELS, probe
from qwenvl_kit.images.resize import Sizing, resize
from qwenvl_kit.images.source_context import source_context
from qwenvl_kit.types import LoadedImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwenvl_kit.images.fetch.cache import FetchCache
    from qwenvl_kit.options import Config
    from qwenvl_kit.types import ImageSource

# Decoding works where fetching waits: more at a time than there are CPUs would only hold more pixels in memory.
_SLOTS = max(2, available_cpus())
_decoding = Budget(_SLOTS)
# Memory of all images that are decoded at a time, here and in processes: two of 12 megapixels on two CPUs. An image
# that takes more is decoded alone.
_MEMORY = _SLOTS * 144 * 2**20
_memory = Budget(_MEMORY)
_OF_A_PROCESS = 32 * 2**20
_FREE_PIXELS = 500_000  # of images that are not counted: all threads together hold less than 100 MB of these


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


@dataclass(frozen=True, slots=True)
class Weight:
    """What decoding an image costs.

    Attributes
    ----------
    n_pixels : int
        Those of the image or of what the model sees of it, whichever are more; 0 where the header does not tell.
    n_bytes : int
        Memory that it takes.
    is_short : bool
        It takes less than a second, whatever the rest of the file holds.
    """

    n_pixels: int
    n_bytes: int
    is_short: bool


class ImageLoader:
    """Loads images under one set of limits, at once or step by step.

    Parameters
    ----------
    sizing : Sizing
        The size wanted.
    limits : Limits
        What one image may cost.
    cancel : threading.Event, optional
        Ends decoding once it is set.
    cache : FetchCache, optional
        Where files of hosts are looked for, and kept.
    """

    def __init__(
        self,
        sizing: Sizing,
        limits: Limits,
        cancel: threading.Event | None = None,
        cache: FetchCache | None = None,
    ) -> None:
        self._sizing, self._limits, self._cancel, self._cache = sizing, limits, cancel, cache

    def load(self, source: ImageSource) -> LoadedImage:
        """Fetch, decode and resize.

        Raises
        ------
        RowError
            Of the stage ``fetch``, ``decode`` or ``resize``.
        """
        fetched = None if source.kind in ("pil", "array") else fetch(source, self._limits.fetch)
        return self.decode(source, fetched, self.weigh(source, fetched))

    def begin(self, source: ImageSource) -> Fetch:
        """Return the fetch of an image that is not in memory as pixels; nothing is asked yet."""
        return Fetch(source, self._limits.fetch, self._cache)

    def weigh(self, source: ImageSource, fetched: Fetched | None) -> Weight:
        """Tell from their header what decoding bytes costs; of pixels in memory, resizing them.

        Raises
        ------
        RowError
            They are no image, or too large a one, of the stage ``decode``.
        """
        with source_context("decode", source.label, "cannot be decoded"):
            if fetched is None:
                n_pixels = self._most_pixels(source, _size_of_pixels(source.value))
                return Weight(n_pixels, 8 * n_pixels, True)
            found = probe(fetched.data, source.label, max_image_pixels=self._limits.max_image_pixels)
            n_pixels = self._most_pixels(source, found.size)
            n_bytes = found.bytes_per_pixel * n_pixels if n_pixels else _MEMORY
            is_short = found.is_short and n_pixels <= SHORT_PIXELS
            return Weight(n_pixels, n_bytes if is_short else n_bytes + _OF_A_PROCESS, is_short)

    def decode(self, source: ImageSource, fetched: Fetched | None, weight: Weight) -> LoadedImage:
        """Decode and resize fetched bytes, or the pixels that a source holds.

        What is short, in this thread; else in a process that can be ended.

        Raises
        ------
        RowError
            Of the stage ``decode`` or ``resize``; also where it took too long.
        """
        with source_context("decode", source.label, "cannot be decoded"):
            if weight.n_pixels <= _FREE_PIXELS and weight.is_short:
                return self._decode_here(source, fetched)
            with _memory.take(weight.n_bytes):
                if not _memory.available:  # beside an image that takes all of it, none is kept for later
                    trim_heap()
                    if weight.n_bytes > 2 * _MEMORY:
                        decode_pool.pool.close_idle(keep=1)
                if not weight.is_short and fetched is not None:
                    pixels, source_size = self._decode_apart(source, fetched, weight.n_pixels)
                    return LoadedImage(pixels, _digest(fetched.data), source_size, source.label, fetched.version)
                with _decoding.take(1):
                    return self._decode_here(source, fetched)

    def _decode_here(self, source: ImageSource, fetched: Fetched | None) -> LoadedImage:
        if fetched is None:
            return self._of_pixels(source)
        pixels, source_size = decode_resized(
            fetched.data, source.label, self._sizing, max_image_pixels=self._limits.max_image_pixels
        )
        return LoadedImage(pixels, _digest(fetched.data), source_size, source.label, fetched.version)

    def _decode_apart(
        self, source: ImageSource, fetched: Fetched, n_pixels: int
    ) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        return decode_pool.pool.decode(
            fetched.data,
            source.label,
            self._sizing,
            max_image_pixels=self._limits.max_image_pixels,
            n_pixels=n_pixels,
            timeout_s=self._limits.decode_timeout_s,
            cancel=self._cancel,
        )

    def _of_pixels(self, source: ImageSource) -> LoadedImage:
        decode = decode_pil if source.kind == "pil" else decode_array
        pixels: NDArray[np.uint8] = decode(source.value, source.label, max_image_pixels=self._limits.max_image_pixels)
        digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
        digest.update(repr(pixels.shape).encode())
        height, width = pixels.shape[:2]
        with source_context("resize", source.label, "cannot be resized"):
            sized = resize(pixels, self._sizing.target((height, width), source.label))
        return LoadedImage(sized, digest.hexdigest(), (height, width), source.label)

    def _most_pixels(self, source: ImageSource, size: tuple[int, int] | None) -> int:
        """Pixels of the image or of what the model sees of it, whichever are more; 0 where they are not known."""
        if size is None or not all(size):
            return 0
        height, width = self._sizing.target(size, source.label)
        return max(size[0] * size[1], height * width)


def _size_of_pixels(value: Image.Image | np.ndarray[Any, Any]) -> tuple[int, int] | None:
    if isinstance(value, Image.Image):
        return value.height, value.width
    return (value.shape[0], value.shape[1]) if value.ndim > 1 else None


def load(source: ImageSource, sizing: Sizing, limits: Limits) -> LoadedImage:
    """Load one image.

    Parameters
    ----------
    source : ImageSource
        From `classify`.
    sizing : Sizing
        The size wanted.
    limits : Limits
        What it may cost.

    Returns
    -------
    Picture
        Resized exactly once.

    Raises
    ------
    RowError
        Of the stage ``fetch``, ``decode`` or ``resize``.
    """
    return ImageLoader(sizing, limits).load(source)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
