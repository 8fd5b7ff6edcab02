"""Show explained answers as HTML and CSS alone: it works without a script, also in a saved notebook.

A word that is hovered or focused darkens what it does not come from. Every word can be reached with the keyboard, and
its strongest place is read aloud.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from qwenvl_kit.contact_sheet import MAX_BYTES, ContactSheet
from qwenvl_kit.explain.maps import pooled
from qwenvl_kit.html import plain, render

if TYPE_CHECKING:
    from markupsafe import Markup
    from numpy.typing import NDArray

    from qwenvl_kit.attribution import WordMap
    from qwenvl_kit.explain.explanation import Explanation

__all__ = ["MAX_BYTES", "draw_word", "show", "show_style"]

STYLE = """
.qwenvl-explained { position: relative; margin: 0 0 18px; }
.qwenvl-stage { position: relative; overflow: hidden; margin-bottom: 6px; }
.qwenvl-stage img, .qwenvl-heat img { position: absolute; max-width: none; margin: 0; }
.qwenvl-heat { position: absolute; left: 0; top: 0; pointer-events: none; display: none; }
.qwenvl-heat img, .qwenvl-small .qwenvl-heat img { image-rendering: pixelated; }
.qwenvl-answer { margin: 0 0 6px; line-height: 1.9; overflow-wrap: anywhere; }
.qwenvl-word { padding: 1px 3px; border-bottom: 3px solid rgba(204, 85, 0, var(--s)); border-radius: 3px; }
.qwenvl-word:is(:hover, :focus) { background: #c50; color: #fff; outline: none; }
.qwenvl-word:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
.qwenvl-word:is(:hover, :focus) > .qwenvl-heat { display: block; }
.qwenvl-strongest { display: flex; flex-wrap: wrap; gap: 10px; font-size: 12px; }
.qwenvl-small figcaption { margin-top: 2px; }
.qwenvl-small { margin: 0; position: relative; }
.qwenvl-small .qwenvl-heat { display: block; }
.qwenvl-explained > small { opacity: .75; }
"""
_DARKEST = 205  # opacity of what a word does not come from, of 255
_HEIGHT = 240  # of the images, in pixels
_GAP = 8
_N_STRONGEST = 3
_SMALL = 0.4
_LONGEST_ANSWER = 4000
_LONGEST_LABEL = 80
_PAGE = """<style>{{ style }}</style>{% for row in rows %}{{ row }}{% endfor %}
{%- if n_shown < n_rows %}<p>{{ n_shown }} of {{ n_rows }} rows are shown: see n_rows and max_bytes.</p>{% endif %}"""
_ROW = """<div class="qwenvl-explained" role="group" aria-label="row {{ label }}: {{ answer }}">{{ stage }}
<p class="qwenvl-answer">{% for piece in pieces %}{{ piece }}{% endfor %}</p>
{%- if strongest %}<div class="qwenvl-strongest" aria-hidden="true">
{%- for one in strongest %}{{ one }}{% endfor %}</div>{% endif %}<small>row {{ label }} · {{ note }}</small></div>"""
_STAGE = """<div class="qwenvl-stage" style="width:{{ width }}px;height:{{ height }}px">
{%- for image in images %}{% if image.uri %}<img src="{{ image.uri }}" alt="{{ image.alt }}" style="{{ image.style }}">
{%- else %}<span>{{ image.alt }}</span>{% endif %}{% endfor %}</div>"""
_WORD = """<span class="qwenvl-word" tabindex="0" style="--s:{{ share }}" aria-label="{{ said }}">{{ text }}
{{- heat }}</span>"""
_HEAT = """<span class="qwenvl-heat" aria-hidden="true">{% for uri, style in layers %}
{{- "" }}<img src="{{ uri }}" alt="" style="{{ style }}">{% endfor %}</span>"""
_ALONE = """<div class="qwenvl-explained qwenvl-small">{{ stage }}{{ heat }}</div>"""
_SMALL_FIGURE = """<figure class="qwenvl-small">{{ stage }}{{ heat }}<figcaption>{{ text }}</figcaption></figure>"""


@dataclass(frozen=True, slots=True)
class _Placed:
    """An image of the stage."""

    uri: str
    alt: str
    left: float
    width: float
    height: float

    @property
    def style(self) -> str:
        return f"left:{self.left:.0f}px;top:0;width:{self.width:.0f}px;height:{self.height:.0f}px"

    def scaled(self, factor: float) -> _Placed:
        return _Placed(self.uri, self.alt, self.left * factor, self.width * factor, self.height * factor)


def show(explanations: Sequence[Explanation], *, n_rows: int, max_bytes: int = MAX_BYTES) -> ContactSheet:
    """Return a page of explained answers, bounded in rows and bytes."""
    rows: list[Markup] = []
    size = 0
    for one in explanations[: max(0, n_rows)]:
        row = _draw_row(one)
        size += len(row.encode())
        if size > max_bytes:
            break
        rows.append(row)
    n_all = len(explanations)
    page = render(_PAGE, style=render(STYLE), rows=rows, n_shown=len(rows), n_rows=n_all)
    return ContactSheet(str(page), len(rows), n_all)


def show_style() -> Markup:
    """Return the style of all views."""
    return render("<style>{{ style }}</style>", style=render(STYLE))


def draw_word(explanation: Explanation, word: int | None, layer: int | None) -> tuple[Markup, str]:
    """Return the images of a row with the map of one word over them, and what a screen reader says of it."""
    images = _placed(explanation)
    if word is None:
        return render(_ALONE, stage=_stage(images), heat=""), "the answer has no words"
    weights = explanation.weights(word, layer=layer)
    drawn = render(_ALONE, stage=_stage(images), heat=_heat(_layers(explanation, weights), images))
    return drawn, _said(explanation, explanation.maps.words[word].text, weights)


def _draw_row(explanation: Explanation) -> Markup:
    """Return the images of an answer, its words, and the strongest words beside each other."""
    images = _placed(explanation)
    words = explanation.maps.words
    means = [explanation.weights(at) for at in range(len(words))]
    heats = [_layers(explanation, weights) for weights in means]
    peaks = [max(0.0, float(weights.max())) for weights in means]
    highest = max(peaks, default=0.0) or 1.0
    drawn = [
        render(
            _WORD,
            text=word.text,
            said=_said(explanation, word.text, weights),
            share=f"{peak / highest:.2f}",
            heat=_heat(layers, images),
        )
        for word, peak, weights, layers in zip(words, peaks, means, heats, strict=True)
    ]
    strongest = [at for at in explanation.strongest(_N_STRONGEST) if peaks[at] > 0]
    return render(
        _ROW,
        label=plain(explanation.row, _LONGEST_LABEL),
        answer=plain(explanation.answer, _LONGEST_ANSWER),
        stage=_stage(images),
        pieces=_pieces(explanation, drawn),
        strongest=[_small(words[at], peaks[at], heats[at], images) for at in strongest],
        note=_note(explanation),
    )


def _pieces(explanation: Explanation, drawn: Sequence[Markup]) -> list[Markup | str]:
    """Return the answer in order: words as drawn, and the text between them."""
    pieces: list[Markup | str] = []
    at = 0
    for word, markup in zip(explanation.maps.words, drawn, strict=True):
        pieces += [explanation.answer[at : word.begin], markup]
        at = word.end
    return [*pieces, explanation.answer[at:]]


def _placed(explanation: Explanation) -> list[_Placed]:
    """Return the images of a row side by side, in one height."""
    placed: list[_Placed] = []
    left = 0.0
    for at, (image, size) in enumerate(
        zip(explanation.pictures.thumbnails(), explanation.maps.sizes, strict=True), start=1
    ):
        width = _HEIGHT * size[1] / size[0]
        alt = f"image {at} of row {plain(explanation.row, _LONGEST_LABEL)}"
        uri, alt = (image.text, alt) if image.size is not None else ("", image.text)
        placed.append(_Placed(uri, alt, left, width, _HEIGHT))
        left += width + _GAP
    return placed


def _stage(images: Sequence[_Placed]) -> Markup:
    last = images[-1]
    return render(_STAGE, images=images, width=f"{last.left + last.width:.0f}", height=f"{last.height:.0f}")


def _layers(explanation: Explanation, weights: NDArray[np.float32]) -> list[str]:
    """Return a data URI for each image: black, and transparent where the word comes from; none without any place."""
    grids, _ = pooled(weights, explanation.maps.grids)
    peak = max(float(grid.max()) for grid in grids)
    return [_png(np.asarray(np.maximum(grid, 0) / peak, np.float32)) for grid in grids] if peak > 0 else []


def _heat(layers: Sequence[str], images: Sequence[_Placed]) -> Markup:
    pairs = list(zip(layers, [image.style for image in images], strict=True)) if layers else []
    return render(_HEAT, layers=pairs)


def _small(word: WordMap, peak: float, layers: Sequence[str], images: Sequence[_Placed]) -> Markup:
    scaled = [image.scaled(_SMALL) for image in images]
    text = f"{word.text} {peak:.3g}"
    return render(_SMALL_FIGURE, stage=_stage(scaled), heat=_heat(layers, scaled), text=text)


def _png(shares: NDArray[np.float32]) -> str:
    pixels = np.zeros((*shares.shape, 4), np.uint8)
    pixels[..., 3] = np.round(_DARKEST * (1 - shares))
    encoded = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(encoded, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _said(explanation: Explanation, text: str, weights: NDArray[np.float32]) -> str:
    """Return what a screen reader says of a word."""
    grids, _ = pooled(weights, explanation.maps.grids)
    picture = int(np.argmax([grid.max() for grid in grids]))
    grid = grids[picture]
    if grid.max() <= 0:
        return f"{text}: from no place"
    row, column = (int(at) + 1 for at in np.unravel_index(int(grid.argmax()), grid.shape))
    where = f"row {row} of {grid.shape[0]}, column {column} of {grid.shape[1]}"
    of = f" of image {picture + 1}" if len(grids) > 1 else ""
    return f"{text}: strongest at {where}{of}"


def _note(explanation: Explanation) -> str:
    maps = explanation.maps
    parts: list[str] = [explanation.method]
    if maps.layers:
        parts.append(f"layers {', '.join(map(str, maps.layers))}")
    if not maps.words:
        parts.append("the answer has no words")
    if explanation.pooled > 1:
        parts.append(f"cells of {explanation.pooled} × {explanation.pooled} visual tokens")
    return " · ".join(parts)
