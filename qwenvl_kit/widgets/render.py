"""A state in, HTML out: the answers of a trial, side by side, for the live panel and for the saved notebook.

Every text is escaped; nothing here needs a kernel, a script or a network to be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from qwenvl_kit.compare.metrics import token_edits
from qwenvl_kit.errors import RowError
from qwenvl_kit.html import escape
from qwenvl_kit.images import Sizing
from qwenvl_kit.images.resize import resize
from qwenvl_kit.images.source_context import source_context
from qwenvl_kit.thumbnails import Thumbnailer, jpeg_uri
from qwenvl_kit.types import PatchGeometry
from qwenvl_kit.widgets.diff_html import diff_html

if TYPE_CHECKING:
    from qwenvl_kit.compare import Setting
    from qwenvl_kit.types import Result
    from qwenvl_kit.widgets.state import Photo, State, Trial

_LONGEST = 4_000
_SHOWN_SIDE = 168
_MAX_SAVED = 600_000

STYLE = """<style>
.qwenvl { font-family: var(--jp-ui-font-family, system-ui, "Noto Sans CJK SC", sans-serif); font-size: 13px;
  line-height: 1.45; color: var(--jp-ui-font-color1, inherit); }
.qwenvl table { border-collapse: collapse; width: 100%; margin: 0; table-layout: fixed; }
.qwenvl th, .qwenvl td { text-align: left; vertical-align: top; padding: 6px 8px; overflow-wrap: anywhere;
  border-top: 1px solid rgba(128, 128, 128, .35); white-space: normal; background: transparent; }
