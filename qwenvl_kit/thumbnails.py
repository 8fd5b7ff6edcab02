"""Make small images of cells for people to look at, under the limits that the caller gave.

Whatever goes wrong becomes a sentence in the image's place. It knows neither frames nor widgets.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from PIL import Image

from qwenvl_kit.config import Config
from qwenvl_kit.errors import RowError, printable
from qwenvl_kit.images import Limits, Sizing, identify, load
from qwenvl_kit.images.decode import row_error
from qwenvl_kit.records import Geometry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qwenvl_kit.config import ImageSrcType

AREA = 160 * 160
_READERS = 24  # a slow host holds one each; 24 images are what a panel offers
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

    def thumbnail(self, cell: object, *, area: int = AREA) -> str:
        """Return a data URI of a cell's first image, or a sentence that says why there is none."""
        try:
            geometry = Geometry(patch=1, merge=1, min_pixels=1, max_pixels=area)
            pixels = self.pixels(cell, Sizing(geometry))
            if pixels is None:
                return "no picture"
            with row_error("resize", "the picture", "cannot be shown"):
                return jpeg_uri(Image.fromarray(pixels), _JPEG_QUALITY)
        except RowError as error:
            return _sentence(error)

    def thumbnails(self, cells: Sequence[object], *, within_s: float | None = None, area: int = AREA) -> list[str]:
        """Return `thumbnail` of each cell, made at the same time.

        Parameters
        ----------
        cells : sequence
            One image, or list of images, each.
        within_s : float, optional
            Longest time for all of them together, in seconds. What is not there by then gets a sentence instead; its
            thread ends by itself within the limits.
        area : int
            Most pixels of each.
        """
        futures: list[Future[str]] = []
        pool = ThreadPoolExecutor(min(_READERS, max(1, len(cells))), thread_name_prefix="qwenvl_kit-show")
        try:
            for cell in cells:
                futures.append(pool.submit(self.thumbnail, cell, area=area))
            wait(futures, timeout=within_s)
        except RuntimeError:  # the system gives no more threads; those that have begun do what they can
            wait(futures, timeout=within_s)
        finally:  # also after Ctrl-C, which must not wait for slow hosts
            pool.shutdown(wait=False, cancel_futures=True)
        found = [future.result() if future.done() and not future.cancelled() else None for future in futures]
        found += [None] * (len(cells) - len(found))
        return [self._late(cell, within_s) if one is None else one for cell, one in zip(cells, found, strict=True)]

    def pixels(self, cell: object, sizing: Sizing) -> NDArray[np.uint8] | None:
        """Return a cell's first image as uint8 (H, W, 3), resized; None where it has none.

        Raises
        ------
        RowError
            It cannot be had within the limits.
        """
        with row_error("fetch", "the picture", "cannot be read"):
            sources = identify(cell, self.image_src_type)
        if not sources:
            return None
        with row_error("decode", "the picture", "cannot be decoded"):
            return load(sources[0], sizing, self.limits).pixels

    def _late(self, cell: object, within_s: float | None) -> str:
        try:
            with row_error("fetch", "the picture", "cannot be read"):
                label = identify(cell, self.image_src_type)[0].label
            if within_s is None:
                raise RowError("fetch", f"{label} was not read, since the system gives no more threads")
            if within_s < self.limits.fetch.timeout_s:
                raise RowError("fetch", f"{label} was not there within {within_s:g} s, the longest that is waited here")
            raise RowError(
                "fetch",
                f"{label} was not fetched within timeout_s={self.limits.fetch.timeout_s:g}; raise it if the host is "
                "slow",
            )
        except RowError as error:
            return _sentence(error)


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
        As for `identify`.
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
