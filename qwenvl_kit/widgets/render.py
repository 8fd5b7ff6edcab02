"""Write the answers of a trial as HTML, side by side, for the live panel and the saved notebook.

The HTML needs no kernel, script or network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qwenvl_kit.compare.diff_html import diff_html
from qwenvl_kit.compare.metrics import token_edits
from qwenvl_kit.html import render
from qwenvl_kit.thumbnails import Thumbnailer
from qwenvl_kit.widgets.images import model_input_uri, thumbnail_html
from qwenvl_kit.widgets.probabilities import PROBABILITY_STYLE, labels_html, tokens_html

if TYPE_CHECKING:
    from markupsafe import Markup

    from qwenvl_kit.compare import Setting
    from qwenvl_kit.types import Result
    from qwenvl_kit.widgets.state import Place, State, Trial

_LONGEST = 4_000
_MAX_SAVED = 600_000

STYLE = (
    """<style>
.qwenvl { font-family: var(--jp-ui-font-family, system-ui, "Noto Sans CJK SC", sans-serif); font-size: 13px;
  line-height: 1.45; color: var(--jp-ui-font-color1, inherit); }
.qwenvl table { border-collapse: collapse; width: 100%; margin: 0; table-layout: fixed; }
.qwenvl th, .qwenvl td { text-align: left; vertical-align: top; padding: 6px 8px; overflow-wrap: anywhere;
  border-top: 1px solid rgba(128, 128, 128, .35); white-space: normal; background: transparent; }