.qwenvl caption { text-align: left; font-weight: 600; padding: 4px 0; color: inherit; }
.qwenvl img { display: block; max-width: 100%; border: 1px solid rgba(128, 128, 128, .35); }
.qwenvl .setting { width: 26%; font-weight: 600; overflow-wrap: normal; }
.qwenvl .measures { width: 22%; opacity: .8; font-size: 12px; }
.qwenvl del { text-decoration: line-through; opacity: .8; background: rgba(214, 90, 60, .18); }
.qwenvl ins { text-decoration: underline; font-weight: 600; background: rgba(60, 130, 214, .18); }
.qwenvl .error { border-left: 4px solid #c62828; padding-left: 6px; }
.qwenvl-figure { display: flex; gap: 12px; align-items: flex-start; flex-wrap: wrap; margin: 0 0 10px; }
.qwenvl-figure > figure { margin: 0; width: 170px; flex: none; } .qwenvl-figure figcaption { font-size: 12px; }
.qwenvl-figure > div { flex: 1 1 420px; min-width: 0; }
</style>"""

PANEL_STYLE = """<style>
.qwenvl-panel { border: 1px solid rgba(128, 128, 128, .4); border-radius: 8px; padding: 12px; max-width: 1100px; }
.qwenvl-panel .jupyter-widgets:not(.jupyter-button) { color: var(--jp-ui-font-color1, inherit); }
.qwenvl-panel textarea, .qwenvl-panel input[type=text], .qwenvl-panel input[type=number], .qwenvl-panel select {
  color: var(--jp-ui-font-color0, inherit); background: var(--jp-layout-color1, transparent); }
.qwenvl-panel :is(button, input, select, textarea, [tabindex]):focus-visible {
  outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: 1px; }
.qwenvl-gone { display: none; }
.qwenvl-gone.jupyter-widgets-disconnected { display: block; }
.jp-OutputArea:has(.qwenvl-panel) .qwenvl-saved { display: none; }
</style>"""


def trial_html(trial: Trial, at: int, *, before: Trial | None = None, grids: bool = False) -> str:
    """One picture and what was said of it under each setting and repeat.

    Parameters
    ----------
    trial : Trial
        The run.
    at : int
        Position of the picture in it.
    before : Trial, optional
        An earlier run, whose answer to the same picture is shown for comparison where nothing varies.
    grids : bool
        Draw each setting's own picture with its visual tokens over it.
    """
    photo = trial.photos[at]
    rows = "".join(_row(trial, setting, repeat, at, before, grids) for setting, repeat in _places(trial))
    head = "<thead><tr><th class='setting'>setting</th><th>answer</th><th class='measures'>cost</th></tr></thead>"
    name, picture = escape(photo.name), picture_html(photo, thumbnailer(trial), alt=f"picture {photo.name}")
    return (
        f"<div class='qwenvl qwenvl-figure'><figure>{picture}"
        f"<figcaption>{name}</figcaption></figure><div><table>{head}<tbody>{rows}</tbody></table></div></div>"
    )


def saved_html(state: State, *, grids: bool = False) -> str:
    """The last run as a page part that a reader without a kernel sees; bounded in bytes, and saying so."""
    trial = state.trial
    if trial is None:
        return ""
    parts, size, left_out = list[str](), 0, 0
    for at in range(len(trial.photos)):
        part = trial_html(trial, at, before=state.before, grids=grids)
        size += len(part.encode())
        if size > _MAX_SAVED:
            left_out = len(trial.photos) - at
            break
        parts.append(part)
    more = f"<p>{left_out} more pictures are not shown, to keep the notebook small.</p>" if left_out else ""
    prompt = f"<p><b>Prompt:</b> {escape(_clip(trial.prompt))}</p>"
    return f"{STYLE}<div class='qwenvl qwenvl-saved'>{prompt}{''.join(parts)}{more}{notes_html(trial)}</div>"


def setting_label(setting: Setting) -> str:
    """What tells a setting from the others, for people."""
    parts = (f"{name} {'original' if value is None else value}" for name, value in setting.values)
    return ", ".join(parts) or "this run"


def notes_html(trial: Trial) -> str:
    """What did not take effect."""
    return "".join(f"<p>Note: {escape(note)}</p>" for note in trial.notes)


def thumbnailer(trial: Trial) -> Thumbnailer:
    """Return what reads images under the limits of a trial."""
    return Thumbnailer.of(trial.settings[0].config)


def draw_thumbnail(photo: Photo, maker: Thumbnailer) -> str:
    """Make a photo's thumbnail, or the sentence in its place, once."""
    if "thumbnail" not in photo.memo:
        photo.memo["thumbnail"] = maker.thumbnail(photo.cell, keep=lambda source: photo.memo.update({"source": source}))
    found: str = photo.memo["thumbnail"]
    return found


def picture_html(photo: Photo, maker: Thumbnailer, *, alt: str) -> str:
    """A thumbnail, or the reason why there is none."""
    if "late" in photo.memo and "thumbnail" not in photo.memo:  # its thread may still be at work
        found: str = photo.memo["late"]
    else:
        found = draw_thumbnail(photo, maker)
    if not found.startswith("data:"):
        return f"<p class='error'>{escape(found)}</p>"
    return f"<img src='{found}' alt='{escape(alt)}'>"


def tokens_picture(
    photo: Photo, size: tuple[int, int], factor: int, maker: Thumbnailer, *, lines: bool = True
) -> str | None:
    """A data URI of the picture as the model sees it, enlarged, each visual token framed.

    Parameters
    ----------
    photo : Photo
        Its first picture is drawn, from what its thumbnail was made of: no host is asked again.
    size : tuple of int
        ``(height, width)`` in pixels that the model saw.
    factor : int
        Side of a visual token in these pixels.
    maker : Thumbnailer
        Reads what is in memory or in a file.
    lines : bool
        Frame the tokens.
    """
    key = (size, factor, lines)
    if key not in photo.memo:
        photo.memo[key] = _tokens_picture(photo, size, factor, maker, lines)
    found: str | None = photo.memo[key]
    return found


def _tokens_picture(photo: Photo, size: tuple[int, int], factor: int, maker: Thumbnailer, lines: bool) -> str | None:
    try:
        source = photo.memo.get("source") or maker.source(photo.cell)
        if source is None or source.kind in ("url", "remote"):
            return None
        fixed = PatchGeometry(patch=1, merge=1, min_pixels=1, max_pixels=max(size[0] * size[1], 1))
        pixels = maker.pixels(source, Sizing(fixed, *size))
        with source_context("resize", source.label, "cannot be shown"):
            scale = max(1, round(2 * _SHOWN_SIDE / max(size)))
            shape = (size[1] * scale, size[0] * scale)
            image = Image.fromarray(resize(pixels, size)).resize(shape, Image.Resampling.NEAREST)
            if lines:
                _frame_tokens(image, factor * scale)
            return jpeg_uri(image, 85)
    except RowError:
        return None


def _frame_tokens(image: Image.Image, step: int) -> None:
    """Draw each line dark beside light, so that it is seen on any picture."""
    draw = ImageDraw.Draw(image)
    for shift, colour in ((0, (255, 255, 255)), (1, (0, 0, 0))):
        for x in range(step, image.width, step):
            draw.line([(x + shift, 0), (x + shift, image.height)], fill=colour)
        for y in range(step, image.height, step):
            draw.line([(0, y + shift), (image.width, y + shift)], fill=colour)


def _places(trial: Trial) -> list[tuple[int, int]]:
    return [(setting, repeat) for setting in range(len(trial.settings)) for repeat in range(trial.repeats)]


def _row(trial: Trial, setting: int, repeat: int, at: int, before: Trial | None, grids: bool) -> str:
    result = trial.answers.get((setting, repeat, at))
    block = trial.grid_cells.get((setting, repeat))
    head = escape(_head(trial, setting, repeat, None if block is None else block.seed))
    if result is None or block is None or result.status == "cancelled":
        return f"<tr><td class='setting'>{head}</td><td>…</td><td class='measures'></td></tr>"
    grid = _grid_html(trial.photos[at], result, block.factor, thumbnailer(trial)) if grids else ""
    return (
        f"<tr><td class='setting'>{head}{grid}</td><td>{_answer(trial, setting, repeat, at, result, before)}</td>"
        f"<td class='measures'>{_measures(result, block.factor)}</td></tr>"
    )


def _head(trial: Trial, setting: int, repeat: int, seed: int | None) -> str:
    label = ", ".join(
        f"{name} {'original' if value is None else value}" for name, value in trial.settings[setting].values
    )
    label = label or "this run"
    if trial.repeats > 1:
        label += f", repeat {repeat + 1}"
    return f"{label}, seed {seed}" if seed is not None else label


def _answer(trial: Trial, setting: int, repeat: int, at: int, result: Result, before: Trial | None) -> str:
    if result.status == "error":
        return f"<div class='error'>Error ({escape(result.stage or '')}): {escape(result.error or '')}</div>"
    if result.text is None:
        return "no picture here, so no answer"
    said, (wanted, name) = result.text, _reference(trial, setting, repeat, at, before)
    if wanted is None:
        return escape(_clip(said))
    if said == wanted:
        return f"{escape(_clip(said))}<br><small>✓ equal to {escape(name)}</small>"
    n_edits = token_edits(said, wanted)
    plural = "s" if n_edits != 1 else ""
    return (
        f"{diff_html(_clip(said), _clip(wanted))}<br><small>≠ {n_edits} token{plural} differ{'' if plural else 's'} from "
        f"{escape(name)}</small>"
    )


def _reference(trial: Trial, setting: int, repeat: int, at: int, before: Trial | None) -> tuple[str | None, str]:
    """The answer to compare with, and what to call it; None where this is itself the reference."""
    if len(trial.settings) == 1 and trial.repeats == 1:
        return _earlier(trial, at, before), "the run before"
    place = (trial.settings[setting].reference, repeat if len(trial.settings) > 1 else 0, at)
    if place == (setting, repeat, at):
        return None, ""
    found = trial.answers.get(place)
    return (found.text if found else None), _head(trial, place[0], place[1], None)


def _earlier(trial: Trial, at: int, before: Trial | None) -> str | None:
    if before is None or before.prompt != trial.prompt:
        return None
    photo = trial.photos[at]
    position = next((n for n, other in enumerate(before.photos) if other is photo), None)
    found = None if position is None else before.answers.get((0, 0, position))
    return found.text if found else None


def _measures(result: Result, factor: int) -> str:
    parts = []
    if result.height and result.width:
        tokens = result.height * result.width // factor**2
        parts.append(f"{result.width}×{result.height} px, {tokens} visual tokens")
    if result.new_tokens is not None:
        parts.append(f"{result.new_tokens} new tokens{' (cut)' if result.finish_reason == 'length' else ''}")
    if result.status == "ok":
        parts.append("from an equal row" if result.cached else f"{result.seconds:.2f} s")
    if result.flag:
        parts.append(f"⚠ {escape(result.flag)}")
    return "<br>".join(parts)


def _grid_html(photo: Photo, result: Result, factor: int, maker: Thumbnailer) -> str:
    if not result.height or not result.width:
        return ""
    found = tokens_picture(photo, (result.height, result.width), factor, maker)
    if found is None:
        return ""
    rows, columns = result.height // factor, result.width // factor
    alt = escape(f"{photo.name} as the model sees it, {rows} × {columns} visual tokens")
    return f"<img src='{found}' alt='{alt}' style='max-width: 150px; max-height: 170px; margin-top: 4px'>"


def _clip(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"
