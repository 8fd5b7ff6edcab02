"""Draw a panel's images: thumbnails, and what the model receives with its visual tokens framed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from qwenvl_kit.errors import RowError
from qwenvl_kit.html import render
from qwenvl_kit.images import ExactSize
from qwenvl_kit.images.resize import resize
from qwenvl_kit.images.source_context import source_context
from qwenvl_kit.thumbnails import Thumbnailer, jpeg_uri

if TYPE_CHECKING:
    from markupsafe import Markup

    from qwenvl_kit.widgets.state import PanelImage

_SHOWN_SIDE = 168
_LINE = 2  # pixels of the drawn image, which is twice the size shown
_THUMBNAIL = (
    """{% if is_image %}<img src='{{ uri }}' alt='{{ alt }}'>{% else %}<p class='error'>{{ uri }}</p>{% endif %}"""
)


def draw_thumbnail(image: PanelImage, thumbnailer: Thumbnailer) -> str:
    """Return an image's thumbnail as a data URI, or its error message; drawn once."""
    if "thumbnail" not in image.memo:
        image.memo["thumbnail"] = thumbnailer.thumbnail(
            image.cell, keep=lambda source: image.memo.update({"source": source})
        )
    found: str = image.memo["thumbnail"]
    return found


def thumbnail_html(image: PanelImage, thumbnailer: Thumbnailer, *, alt: str) -> Markup:
    """Return an ``img`` element with the thumbnail, or a paragraph with its error message."""
    if "late" in image.memo and "thumbnail" not in image.memo:  # its thread may still run
        uri: str = image.memo["late"]
    else:
        uri = draw_thumbnail(image, thumbnailer)
    return render(_THUMBNAIL, is_image=uri.startswith("data:"), uri=uri, alt=alt)


def model_input_uri(
    image: PanelImage, size: tuple[int, int], factor: int, thumbnailer: Thumbnailer, *, lines: bool = True
) -> str | None:
    """Return a data URI of what the model receives, enlarged; None where it cannot be drawn.

    Parameters
    ----------
    image : PanelImage
        Its first image is drawn from the thumbnail's source, without another request.
    size : tuple of int
        ``(height, width)`` in pixels of the model's input.
    factor : int
        Side of a visual token in these pixels.
    thumbnailer : Thumbnailer
        Reads images in memory or in a file.
    lines : bool
        Frame each visual token.
    """
    key = (size, factor, lines)
    if key not in image.memo:
        image.memo[key] = _model_input_uri(image, size, factor, thumbnailer, lines)
    found: str | None = image.memo[key]
    return found


def _model_input_uri(
    image: PanelImage, size: tuple[int, int], factor: int, thumbnailer: Thumbnailer, lines: bool
) -> str | None:
    try:
        source = image.memo.get("source") or thumbnailer.source(image.cell)
        if source is None or source.kind in ("url", "remote"):
            return None
        pixels = thumbnailer.pixels(source, ExactSize(*size))
        with source_context(source.label, "resize", "Cannot show the image"):
            scale = max(1, round(2 * _SHOWN_SIDE / max(size)))
            shape = (size[1] * scale, size[0] * scale)
            drawn = Image.fromarray(resize(pixels, size)).resize(shape, Image.Resampling.NEAREST)
            if lines:
                frame_tokens(drawn, factor * scale)
            return jpeg_uri(drawn, 85)
    except RowError:
        return None


def frame_tokens(image: Image.Image, step: int) -> None:
    """Draw each line light beside dark, both wide enough to stay apart where the page halves the image."""
    draw = ImageDraw.Draw(image)
    for shift, colour in ((-_LINE, (255, 255, 255)), (0, (0, 0, 0))):
        for x in range(step + shift, image.width, step):
            draw.rectangle([x, 0, x + _LINE - 1, image.height], fill=colour)
        for y in range(step + shift, image.height, step):
            draw.rectangle([0, y, image.width, y + _LINE - 1], fill=colour)
