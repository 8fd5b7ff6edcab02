"""Show answers and boxes of the embedded model beside the truth, as a table and as a self-contained HTML page."""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from qwenvl_kit import accessor  # noqa: F401  # registers df.vl
from qwenvl_kit._version import __version__
from qwenvl_kit.boxes import box_metrics, drawing
from qwenvl_kit.boxes.views import BoxViews
from qwenvl_kit.demo import WORLD
from qwenvl_kit.demo.scenes import CAPTION_PROMPTS, boxes, caption, draw, questions, sample_names, sample_scenes
from qwenvl_kit.html import render
from qwenvl_kit.thumbnails import Thumbnail

if TYPE_CHECKING:
    from markupsafe import Markup
    from numpy.typing import NDArray

    from qwenvl_kit.demo.scenes import Language, Named, Scene

_OPTIONS: dict[str, Any] = {"model_name": "demo", "dtype": "float32", "use_flash_attention_2": False, "batch_size": 8}
_LEAST_IOU = 0.5
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1.25rem; }
figure { margin: 0; padding: 1rem; border: 1px solid color-mix(in srgb, currentColor 20%, transparent);
         border-radius: .75rem; }
.frame { margin: 0 auto .75rem; max-width: 100%; }
.frame .qwenvl-image { width: 100%; }
.frame img { display: block; width: 100%; outline: 1px solid color-mix(in srgb, currentColor 15%, transparent); }
dt { font-size: .85em; opacity: .7; margin-top: .5rem; } dd { margin: 0; }
.right::before { content: "✓ right: "; } .wrong::before { content: "✗ wrong: "; font-weight: bold; }
.truth { opacity: .75; }
"""
_PAGE = (
    """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{{ title }}</title>"""
    f"<style>{_STYLE}{drawing.STYLE}</style>"
    """</head>
<body>
<h1>What the embedded Qwen2.5-VL sees</h1>
<p>Drawn scenes outside its training data, captioned in float32, with the boxes of a name in each.
The model covers this drawn world only.</p>
<main>
{% for exhibit, width, view in figures -%}
<figure><div class="frame" style="width: {{ width }}rem">{{ view }}</div><dl>
{%- for answer in exhibit.answers %}<dt>{{ answer.prompt }}</dt>
{%- if answer.is_right %}<dd class="right">{{ answer.text }}</dd>
{%- else %}<dd class="wrong">{{ answer.text }}</dd><dd class="truth">truth: {{ answer.truth }}</dd>{% endif %}
{%- endfor %}</dl></figure>
{% endfor %}</main>
</body>
</html>
"""
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt, the answer of the model, and the true answer."""

    prompt: str
    text: str
    truth: str

    @property
    def is_right(self) -> bool:
        """True if the whole answer is right."""
        return self.text == self.truth


@dataclass(frozen=True, slots=True)
class Found:
    """What was to be found, the found places in words, and the true ones; right where each pair has an IoU of 0.5."""

    prompt: str
    text: str
    truth: str
    is_right: bool


@dataclass(frozen=True, slots=True, eq=False)
class Exhibit:
    """An image, its caption, the answer to one question and the boxes of one name."""

    pixels: NDArray[np.uint8]
    caption: Answer
    answer: Answer
    found: Found
    boxes: pd.DataFrame

    @property
    def answers(self) -> tuple[Answer | Found, ...]:
        """All of them, in the order in which they are shown."""
        return self.caption, self.answer, self.found


def exhibits(n: int, *, seed: int = 0) -> list[Exhibit]:
    """Caption held-out scenes with the embedded model in float32, ask each one question, and find objects of a name.

    Parameters
    ----------
    n : int
        Number of scenes; Chinese and English take turns.
    seed : int
        Seed of the scenes and questions.
    """
    scenes = sample_scenes(n, seed=seed, world=WORLD)
    languages: list[Language] = ["zh" if row % 2 == 0 else "en" for row in range(n)]
    rng = np.random.default_rng(seed)
    asked = [
        (found := questions(scene, rng, language, world=WORLD))[int(rng.integers(len(found)))]
        for scene, language in zip(scenes, languages, strict=True)
    ]
    frame = pd.DataFrame(
        {
            "image": [draw(scene) for scene in scenes],
            "describe": [CAPTION_PROMPTS[language][0] for language in languages],
            "question": [question.prompt for question in asked],
        }
    )
    names = [sample_names(scene, rng, absent=0.0, world=WORLD)[0] for scene in scenes]
    frame["name"] = [name.words(language) for name, language in zip(names, languages, strict=True)]
    answers = frame.vl.ask("image", {"caption": "describe", "answer": "question"}, **_OPTIONS)
    found = frame.vl.detect("image", "name", **_OPTIONS)
    truth = _true_boxes(scenes, names, frame)
    return [
        Exhibit(
            frame["image"].iloc[row],
            Answer(
                frame["describe"].iloc[row], _text(answers["caption"].iloc[row]), caption(scenes[row], languages[row])
            ),
            Answer(asked[row].prompt, _text(answers["answer"].iloc[row]), asked[row].answer),
            _compared(frame["name"].iloc[row], found[found["row"] == row], truth[truth["row"] == row]),
            found[found["row"] == row],
        )
        for row in range(n)
    ]


