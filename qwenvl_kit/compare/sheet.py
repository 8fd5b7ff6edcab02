"""Show a comparison as HTML: a row per image, a column per setting, differences from the reference marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from qwenvl_kit.compare.diff_html import diff_html
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.html import plain, render

if TYPE_CHECKING:
    from markupsafe import Markup

    from qwenvl_kit.thumbnails import Thumbnailer

Only = Literal["differs", "wrong"]

MAX_BYTES = 500_000
_LONGEST_TEXT = 1_000
_LONGEST_NAME = 100
_STYLE = """<style>
.qwenvl-compared { font-size: 13px; line-height: 1.45; overflow-x: auto; }
.qwenvl-compared table { border-collapse: collapse; }
.qwenvl-compared th, .qwenvl-compared td { vertical-align: top; padding: 6px 8px; min-width: 140px; max-width: 340px;
  white-space: normal; overflow-wrap: anywhere; border-top: 1px solid rgba(128, 128, 128, .35); }
.qwenvl-compared img { display: block; max-width: 160px; max-height: 160px; }
.qwenvl-compared del { text-decoration: line-through; opacity: .8; background: rgba(214, 90, 60, .18); }
.qwenvl-compared ins { text-decoration: underline; font-weight: 600; background: rgba(60, 130, 214, .18); }
.qwenvl-compared small { opacity: .8; }
</style>"""
# Alignment stands in the elements: JupyterLab aligns cells to the right, and keeps no <style> of an untrusted notebook.
_PAGE = """<div class='qwenvl-compared'><table><thead><tr><th style='text-align: left' scope='col'>image</th>
{%- if has_truth %}<th style='text-align: left' scope='col'>truth</th>{% endif %}
{%- for one in settings %}<th style='text-align: left' scope='col'>{{ one.name }}
{%- if one.counts %}<br><small>{{ one.counts }}</small>{% endif %}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}{{ row }}{% endfor %}</tbody></table><p>{{ told }}</p></div>"""
_ROW = """<tr><td style='text-align: left'>
{%- if is_image %}<img src='{{ image }}' alt='image {{ label }}'>{% else %}{{ image }}<br>{% endif %}{{ label }}</td>
{%- if has_truth %}<td style='text-align: left'>{{ truth }}</td>{% endif %}
{%- for cell in cells %}<td style='text-align: left'>{% for one in cell %}{% if not loop.first %}<br>{% endif %}
{{- one.mark }} {{ one.text }}{% if one.times > 1 %} <small>× {{ one.times }}</small>{% endif %}{% endfor %}</td>
{%- endfor %}</tr>"""


@dataclass(frozen=True, slots=True)
class ComparisonSheet:
    """A page of images with their answers.

    Attributes
    ----------
    html : str
        A self-contained HTML fragment.
    n_shown, n_images : int
        Images on this page, and images that were selected.
    """

    html: str
    n_shown: int
    n_images: int

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"ComparisonSheet({self.n_shown} of {self.n_images} images; shows itself in a notebook)"


def comparison_sheet(
    frame: pd.DataFrame,
    varied: Sequence[str],
    reference: Mapping[str, object],
    images: pd.Series,
    thumbnailer: Thumbnailer,
    *,
    only: Only | None,
    page: int,
    n_images: int,
    max_bytes: int,
) -> ComparisonSheet:
    """Return one page of a tidy frame; see `Comparison.show`.

    Parameters
    ----------
    frame : DataFrame
        Of a comparison.
    varied : sequence of str
        The varied options.
    reference : mapping
        Values of the reference; options not in it keep each setting's own value.
    images : Series
        The compared cells; `frame.row` counts them.
    """
    settings = [part for _, part in frame.groupby(list(varied), sort=False, dropna=False)]
    references = _references([_values(part, varied) for part in settings], varied, reference)
    selected = _selected(frame, only)
    on_page = selected[(page - 1) * n_images : page * n_images]
    thumbnails = thumbnailer.thumbnails([images.iloc[row] for row in on_page])
    by_place = [{(row, repeat): at for at, row, repeat in _places(part)} for part in settings]
    has_truth = "truth" in frame
    rows: list[Markup] = []
    size = 0
    for row, image in zip(on_page, thumbnails, strict=True):
        cells = [
            _cell(frame, row, answers, None if at is None else by_place[at])
            for answers, at in zip(by_place, references, strict=True)
        ]
        made = render(
            _ROW,
            is_image=image.size is not None,
            image=image.text,
            label=plain(images.index[row], _LONGEST_NAME),
            has_truth=has_truth,
            truth=_text(_first(frame, "truth", row)) if has_truth else "",
            cells=cells,
        )
        size += len(made.encode())
        if size > max_bytes:
            break
        rows.append(made)
    heads = [
        {"name": _name(part, varied), "counts": _counts(part, is_reference=at is None)}
        for part, at in zip(settings, references, strict=True)
    ]
    n_pages = max(1, -(-len(selected) // n_images))
    told = f"{len(rows)} of {len(selected)} images, page {page} of {n_pages}."
    if len(rows) < len(on_page):
        told += f" The limit of {max_bytes} bytes was reached: see n_images and max_bytes."
    body = render(_PAGE, settings=heads, rows=rows, has_truth=has_truth, told=told)
    return ComparisonSheet(f"{_STYLE}{body}", len(rows), len(selected))


def _selected(frame: pd.DataFrame, only: Only | None) -> list[int]:
    """Return the rows of the images to show, in their order."""
    if only is None:
        return sorted(set(frame["row"].tolist()))
    if only not in ("differs", "wrong"):
        raise ConfigError(f"only={only!r} is invalid. Use 'differs', 'wrong' or None.")
    if only == "wrong" and "right" not in frame:
        raise ConfigError("only='wrong' needs a truth. Pass truth=… to compare.")
    agrees = frame["same" if only == "differs" else "right"].astype("boolean")
    return sorted(set(frame["row"][(agrees == False).fillna(False)].tolist()))  # noqa: E712  # a missing value is neither


def _places(part: pd.DataFrame) -> Iterator[tuple[Any, int, int]]:
    return zip(part.index, part["row"].tolist(), part["repeat"].tolist(), strict=True)


def _cell(
    frame: pd.DataFrame,
    row: int,
    answers: dict[tuple[int, int], Any],
    references: dict[tuple[int, int], Any] | None,
) -> list[dict[str, object]]:
    """Return the answers of one setting, equal ones of several repeats as one."""
    found: dict[tuple[str, object], dict[str, object]] = {}
    for (_, repeat), at in sorted((place, at) for place, at in answers.items() if place[0] == row):
        answer = frame.loc[at]
        reference = None if references is None else references.get((row, repeat))
        other = None if reference is None else frame.loc[reference, "text"]
        mark, text = _mark(answer), _answer(answer, other)
        same = found.setdefault((mark, text), {"mark": mark, "text": text, "times": 0})
        same["times"] = int(str(same["times"])) + 1
    return list(found.values()) or [{"mark": "", "text": "…", "times": 1}]


def _mark(answer: pd.Series) -> str:
    right = answer.get("right")
    return "" if right is None or pd.isna(right) else "✓" if right else "✗"


def _answer(answer: pd.Series, reference: object) -> Markup | str:
    if answer["status"] == "error":
        return plain(f"⚠ {answer['stage']}: {answer['error']}", _LONGEST_TEXT)
    if not isinstance(answer["text"], str):
        return "no answer"
    if not isinstance(reference, str):
        return _text(answer["text"])
    return diff_html(_text(answer["text"]), _text(reference))


def _text(value: object) -> str:
    return plain(value, _LONGEST_TEXT) if isinstance(value, str) else "–"


def _first(frame: pd.DataFrame, column: str, row: int) -> object:
    return frame[column][frame["row"] == row].iloc[0]


def _values(part: pd.DataFrame, varied: Sequence[str]) -> list[object]:
    """Return the varied options of a setting; None is a missing value in the frame."""
    values = [part[name].iloc[0] for name in varied]
    return [None if pd.api.types.is_scalar(value) and pd.isna(value) else value for value in values]


def _references(
    settings: Sequence[list[object]], varied: Sequence[str], reference: Mapping[str, object]
) -> list[int | None]:
    """Return the place of each setting's reference; None for a reference itself, or where the grid ended before it."""
    wanted = [[reference.get(name, value) for name, value in zip(varied, values, strict=True)] for values in settings]
    return [
        settings.index(one) if one in settings and one != values else None
        for one, values in zip(wanted, settings, strict=True)
    ]


def _name(part: pd.DataFrame, varied: Sequence[str]) -> str:
    named = zip(varied, _values(part, varied), strict=True)
    return ", ".join(f"{name}={plain(value, _LONGEST_NAME)}" for name, value in named)


def _counts(part: pd.DataFrame, *, is_reference: bool) -> str:
    """Return how many answers are equal to the reference, and how many are right."""
    told = ["reference"] if is_reference else []
    for column, words in (("same", "equal"), ("right", "right")):
        known = part[column].dropna().tolist() if column in part else []
        if known and not (is_reference and column == "same"):
            told.append(f"{sum(map(bool, known))} of {len(known)} {words}")
    return ", ".join(told)
