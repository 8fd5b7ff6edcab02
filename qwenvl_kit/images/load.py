"""Load an image: fetch its bytes, decode them to upright RGB, and resize them once.

Whatever a library raises on the way is the image's own row error. Files that are not provably quick to decode are
decoded in another process.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from qwenvl_kit._cpu import available_cpus
from qwenvl_kit.images import decode_pool
from qwenvl_kit.images.addressed import by_address
from qwenvl_kit.images.arrays import decode_array
from qwenvl_kit.images.budget import Budget
from qwenvl_kit.images.decode import decode_pil, decode_resized
from qwenvl_kit.images.fetch.dispatch import Fetch, fetch, is_unchanged
from qwenvl_kit.images.fetch.idle import close_idle_connections
from qwenvl_kit.images.fetch.limits import FetchLimits
from qwenvl_kit.images.heap import trim_heap
from qwenvl_kit.images.probe import SHORT_PIXELS, probe
from qwenvl_kit.images.resize import resize
from qwenvl_kit.images.source_context import source_context, stage_context
from qwenvl_kit.types import LoadedImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwenvl_kit.images.fetch.cache import FetchCache
    from qwenvl_kit.images.fetch.fetched import Fetched
    from qwenvl_kit.images.resize import TargetSize
    from qwenvl_kit.options import FetchOptions
    from qwenvl_kit.types import ImageSource

# Decoding is CPU-bound where fetching waits: more at a time than there are CPUs would only hold more pixels in memory.
_SLOTS = max(2, available_cpus())
_decoding = Budget(_SLOTS)
# Memory of all images that are decoded at a time, here and in processes: two of 12 megapixels on two CPUs. An image
# that takes more is decoded alone.
_MEMORY = _SLOTS * 144 * 2**20
_memory = Budget(_MEMORY)
_PROCESS_BYTES = 32 * 2**20
_FREE_PIXELS = 500_000  # of images that are not counted: all threads together hold less than 100 MB of these
_FAILED = "Cannot decode the image"


@dataclass(frozen=True, slots=True)
class DecodeCost:
    """The cost of decoding an image.

    Attributes
    ----------
    n_pixels : int
        Those of the image or of its target size, whichever are more; 0 where the header has no size.
    n_bytes : int
        Memory.
    is_short : bool
        Decoding takes less than a second, whatever the rest of the file contains.
    n_result_bytes : int
        Memory of the resized image, 0 where it is the image itself or its size is unknown.
    """

    n_pixels: int
    n_bytes: int
    is_short: bool
    n_result_bytes: int = 0

    @property
    def is_free(self) -> bool:
        """Whether the image is so small that its memory is not counted."""
        return self.is_short and self.n_pixels <= _FREE_PIXELS

    @property
    def is_large(self) -> bool:
        """Whether the image is decoded alone."""
        return self.n_bytes >= _MEMORY


@dataclass(frozen=True)
class ImageLoader:
    """Load images under one set of limits, at once or step by step.

    Attributes
    ----------
    sizing : TargetSize
        Size of the loaded images.
    fetch_limits : FetchLimits
        Time, bytes, hosts and files allowed.
    max_image_pixels : int
        Largest width × height.
    decode_timeout_s : float
        Most CPU seconds of decoding.
    cancel : threading.Event, optional
        Ends decoding once it is set.
    cache : FetchCache, optional
        Keeps files of hosts between fetches.
    hands_over : bool
        Images are URLs for a server, without pixels.
    """

    sizing: TargetSize
    fetch_limits: FetchLimits
    max_image_pixels: int
    decode_timeout_s: float = 2.0
    cancel: threading.Event | None = None
    cache: FetchCache | None = None
    hands_over: bool = False

    @classmethod
    def of(
        cls,
        options: FetchOptions,
        sizing: TargetSize,
        *,
        cancel: threading.Event | None = None,
        cache: FetchCache | None = None,
        hands_over: bool = False,
    ) -> Self:
        """Return a loader under the limits of options."""
        limits = FetchLimits.of(options)
        return cls(sizing, limits, options.max_image_pixels, options.decode_timeout_s, cancel, cache, hands_over)

    def with_sizing(self, sizing: TargetSize) -> Self:
        """Return a loader under the same limits that resizes to another size."""
        return replace(self, sizing=sizing)

    def load(self, source: ImageSource) -> LoadedImage:
        """Fetch, decode and resize.

        Raises
        ------
        RowError
            Of the stage ``fetch``, ``decode`` or ``resize``.
        """
        fetched = None if source.kind in ("pil", "array") else self.fetch(source)
        return self.decode(source, fetched, self.decode_cost(source, fetched))

    def is_unchanged(self, source: ImageSource, version: str) -> bool:
        """Return whether a source still has the version of an earlier load; False where that is unknown."""
        return is_unchanged(source, version, self.fetch_limits)

    def fetch(self, source: ImageSource) -> Fetched:
        """Return the encoded bytes of an image that is not in memory as pixels.

        Raises
        ------
        RowError
            Of the stage ``fetch``.
        """
        return fetch(source, self.fetch_limits, self.cache)

    def address(self, source: ImageSource) -> LoadedImage:
        """Return an image without pixels, for a server that fetches it.

        Raises
        ------
        RowError
            See `by_address`.
        """
        return by_address(source, self.fetch_limits)

    def start_fetch(self, source: ImageSource) -> Fetch:
        """Return a fetch for step-by-step use; no request is sent yet."""
        return Fetch(source, self.fetch_limits, self.cache)

    def decode_cost(self, source: ImageSource, fetched: Fetched | None) -> DecodeCost:
        """Return the cost of decoding bytes, by their header; of pixels in memory, of resizing them.

        Raises
        ------
        RowError
            The source is not an image, or exceeds a limit, of the stage ``decode``.
        """
        with source_context(source.label, "decode", _FAILED):
            if fetched is None:
                n_pixels = self._most_pixels(_size_in_memory(source.value))
                return DecodeCost(n_pixels, 8 * n_pixels, True)
            found = probe(fetched.data, max_image_pixels=self.max_image_pixels)
            n_pixels = self._most_pixels(found.size)
            n_bytes = found.bytes_per_pixel * n_pixels if n_pixels else _MEMORY
            is_short = found.is_short and n_pixels <= SHORT_PIXELS
            n_bytes += 0 if is_short else _PROCESS_BYTES
            return DecodeCost(n_pixels, n_bytes, is_short, self._result_bytes(found.size))

    def decode(self, source: ImageSource, fetched: Fetched | None, cost: DecodeCost) -> LoadedImage:
        """Decode and resize fetched bytes, or the pixels that a source holds.

        A short job runs in this thread, others in a process that can be ended.

        Raises
        ------
        RowError
            Of the stage ``decode`` or ``resize``; also where decoding took too long.
        """
        with source_context(source.label, "decode", _FAILED):
            if cost.is_free:
                return self._decode_here(source, fetched)
            with _memory.take(cost.n_bytes):
                if cost.is_large:  # beside it, nothing is kept for later
                    trim_heap()
                    decode_pool.pool.close_idle(keep=1)
                if not cost.is_short and fetched is not None:
                    return self._decode_apart(source, fetched, cost)
                with _decoding.take(1):
                    return self._decode_here(source, fetched)

    @staticmethod
    def decoding_bytes(n_pixels: Sequence[int]) -> int:
        """Return the most memory that decoding images of so many pixels takes at a time, here and in processes."""
        counted = sorted((n for n in n_pixels if n > _FREE_PIXELS), reverse=True)[: _SLOTS + 1]
        costs = [12 * n + (_PROCESS_BYTES if n > SHORT_PIXELS else 0) for n in counted]
        return max(costs[0], min(sum(costs), _MEMORY)) if costs else sum(sorted(n_pixels)[-_SLOTS:]) * 12

    @staticmethod
    def close_idle() -> None:
        """Close idle connections and end idle decoders of this process; later loads make new ones."""
        decode_pool.pool.close_idle()
        close_idle_connections()

    def _decode_here(self, source: ImageSource, fetched: Fetched | None) -> LoadedImage:
        if fetched is None:
            return self._resize_pixels(source)
        pixels, source_size = decode_resized(fetched.data, self.sizing, max_image_pixels=self.max_image_pixels)
        return _loaded(source, fetched, pixels, source_size)

    def _decode_apart(self, source: ImageSource, fetched: Fetched, cost: DecodeCost) -> LoadedImage:
        pixels, source_size = decode_pool.pool.decode(
            fetched.data,
            self.sizing,
            max_image_pixels=self.max_image_pixels,
            n_pixels=cost.n_pixels,
            n_bytes=cost.n_bytes,
            n_result_bytes=cost.n_result_bytes,
            timeout_s=self.decode_timeout_s,
            cancel=self.cancel,
        )
        return _loaded(source, fetched, pixels, source_size)

    def _resize_pixels(self, source: ImageSource) -> LoadedImage:
        decode = decode_pil if source.kind == "pil" else decode_array
        pixels: NDArray[np.uint8] = decode(source.value, max_image_pixels=self.max_image_pixels)
        digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
        digest.update(repr(pixels.shape).encode())
        height, width = pixels.shape[:2]
        with stage_context("resize", "Cannot resize the image"):
            resized = resize(pixels, self.sizing.target((height, width)))
        return LoadedImage(resized, digest.hexdigest(), (height, width), source.label)

    def _most_pixels(self, size: tuple[int, int] | None) -> int:
        if size is None or not all(size):
            return 0
        height, width = self.sizing.target(size)
        return max(size[0] * size[1], height * width)

    def _result_bytes(self, size: tuple[int, int] | None) -> int:
        if size is None or not all(size) or (target := self.sizing.target(size)) == size:
            return 0
        return 3 * target[0] * target[1]


def _loaded(
    source: ImageSource, fetched: Fetched, pixels: NDArray[np.uint8], source_size: tuple[int, int]
) -> LoadedImage:
    digest = hashlib.blake2b(fetched.data, digest_size=16).hexdigest()
    return LoadedImage(pixels, digest, source_size, source.label, fetched.version)


def _size_in_memory(value: Image.Image | np.ndarray[Any, Any]) -> tuple[int, int] | None:
    if isinstance(value, Image.Image):
        return value.height, value.width
    return (value.shape[0], value.shape[1]) if value.ndim > 1 else None