def _true_boxes(scenes: Sequence[Scene], names: Sequence[Named], frame: pd.DataFrame) -> pd.DataFrame:
    """Return the boxes of the objects that the names fit."""
    found = []
    for row, (scene, name) in enumerate(zip(scenes, names, strict=True)):
        height, width = frame["image"].iloc[row].shape[:2]
        places = boxes(scene, height=height, width=width)
        label = frame["name"].iloc[row]
        found += [(row, label, *box) for thing, box in zip(scene.things, places, strict=True) if name.fits(thing)]
    return pd.DataFrame(found, columns=["row", "label", "x0", "y0", "x1", "y1"])


def _compared(name: str, found: pd.DataFrame, truth: pd.DataFrame) -> Found:
    judged = box_metrics(found, truth, iou=(_LEAST_IOU,))
    overlap = judged.overall["mean_iou"].iloc[0]
    is_right = bool(judged.overall["f1"].iloc[0] == 1)
    return Found(f"detect {name}", f"{_places(found)}, IoU {overlap:.2f}", _places(truth), is_right)


def _places(objects: pd.DataFrame) -> str:
    """Return the corners of boxes, in pixels."""
    corners = objects[["x0", "y0", "x1", "y1"]].round().astype(int)
    shown = [f"{x0},{y0} to {x1},{y1}" for x0, y0, x1, y1 in corners.itertuples(index=False)]
    return "; ".join(shown) or "none"


def table(shown: Sequence[Exhibit]) -> str:
    """Return lines for a terminal: each answer and its truth, the score last."""
    lines: list[str] = []
    for number, exhibit in enumerate(shown, start=1):
        for answer in exhibit.answers:
            mark = "✓" if answer.is_right else "✗"
            lines.append(f"{number:>3} {mark} {_padded(answer.prompt, 34)} answer: {answer.text}")
            lines.append(f"{'':>5} {_padded('', 34)} truth:  {answer.truth}")
    captions = sum(exhibit.caption.is_right for exhibit in shown)
    answers = sum(exhibit.answer.is_right for exhibit in shown)
    found = sum(exhibit.found.is_right for exhibit in shown)
    lines.append("")
    lines.append(f"{captions} of {len(shown)} captions and {answers} of {len(shown)} answers are the whole truth.")
    lines.append(f"Boxes of {found} of {len(shown)} names are right: each has an IoU of {_LEAST_IOU} with a true one.")
    lines.append("Measured on many scenes: python -m qwenvl_kit.demo.training.evaluate --scenes 500")
    return "\n".join(lines)


def write(shown: Sequence[Exhibit], folder: Path) -> Path:
    """Write the gallery, with embedded images, to ``index.html`` in `folder` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    title = f"qwenvl_kit {__version__}: the embedded model"
    figures = [(exhibit, _width(exhibit.pixels), _drawn(exhibit)) for exhibit in shown]
    page.write_text(render(_PAGE, title=title, figures=figures), encoding="utf-8")
    return page


def _drawn(exhibit: Exhibit) -> Markup:
    """Return the image with the boxes that were found in it."""
    row = pd.Index([exhibit.boxes["row"].iloc[0] if len(exhibit.boxes) else 0])
    thumbnail = Thumbnail(_png_uri(exhibit.pixels), exhibit.pixels.shape[:2])
    return BoxViews.of(exhibit.boxes, row, 1).draw(row[0], thumbnail, exhibit.caption.truth)


def _width(pixels: NDArray[np.uint8]) -> float:
    """Return the width of an image that is shown 11 rem high."""
    height, width = pixels.shape[:2]
    return float(round(11 * width / height, 2))


def _png_uri(pixels: NDArray[np.uint8]) -> str:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _padded(text: str, width: int) -> str:
    """Pad to terminal columns; a Chinese character takes two."""
    taken = sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
    return text + " " * max(0, width - taken)
