"""Make small images of cells for people to look at, under the limits that the caller gave.

Whatever goes wrong becomes a sentence in the image's place. It knows neither frames nor widgets.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from PIL import Image

from qwenvl_kit.errors import RowError, printable
from qwenvl_kit.images import Limits, Sizing, classify, load
from qwenvl_kit.images.fetch.dispatch import fetch
from qwenvl_kit.images.source_context import source_context
from qwenvl_kit.options import Config
from qwenvl_kit.types import ImageSource, PatchGeometry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qwenvl_kit.options import ImageSrcType

AREA = 160 * 160
_THREADS = 24  # a slow host holds one each; 24 images are what a panel offers
# What is kept of an image from elsewhere, to be drawn again: its bytes, or where they are more, a reduced copy.
_KEPT_BYTES = 4 << 20
_KEPT_PIXELS = 1 << 20
_JPEG_QUALITY = 80
_LONGEST_FAULT = 300


@dataclass(frozen=True, slots=True)
class Thumbnailer:
    """Makes thumbnails under one set of limits.

    Attributes
    ----------
    limits : Limits
        What one image may cost.
    image_src_type : str
        What the caller says that texts and bytes are.
    """

    limits: Limits
    image_src_type: ImageSrcType = "auto"

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return the thumbnailer that a config asks for."""
        return cls(Limits.of(config), config.image_src_type)

    def thumbnail(self, cell: object, *, area: int = AREA, keep: Callable[[ImageSource], None] | None = None) -> str:
        """Return a data URI of a cell's first image, or a sentence that says why there is none.

        Parameters
        ----------
        cell : object
            As for `classify`.
        area : int
            Most pixels.
        keep : callable, optional
            Called with the image as it is in memory, so that it can be drawn again without asking its host.
        """
        try:
            source = self.source(cell)
            if source is None:
                return "no picture"
            if keep is not None:
                source = self._in_memory(source)
                keep(source)
            pixels = self.pixels(source, Sizing(PatchGeometry(patch=1, merge=1, min_pixels=1, max_pixels=area)))
            with source_context("resize", source.label, "cannot be shown"):
                return jpeg_uri(Image.fromarray(pixels), _JPEG_QUALITY)
        except RowError as error:
            return _sentence(error)

    def thumbnails(self, cells: Sequence[object]) -> list[str]:
        """Return `thumbnail` of each cell, made at the same time."""
        made = together([functools.partial(self.thumbnail, cell) for cell in cells])
        return [self.late(cell, None) if one is None else one for cell, one in zip(cells, made, strict=True)]

    def source(self, cell: object) -> ImageSource | None:
        """Return a cell's first image, not yet read; None where it has none.

        Raises
        ------
        RowError
            The cell is no image.
        """
        with source_context("fetch", "the cell", "cannot be read"):
            sources = classify(cell, self.image_src_type)
        return sources[0] if sources else None

    def pixels(self, source: ImageSource, sizing: Sizing) -> NDArray[np.uint8]:
        """Return an image as uint8 (H, W, 3), resized.

        Raises
        ------
        RowError
            It cannot be had within the limits.
        """
        with source_context("decode", source.label, "cannot be decoded"):
            return load(source, sizing, self.limits).pixels

    def late(self, cell: object, within_s: float | None) -> str:
        """Return the sentence for an image that was not there within a time; None where no thread could be had."""
        try:
            source = self.source(cell)
            label = "the picture" if source is None else source.label
        except RowError as error:
            return _sentence(error)
        timeout_s = self.limits.fetch.timeout_s
        if within_s is None:
            why = f"{label} was not read, since the system gives no more threads"
        elif within_s < timeout_s:
            why = f"{label} was not there within {within_s:g} s, the longest that is waited for pictures here"
        else:
            why = f"{label} was not fetched within timeout_s={timeout_s:g}; raise it if the host is slow"
        return _sentence(RowError("fetch", why))

    def _in_memory(self, source: ImageSource) -> ImageSource:
        if source.kind not in ("url", "remote"):
            return source
        with source_context("fetch", source.label, "cannot be read"):
            data = fetch(source, self.limits.fetch).data
        read = ImageSource("bytes", data, source.label, source.key)
        if len(data) <= _KEPT_BYTES:
            return read
        reduced = self.pixels(read, Sizing(PatchGeometry(patch=1, merge=1, min_pixels=1, max_pixels=_KEPT_PIXELS)))
        return ImageSource("array", reduced, source.label, source.key)


def together(jobs: Sequence[Callable[[], str]], *, within_s: float | None = None) -> list[str | None]:
    """Do all jobs at the same time; None for those that are not done in time.

    Parameters
    ----------
    jobs : sequence of callable
        None of them raises.
    within_s : float, optional
        Longest time for all of them together, in seconds. Threads of late ones end by themselves.
    """
    futures: list[Future[str]] = []
    pool = ThreadPoolExecutor(min(_THREADS, max(1, len(jobs))), thread_name_prefix="qwenvl_kit-show")
    try:
        with contextlib.suppress(RuntimeError):  # the system gives no more threads; those there are do what they can
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


def thumbnail(cell: object, *, area: int = AREA, **options: Any) -> str:
    """Return a data URI of a cell's first image, or a sentence that says why there is none.

    Parameters
    ----------
    cell : object
        As for `classify`.
    area : int
        Most pixels.
    **options
        Those of `Config` that limit fetching and decoding.

    Examples
    --------
    >>> thumbnail(None)
    'no picture'
    """
    return Thumbnailer.of(Config(**options)).thumbnail(cell, area=area)


def _sentence(error: RowError) -> str:
    return f"{error.stage}: {printable(error.message, _LONGEST_FAULT)}"
