"""Show answers of the embedded model beside the truth, as a table and as a self-contained HTML page."""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from qwenvl_kit import accessor  # noqa: F401  # registers df.vl
from qwenvl_kit._version import __version__
from qwenvl_kit.demo import WORLD
from qwenvl_kit.demo.scenes import CAPTION_PROMPTS, caption, draw, questions, sample_scenes
from qwenvl_kit.html import render

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwenvl_kit.demo.scenes import Language

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1.25rem; }
figure { margin: 0; padding: 1rem; border: 1px solid color-mix(in srgb, currentColor 20%, transparent);
         border-radius: .75rem; }
img { display: block; height: 11rem; max-width: 100%; object-fit: contain; margin: 0 auto .75rem;
      border: 1px solid color-mix(in srgb, currentColor 15%, transparent); }
dt { font-size: .85em; opacity: .7; margin-top: .5rem; } dd { margin: 0; }
.right::before { content: "✓ right: "; } .wrong::before { content: "✗ wrong: "; font-weight: bold; }
.truth { opacity: .75; }
"""
_PAGE = (
    """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{{ title }}</title>"""
    f"<style>{_STYLE}</style>"
    """</head>
<body>
<h1>What the embedded Qwen2.5-VL sees</h1>
<p>Drawn scenes outside its training data, captioned in float32. The model covers this drawn world only.</p>
<main>
{% for exhibit, uri in figures -%}
<figure><img src="{{ uri }}" alt="{{ exhibit.caption.truth }}"><dl>
{%- for answer in (exhibit.caption, exhibit.answer) %}<dt>{{ answer.prompt }}</dt>
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


@dataclass(frozen=True, slots=True, eq=False)
class Exhibit:
    """An image, its caption and the answer to one question."""

    pixels: NDArray[np.uint8]
    caption: Answer
    answer: Answer


def exhibits(n: int, *, seed: int = 0) -> list[Exhibit]:
    """Caption held-out scenes with the embedded model in float32, and ask each one question.

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
    answers = frame.vl.ask(
        "image",
        {"caption": "describe", "answer": "question"},
        model_name="demo",
        dtype="float32",
        use_flash_attention_2=False,
        batch_size=8,
    )
    return [
        Exhibit(
            frame["image"].iloc[row],
            Answer(
                frame["describe"].iloc[row], _text(answers["caption"].iloc[row]), caption(scenes[row], languages[row])
            ),
            Answer(asked[row].prompt, _text(answers["answer"].iloc[row]), asked[row].answer),
        )
        for row in range(n)
    ]


def table(shown: Sequence[Exhibit]) -> str:
    """Return lines for a terminal: each answer and its truth, the score last."""
    lines: list[str] = []
    for number, exhibit in enumerate(shown, start=1):
        for answer in (exhibit.caption, exhibit.answer):
            mark = "✓" if answer.is_right else "✗"
            lines.append(f"{number:>3} {mark} {_padded(answer.prompt, 34)} answer: {answer.text}")
            lines.append(f"{'':>5} {_padded('', 34)} truth:  {answer.truth}")
    captions = sum(exhibit.caption.is_right for exhibit in shown)
    answers = sum(exhibit.answer.is_right for exhibit in shown)
    lines.append("")
    lines.append(f"{captions} of {len(shown)} captions and {answers} of {len(shown)} answers are the whole truth.")
    lines.append("Measured on many scenes: python -m qwenvl_kit.demo.training.evaluate --scenes 500")
    return "\n".join(lines)


def write(shown: Sequence[Exhibit], folder: Path) -> Path:
    """Write the gallery, with embedded images, to ``index.html`` in `folder` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    title = f"qwenvl_kit {__version__}: the embedded model"
    figures = [(exhibit, _png_uri(exhibit.pixels)) for exhibit in shown]
    page.write_text(render(_PAGE, title=title, figures=figures), encoding="utf-8")
    return page


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
