"""A frame with a column of pictures in, a page of thumbnails out, bounded in rows and bytes.

Every text is escaped: captions and cells are strangers' words.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import pandas as pd
from PIL import Image

from qwenvl_kit.config import Config
from qwenvl_kit.errors import ColumnNotFound, RowError
from qwenvl_kit.images import Limits, Sizing, identify, is_null, load
from qwenvl_kit.prompts import is_missing
from qwenvl_kit.records import Geometry, ImageSource

MAX_BYTES = 500_000
_AREA = 160 * 160
_LONGEST_TEXT = 500
_JPEG_QUALITY = 80
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic"})
_SCHEMES = ("http://", "https://", "s3://", "tos://", "file://", "data:image/")
_STYLE = """
.qwenvl-sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: 12px; }
.qwenvl-sheet figure { margin: 0; padding: 8px; border: 1px solid rgba(128, 128, 128, .35); border-radius: 6px; }
.qwenvl-sheet img { display: block; max-width: 100%; max-height: 160px; margin: 0 auto 6px; }
.qwenvl-sheet dl { margin: 0; font-size: 12px; line-height: 1.4; overflow-wrap: anywhere; }
.qwenvl-sheet dt { opacity: .65; } .qwenvl-sheet dd { margin: 0 0 4px; }
"""


@dataclass(frozen=True, slots=True)
class Contact:
    """A sheet of thumbnails.

    Attributes
    ----------
    html : str
        The page's part, complete in itself.
    n_shown, n_rows : int
        Rows that are shown, and rows that there are.
    """

    html: str
    n_shown: int
    n_rows: int

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"Contact({self.n_shown} of {self.n_rows} rows; shows itself in a notebook)"


def contact_sheet(
    frame: pd.DataFrame,
    column: Hashable | None,
    captions: Sequence[Hashable] | None,
    *,
    n_rows: int,
    max_bytes: int,
) -> Contact:
    """Make thumbnails of a column; see ``df.vl.show``."""
    column = _picture_column(frame) if column is None else column
    named = [name for name in frame.columns if name != column] if captions is None else list(captions)
    shown = frame.head(max(0, n_rows))
    with ThreadPoolExecutor(4, thread_name_prefix="qwenvl_kit-show") as pool:
        pictures = list(pool.map(thumbnail, shown[column].tolist()))
    figures: list[str] = []
    size = 0
    for position, picture in enumerate(pictures):
        texts = {name: shown[name].iloc[position] for name in named}
        figure = _figure(shown.index[position], picture, texts)
        size += len(figure.encode())
        if size > max_bytes:
            break
        figures.append(figure)
    note = _note(len(figures), len(frame), limited=len(figures) < len(pictures), max_bytes=max_bytes)
    page = f'<style>{_STYLE}</style><div class="qwenvl-sheet">{"".join(figures)}</div>{note}'
    return Contact(page, len(figures), len(frame))


def thumbnail(cell: object, *, area: int = _AREA) -> str:
    """A data URI of the first picture of a cell, of at most `area` pixels; or a sentence that says why there is none.

    Examples
    --------
    >>> thumbnail(None)
    'no picture'
    """
    try:
        sources = identify(cell)
        if not sources:
            return "no picture"
        pixels = _small(sources[0], area)
    except RowError as error:
        return f"{error.stage}: {error.message}"
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _small(source: ImageSource, area: int):  # type: ignore[no-untyped-def]  # uint8 (H, W, 3)
    geometry = Geometry(patch=1, merge=1, min_pixels=1, max_pixels=area)
    return load(source, Sizing(geometry), Limits.of(Config())).pixels


def _picture_column(frame: pd.DataFrame) -> Hashable:
    for position, name in enumerate(frame.columns):
        first = next((cell for cell in frame.iloc[:, position].tolist() if not is_null(cell)), None)
        if _looks_like_picture(first):
            return name
    names = ", ".join(map(repr, frame.columns)) or "no columns at all"
    raise ColumnNotFound(f"no column seems to hold pictures; name it: df.vl.show('column'); the frame has: {names}")


def _looks_like_picture(cell: object) -> bool:
    if isinstance(cell, str):
        is_named = PurePosixPath(cell.partition("?")[0]).suffix.lower() in _SUFFIXES if len(cell) < 4096 else False
        return is_named or cell.startswith(_SCHEMES)
    if isinstance(cell, list | tuple):
        return bool(cell) and _looks_like_picture(cell[0])
    return isinstance(cell, bytes | bytearray | Image.Image | os.PathLike) or getattr(cell, "ndim", 0) in (2, 3)


def _figure(label: object, picture: str, texts: dict[Hashable, object]) -> str:
    written = {str(name): _text(value) for name, value in texts.items()}
    alt = html.escape(f"row {label}: {' '.join(written.values())}"[:_LONGEST_TEXT], quote=True)
    head = f'<img src="{picture}" alt="{alt}">' if picture.startswith("data:") else f"<p>{html.escape(picture)}</p>"
    entries = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in written.items())
    return f"<figure>{head}<dl><dt>row</dt><dd>{html.escape(_text(label))}</dd>{entries}</dl></figure>"


def _text(value: object) -> str:
    text = "–" if is_missing(value) else str(value)
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}… ({len(text)} characters)"


def _note(n_shown: int, n_rows: int, *, limited: bool, max_bytes: int) -> str:
    if n_shown == n_rows:
        return ""
    why = f"; the limit of {max_bytes} bytes was reached" if limited else ""
    return f"<p>{n_shown} of {n_rows} rows are shown{why}: see n_rows and max_bytes.</p>"
