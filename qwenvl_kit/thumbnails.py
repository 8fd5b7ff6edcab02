"""Make thumbnails of cells, under the caller's limits.

A cell without a readable image gets a sentence that says why.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

from PIL import Image

from qwenvl_kit.errors import RowError, printable
from qwenvl_kit.images import ImageLoader, MaxArea, classify
from qwenvl_kit.images.source_context import source_context
from qwenvl_kit.options import FetchOptions
from qwenvl_kit.types import ImageSource, LoadedImage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qwenvl_kit.images import TargetSize
    from qwenvl_kit.options import ImageSrcType

_T = TypeVar("_T")
_AREA = 160 * 160
_THREADS = 24  # a slow host holds one each; 24 images are what a panel offers
# A remote image is kept to be drawn again: its bytes, or where they are more, a reduced copy.
_KEPT_BYTES = 4 << 20
_KEPT_PIXELS = 1 << 20
_JPEG_QUALITY = 80
_MAX_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small image.

    Attributes
    ----------
    text : str
        Its data URI, or a sentence that says why there is none.
    size : tuple of int or None
        ``(height, width)`` of the upright original in pixels; None without an image.
    """

    text: str
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Thumbnailer:
    """Makes thumbnails with one loader.

    Attributes
    ----------
    loader : ImageLoader
        Loads images under the caller's limits.
    image_src_type : str
        Meaning of texts and bytes.
    """

    loader: ImageLoader
    image_src_type: ImageSrcType = "auto"

    @classmethod
    def of(cls, options: FetchOptions, *, n_pixels: int = _AREA) -> Self:
        """Return the thumbnailer under the limits of options, for thumbnails of at most so many pixels."""
        return cls(ImageLoader.of(options, MaxArea(n_pixels)), options.image_src_type)

    @property
    def timeout_s(self) -> float:
        """Longest time of one fetch, in seconds."""
        return self.loader.fetch_limits.timeout_s

    def thumbnail(self, cell: object, *, keep: Callable[[ImageSource], None] | None = None) -> str:
        """Return a data URI of a cell's first image, or a sentence that says why there is none.

        Parameters
        ----------
        cell : object
            As for `classify`.
        keep : callable, optional
            Called with the image in memory, so that it can be drawn again without a request to its host.

        Examples
        --------
        >>> Thumbnailer.of(FetchOptions()).thumbnail(None)
        'no image'
        """
        return self._draw(cell, keep).text

    def thumbnails(self, cells: Sequence[object]) -> list[Thumbnail]:
        """Return the thumbnail of each cell, with the size of its image, made at the same time."""
        made = together([functools.partial(self._draw, cell) for cell in cells])
        drawn = zip(cells, made, strict=True)
        return [Thumbnail(self.late(cell, None)) if one is None else one for cell, one in drawn]

    def source(self, cell: object) -> ImageSource | None:
        """Return a cell's first image, not yet read; None where it has none.

        Raises
        ------
        RowError
            The cell is not an image.
        """
        sources = classify(cell, self.image_src_type)
        return sources[0] if sources else None

    def pixels(self, source: ImageSource, sizing: TargetSize) -> NDArray[np.uint8]:
        """Return an image as uint8 (H, W, 3), resized.

        Raises
        ------
        RowError
            It cannot be loaded within the limits.
        """
        return self.load(source, sizing).pixels

    def load(self, source: ImageSource, sizing: TargetSize) -> LoadedImage:
        """Return an image, upright and resized; raises RowError as `pixels`."""
        with source_context(source.label, "decode", "Cannot load the image"):
            return self.loader.with_sizing(sizing).load(source)

    def late(self, cell: object, within_s: float | None) -> str:
        """Return the sentence for an image that took longer than `within_s`, or got no thread where that is None."""
        try:
            source = self.source(cell)
        except RowError as error:
            return _sentence(error)
        late = self._late_error(within_s)
        if source is not None:
            late.name_source(source.label)
        return _sentence(late)

    def _draw(self, cell: object, keep: Callable[[ImageSource], None] | None = None) -> Thumbnail:
        try:
            source = self.source(cell)
            if source is None:
                return Thumbnail("no image")
            if keep is not None:
                source = self._in_memory(source)
                keep(source)
            loaded = self.load(source, self.loader.sizing)
            with source_context(source.label, "resize", "Cannot show the image"):
                return Thumbnail(jpeg_uri(Image.fromarray(loaded.pixels), _JPEG_QUALITY), loaded.source_size)
        except RowError as error:
            return Thumbnail(_sentence(error))

    def _late_error(self, within_s: float | None) -> RowError:
        if within_s is None:
            return RowError("fetch", "Not read, since the system starts no more threads.")
        if within_s < self.timeout_s:
            return RowError("fetch", f"Not loaded within {within_s:g} s, the limit for images here.")
        return self.loader.fetch_limits.timeout_error()

    def _in_memory(self, source: ImageSource) -> ImageSource:
        if source.kind not in ("url", "remote"):
            return source
        data = self.loader.fetch(source).data
        read = ImageSource("bytes", data, source.label, source.key)
        if len(data) <= _KEPT_BYTES:
            return read
        return ImageSource("array", self.pixels(read, MaxArea(_KEPT_PIXELS)), source.label, source.key)


def together(jobs: Sequence[Callable[[], _T]], *, within_s: float | None = None) -> list[_T | None]:
    """Run jobs at the same time; return None for each that is not done in time.

    Parameters
    ----------
    jobs : sequence of callable
        None of them raises.
    within_s : float, optional
        Seconds for all of them together. Threads of late jobs end by themselves.
    """
    futures: list[Future[_T]] = []
    pool = ThreadPoolExecutor(min(_THREADS, max(1, len(jobs))), thread_name_prefix="qwenvl_kit-show")
    try:
        with contextlib.suppress(RuntimeError):  # the system starts no more threads; those that run do the jobs
            futures.extend(map(pool.submit, jobs))
        wait(futures, timeout=within_s)
    finally:  # also after Ctrl-C, which must not wait for slow hosts
        pool.shutdown(wait=False, cancel_futures=True)
    done = [future.result() if future.done() and not future.cancelled() else None for future in futures]
    return [*done, *[None] * (len(jobs) - len(done))]


def jpeg_uri(image: Image.Image, quality: int) -> str:
    """Return a data URI of an RGB image as JPEG."""
    encoded = io.BytesIO()
    image.save(encoded, format="JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _sentence(error: RowError) -> str:
    return f"{error.stage}: {printable(error.message, _MAX_MESSAGE)}"