.qwenvl caption { text-align: left; font-weight: 600; padding: 4px 0; color: inherit; }
.qwenvl img { display: block; max-width: 100%; border: 1px solid rgba(128, 128, 128, .35); }
.qwenvl .grid { max-width: 150px; max-height: 170px; margin-top: 4px; }
.qwenvl .setting { width: 26%; font-weight: 600; overflow-wrap: normal; }
.qwenvl .measures { width: 22%; opacity: .8; font-size: 12px; }
.qwenvl del { text-decoration: line-through; opacity: .8; background: rgba(214, 90, 60, .18); }
.qwenvl ins { text-decoration: underline; font-weight: 600; background: rgba(60, 130, 214, .18); }
.qwenvl .error { border-left: 4px solid #c62828; padding-left: 6px; }
.qwenvl-figure { display: flex; gap: 12px; align-items: flex-start; flex-wrap: wrap; margin: 0 0 10px; }
.qwenvl-figure > figure { margin: 0; width: 170px; flex: none; } .qwenvl-figure figcaption { font-size: 12px; }
.qwenvl-figure > div { flex: 1 1 420px; min-width: 0; }
</style>"""
    + PROBABILITY_STYLE
)

PANEL_STYLE = """<style>
.qwenvl-panel { border: 1px solid rgba(128, 128, 128, .4); border-radius: 8px; padding: 12px; max-width: 1100px; }
.qwenvl-panel .jupyter-widgets:not(.jupyter-button) { color: var(--jp-ui-font-color1, inherit); }
.qwenvl-panel textarea, .qwenvl-panel input[type=text], .qwenvl-panel input[type=number], .qwenvl-panel select {
  color: var(--jp-ui-font-color0, inherit); background-color: var(--jp-layout-color1, transparent); }
.qwenvl-panel :is(button, input, select, textarea, [tabindex]):focus-visible {
  outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: 1px; }
.qwenvl-gone { display: none; }
.qwenvl-gone.jupyter-widgets-disconnected { display: block; }
.jp-OutputArea:has(.qwenvl-panel) .qwenvl-saved { display: none; }
</style>"""

_TRIAL = """<div class='qwenvl qwenvl-figure'><figure>{{ image }}<figcaption>{{ name }}</figcaption></figure>
<div><table><thead><tr><th class='setting' style='text-align: left'>setting</th><th style='text-align: left'>answer</th>
<th class='measures' style='text-align: left'>cost</th></tr></thead>
<tbody>
{%- for row in rows %}<tr><td class='setting' style='text-align: left'>{{ row.head }}
{%- if row.grid %}<img class='grid' src='{{ row.grid }}' alt='{{ row.alt }}'>{% endif %}</td>
<td style='text-align: left'>
{%- if row.error %}<div class='error'>{{ row.error }}</div>{% else %}{{ row.answer }}{{ row.probabilities }}{% endif %}
{%- if row.verdict %}<br><small>{{ row.verdict }}</small>{% endif %}</td><td class='measures' style='text-align: left'>
{%- for measure in row.measures %}{{ measure }}{% if not loop.last %}<br>{% endif %}{% endfor %}</td></tr>{% endfor %}
</tbody></table></div></div>"""
_SAVED = """<div class='qwenvl qwenvl-saved'>{% if prompt %}<p><b>Prompt:</b> {{ prompt }}</p>{% endif %}
{%- for part in parts %}{{ part }}{% endfor %}
{%- if n_left_out %}<p>{{ n_left_out }} more images are not shown, to keep the notebook small.</p>{% endif %}
{{ notes }}</div>"""
_NOTES = "{% for note in notes %}<p>Note: {{ note }}</p>{% endfor %}"


def trial_html(trial: Trial, at: int, *, before: Trial | None = None, grids: bool = False) -> Markup:
    """Return one image and its answers under each setting and repeat.

    Parameters
    ----------
    trial : Trial
        The run.
    at : int
        Position of the image in it.
    before : Trial, optional
        An earlier run, whose answers are the reference where nothing varies.
    grids : bool
        Draw the model's input of each setting with its visual tokens.
    """
    image = trial.images[at]
    places = [(setting, repeat, at) for setting in range(len(trial.settings)) for repeat in range(trial.repeats)]
    return render(
        _TRIAL,
        image=thumbnail_html(image, thumbnailer_of(trial), alt=f"image {image.name}"),
        name=image.name,
        rows=[_row(trial, place, before, grids) for place in places],
    )


def saved_html(state: State, *, grids: bool = False) -> str:
    """Return the last run as HTML without a kernel; images beyond the limit of bytes are counted."""
    trial = state.trial
    if trial is None:
        return ""
    parts: list[Markup] = []
    size = 0
    for at in range(len(trial.images)):
        part = trial_html(trial, at, before=state.before, grids=grids)
        size += len(part.encode())
        if size > _MAX_SAVED:
            break
        parts.append(part)
    n_left_out = len(trial.images) - len(parts)
    notes = notes_html(trial)
    body = render(_SAVED, prompt=_clip(trial.prompt), parts=parts, n_left_out=n_left_out, notes=notes)
    return f"{STYLE}{body}"


def setting_label(setting: Setting) -> str:
    """Return the varied options of a setting for display."""
    parts = (f"{name} {'original' if value is None else value}" for name, value in setting.values)
    return ", ".join(parts) or "this run"


def notes_html(trial: Trial) -> Markup:
    """Return the notes of ignored options."""
    return render(_NOTES, notes=trial.notes)


def thumbnailer_of(trial: Trial) -> Thumbnailer:
    """Return a thumbnailer under the limits of a trial."""
    return Thumbnailer.of(trial.settings[0].config)


@dataclass(frozen=True, slots=True)
class _Row:
    head: str
    answer: str = ""
    probabilities: str = ""
    error: str = ""
    verdict: str = ""
    measures: Sequence[str] = ()
    grid: str | None = None
    alt: str = ""


def _row(trial: Trial, place: Place, before: Trial | None, grids: bool) -> _Row:
    setting, repeat, at = place
    result, cell = trial.answers.get(place), trial.grid_cells.get((setting, repeat))
    row = _Row(_head(trial, setting, repeat, None if cell is None else cell.seed))
    if result is None or cell is None or result.status == "cancelled":
        return replace(row, answer="…")
    row = _with_answer(replace(row, measures=_measures(result, cell.factor)), trial, place, before)
    return _with_grid(row, trial, at, result, cell.factor) if grids else row


def _head(trial: Trial, setting: int, repeat: int, seed: int | None) -> str:
    label = setting_label(trial.settings[setting])
    if trial.repeats > 1:
        label += f", repeat {repeat + 1}"
    return f"{label}, seed {seed}" if seed is not None else label


def _with_answer(row: _Row, trial: Trial, place: Place, before: Trial | None) -> _Row:
    result = trial.answers[place]
    if result.status == "error":
        return replace(row, error=f"Error ({result.stage}): {result.error}")
    if result.text is None:
        return replace(row, answer="no image, no answer")
    row = _with_probabilities(row, trial, result)
    answer, (reference, name) = result.text, _reference(trial, place, before)
    if reference is None:
        has_tokens = bool(result.token_logprobs)  # which are the answer, unless it is long
        return row if has_tokens and len(answer) <= _LONGEST else replace(row, answer=_clip(answer))
    if answer == reference:
        return replace(row, answer=_clip(answer), verdict=f"✓ equal to {name}")
    n_edits = token_edits(answer, reference)
    verdict = f"≠ {n_edits} {'token differs' if n_edits == 1 else 'tokens differ'} from {name}"
    return replace(row, answer=diff_html(_clip(answer), _clip(reference)), verdict=verdict)


def _with_probabilities(row: _Row, trial: Trial, result: Result) -> _Row:
    if result.label_logprobs is not None:
        return replace(row, probabilities=labels_html(trial.labels, result.label_logprobs))
    return replace(row, probabilities=tokens_html(result) or "")


def _reference(trial: Trial, place: Place, before: Trial | None) -> tuple[str | None, str]:
    """Return the reference answer and its name; None where `place` is itself the reference."""
    setting, repeat, at = place
    if len(trial.settings) == 1 and trial.repeats == 1:
        return _earlier(trial, at, before), "the run before"
    reference = (trial.settings[setting].reference, repeat if len(trial.settings) > 1 else 0, at)
    if reference == place:
        return None, ""
    found = trial.answers.get(reference)
    return (found.text if found else None), _head(trial, *reference[:2], None)


def _earlier(trial: Trial, at: int, before: Trial | None) -> str | None:
    if before is None or before.prompt != trial.prompt:
        return None
    position = next((n for n, image in enumerate(before.images) if image is trial.images[at]), None)
    found = None if position is None else before.answers.get((0, 0, position))
    return found.text if found else None


def _measures(result: Result, factor: int) -> list[str]:
    parts = []
    if result.height and result.width:
        tokens = result.height * result.width // factor**2
        parts.append(f"{result.width}×{result.height} px, {tokens} visual tokens")
    if result.new_tokens is not None:
        parts.append(f"{result.new_tokens} new tokens{' (cut)' if result.finish_reason == 'length' else ''}")
    if result.status == "ok":
        parts.append("from an equal row" if result.cached else f"{result.seconds:.2f} s")
    if result.flag:
        parts.append(f"⚠ {result.flag}")
    return parts


def _with_grid(row: _Row, trial: Trial, at: int, result: Result, factor: int) -> _Row:
    if not result.height or not result.width:
        return row
    image, size = trial.images[at], (result.height, result.width)
    shape = f"{result.height // factor} × {result.width // factor} visual tokens"
    uri = model_input_uri(image, size, factor, thumbnailer_of(trial))
    return replace(row, grid=uri, alt=f"{image.name} as the model receives it, {shape}")


def _clip(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"
