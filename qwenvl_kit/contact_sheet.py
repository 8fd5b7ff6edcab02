"""Show a frame's column of images as a page of thumbnails, bounded in rows and bytes, with escaped texts."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image

from qwenvl_kit.boxes import drawing
from qwenvl_kit.boxes.views import BoxFrames, BoxViews
from qwenvl_kit.columns import column_names, is_same_label
from qwenvl_kit.errors import ColumnNotFound, UnknownOption
from qwenvl_kit.html import plain, render
from qwenvl_kit.images import is_null
from qwenvl_kit.options import Config, FetchKeywords, FetchOptions, names_of, suggest
from qwenvl_kit.prompts import is_missing
from qwenvl_kit.thumbnails import Thumbnail, Thumbnailer

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["MAX_BYTES", "SHOW_OPTIONS", "ContactSheet", "contact_sheet", "show_config"]

MAX_BYTES = 500_000
_LONGEST_TEXT = 500
_LONGEST_NAME = 100
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic"})
_SCHEMES = (
    "http://",
    "https://",
    "s3://",
    "s3a://",
    "tos://",
    "gs://",
    "gcs://",
    "hf://",
    "file:/",
    "data:image/",
)
# How JPEG, PNG, GIF, WebP, BMP and TIFF begin in base64.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkqA", "TU0AK")
_LEAST_BASE64 = 64
_STYLE = """
.qwenvl-sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: 12px; }
.qwenvl-sheet figure { margin: 0; padding: 8px; border: 1px solid rgba(128, 128, 128, .35); border-radius: 6px; }
.qwenvl-sheet img { display: block; max-width: 100%; max-height: 160px; margin: 0 auto 6px; }
.qwenvl-sheet dl { margin: 0; font-size: 12px; line-height: 1.4; overflow-wrap: anywhere; }
.qwenvl-sheet dt { opacity: .65; } .qwenvl-sheet dd { margin: 0 0 4px; }
"""
_BOX_STYLE = f"""{_STYLE}{drawing.STYLE}
.qwenvl-sheet {{ grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); }}
.qwenvl-sheet.qwenvl-wide {{ grid-template-columns: 1fr; }}
.qwenvl-sheet .qwenvl-image img {{ max-height: 256px; margin: 0; }}
"""
_BOX_PIXELS = 256 * 256
_IMAGE = """{% if is_image %}<img src="{{ image }}" alt="{{ alt }}">{% else %}<p>{{ image }}</p>{% endif %}"""
_FIGURE = """<figure>{{ image }}<dl>
{%- for name, text in texts %}<dt>{{ name }}</dt><dd>{{ text }}</dd>{% endfor %}</dl></figure>"""
_PAGE = """{{ style }}{{ legend }}<div class="qwenvl-sheet{% if is_wide %} qwenvl-wide{% endif %}">
{%- for figure in figures %}{{ figure }}{% endfor %}</div>{% if n_shown < n_rows %}
<p>{{ n_shown }} of {{ n_rows }} rows are shown
{%- if max_bytes %}; the limit of {{ max_bytes }} bytes was reached{% endif %}: see n_rows and
max_bytes.</p>{% endif %}"""


SHOW_OPTIONS = names_of(FetchOptions)


def show_config(options: FetchKeywords, verb: str = "show") -> Config:
    """Return the config of a verb's options, which concern reading images.

    Raises
    ------
    UnknownOption
        An option is none of `SHOW_OPTIONS`.
    ConfigError
        A value is invalid.
    """
    for name in options:
        if name not in SHOW_OPTIONS:
            raise UnknownOption(f"{verb}() has no option {name!r}. {suggest(name, SHOW_OPTIONS)}")
    return Config(**options)


@dataclass(frozen=True, slots=True)
class ContactSheet:
    """A sheet of thumbnails.

    Attributes
    ----------
    html : str
        A self-contained HTML fragment.
    n_shown, n_rows : int
        Rows shown, and rows of the frame.
    """

    html: str
    n_shown: int
    n_rows: int

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"ContactSheet({self.n_shown} of {self.n_rows} rows; shows itself in a notebook)"


def contact_sheet(
    frame: pd.DataFrame,
    column: Hashable | None,
    captions: Sequence[Hashable] | None,
    *,
    n_rows: int,
    max_bytes: int,
    config: Config,
    boxes: BoxFrames | None = None,
) -> ContactSheet:
    """Return the thumbnails of a column; see ``df.vl.show``. The labels are unique columns of the frame."""
    at = find_image_column(frame) if column is None else _position(frame, column)
    named = [place for place in range(frame.shape[1]) if place != at]
    if captions is not None:
        named = [_position(frame, name) for name in captions]
    shown = frame.head(max(0, n_rows))
    views = None if boxes is None else BoxViews.of(boxes, frame.index, len(shown))
    thumbnailer = Thumbnailer.of(config) if views is None else Thumbnailer.of(config, n_pixels=_BOX_PIXELS)
    images = thumbnailer.thumbnails(shown.iloc[:, at].tolist())
    texts = [(frame.columns[place], shown.iloc[:, place]) for place in named]
    figures: list[Markup] = []
    size = 0
    for position, image in enumerate(images):
        named_texts = [(name, column.iloc[position]) for name, column in texts]
        figure = _figure(shown.index[position], image, named_texts, views)
        size += len(figure.encode())
        if size > max_bytes:
            break
        figures.append(figure)
    page = render(
        _PAGE,
        figures=figures,
        n_shown=len(figures),
        n_rows=len(frame),
        max_bytes=max_bytes if len(figures) < len(images) else 0,
        style=render(f"<style>{_STYLE if views is None else _BOX_STYLE}</style>"),
        legend="" if views is None else views.legend(),
        is_wide=views is not None and views.is_comparison,
    )
    return ContactSheet(str(page), len(figures), len(frame))


def _position(frame: pd.DataFrame, column: Hashable) -> int:
    # By position, since a label may stand for a whole level of columns.
    return next(place for place, name in enumerate(frame.columns) if is_same_label(name, column))


def find_image_column(frame: pd.DataFrame) -> int:
    """Return the position of the first column whose first cell seems to be an image."""
    for position in range(frame.shape[1]):
        first = next((cell for cell in frame.iloc[:, position].tolist() if not is_null(cell)), None)
        if _looks_like_image(first):
            return position
    raise ColumnNotFound(
        f"No column contains images. Name one with df.vl.show('column'). The frame has: {column_names(frame)}."
    )


def _looks_like_image(cell: object) -> bool:
    if isinstance(cell, str):
        is_named = PurePosixPath(cell.partition("?")[0]).suffix.lower() in _SUFFIXES if len(cell) < 4096 else False
        return is_named or cell[:16].lstrip().lower().startswith(_SCHEMES) or _looks_like_base64(cell)
    if isinstance(cell, Mapping):
        return any(not is_null(cell.get(name)) for name in ("bytes", "path"))
    if isinstance(cell, list | tuple):
        return bool(cell) and _looks_like_image(cell[0])
    if isinstance(cell, bytes | bytearray | memoryview | Image.Image | os.PathLike):
        return True
    try:
        n_axes = getattr(cell, "ndim", 0)
        if n_axes == 1 and str(getattr(cell, "dtype", "")) == "object":
            return len(cell) > 0 and _looks_like_image(cell[0])  # type: ignore[arg-type, index]
        return n_axes in (2, 3)
    except Exception:  # noqa: BLE001  # a cell's own attributes may raise anything
        return False


def _looks_like_base64(text: str) -> bool:
    head = text[:128].strip()
    begins = head.startswith(_BASE64_STARTS) or "ZnR5c" in head[:12]  # "ftyp": AVIF, HEIF
    return begins and len(text) >= _LEAST_BASE64 and " " not in head and head.isascii()


def _figure(
    label: Hashable, image: Thumbnail, texts: Sequence[tuple[Hashable, object]], views: BoxViews | None
) -> Markup:
    row = _text(label)
    named = [(plain(name, _LONGEST_NAME), _text(value)) for name, value in texts]
    alt = f"row {row}: {' '.join(text for _, text in named)}"[:_LONGEST_TEXT]
    if views is None:
        drawn = render(_IMAGE, is_image=image.size is not None, image=image.text, alt=alt)
    else:
        drawn = views.draw(label, image, alt)
    return render(_FIGURE, image=drawn, texts=[("row", row), *named])


def _text(value: object) -> str:
    return "–" if is_missing(value) else plain(value, _LONGEST_TEXT)
