"""The images of an explained row, drawn again when they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenvl_kit.images import MaxArea, classify
from qwenvl_kit.thumbnails import Thumbnailer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qwenvl_kit.options import FetchOptions
    from qwenvl_kit.thumbnails import Thumbnail

_SHOWN_PIXELS = 256 * 256
_PLOTTED_PIXELS = 1 << 21


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """The images of one row.

    Attributes
    ----------
    cell : object
        The cell: an image, or a list of images.
    options : FetchOptions
        How to read it.
    """

    cell: object
    options: FetchOptions

    def thumbnails(self) -> list[Thumbnail]:
        """Return a thumbnail of each image, or a sentence in its place."""
        sources = classify(self.cell, self.options.image_src_type)
        return Thumbnailer.of(self.options, n_pixels=_SHOWN_PIXELS).thumbnails([source.value for source in sources])

    def pixels(self, picture: int) -> NDArray[np.uint8]:
        """Return an image, upright and of moderate size, uint8 (H, W, 3).

        Raises
        ------
        RowError
            It can no longer be read.
        """
        thumbnailer = Thumbnailer.of(self.options)
        source = classify(self.cell, self.options.image_src_type)[picture]
        return thumbnailer.pixels(source, MaxArea(_PLOTTED_PIXELS))
