"""Whether the strongest cell of a word's map lies on the object that the word names, on scenes of the drawn world.

``python tests/benchmarks/pointing.py --scenes 500`` asks the embedded model what is at a place, what colour a shape is,
and for a caption. Of right answers it takes the words that one object decides, and prints for each method the share of
words whose strongest cell is inside of the object's box, and inside or next to it (diagonals included), with the 95 %
interval of 2,000 bootstrap samples over scenes; beside them chance, the share of such cells. Of occlusion it also
prints the words that some hidden square makes less likely by 0.1 nats. ``--curves`` adds the area under deletion and
insertion curves against random orders. ``--by-layer`` prints each layer's attention by itself.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import qwenvl_kit  # noqa: F401  # registers df.vl
from qwenvl_kit.compare.statistics import interval_of
from qwenvl_kit.demo import WORLD, draw
from qwenvl_kit.demo.scenes import CAPTION_PROMPTS, Asker, Scene, boxes, caption_parts, sample_scenes
from qwenvl_kit.explain import Explanation, Explanations
from qwenvl_kit.explain.maps import area_under

OPTIONS: dict[str, Any] = {
    "model_name": "demo",
    "dtype": "float32",
    "use_flash_attention_2": False,
    "max_caption_length": 96,
    "progress": False,
}
_LEAST_DROP = 0.1  # of a log-probability, in nats: the word's probability falls by a tenth
_SMALL_WORDS = {"a", "an"}  # which any object decides alike


@dataclass(frozen=True)
class Asked:
    """A question about a scene, and the characters of its answer that one object decides."""

    scene: int
    kind: str
    prompt: str
    answer: str
    spans: tuple[tuple[int, int, int], ...]  # begin, end, object


def ask(scenes: list[Scene], seed: int, kinds: tuple[str, ...]) -> list[Asked]:
    """Return up to three questions for each scene."""
    rng = np.random.default_rng(seed)
    asked: list[Asked] = []
    for at, scene in enumerate(scenes):
        asker = Asker(scene, rng, "en", world=WORLD, vary=False)
        for question in (asker.what(empty=False), asker.colour()):
            if question is not None and question.kind in kinds:
                spans = ((0, len(question.answer), question.about[0]),)
                asked.append(Asked(at, question.kind, question.prompt, question.answer, spans))
        if "caption" in kinds:
            asked.append(captioned(at, scene))
    return asked


def captioned(at: int, scene: Scene) -> Asked:
    """Return the caption of a scene; each sentence but the first is of one object."""
    head, *parts = caption_parts(scene, "en")
    spans, begin = [], len(head)
    for thing, part in enumerate(parts):
        spans.append((begin, begin + len(part), thing))
        begin += len(part)
    return Asked(at, "caption", CAPTION_PROMPTS["en"][0], "".join([head, *parts]), tuple(spans))


def cells_of(scene: Scene, thing: int, size: tuple[int, int], grid: tuple[int, int], *, near: int) -> NDArray[np.bool_]:
    """Return the cells that an object's box touches, and those up to `near` cells away, bool (rows, columns)."""
    (height, width), (rows, columns) = size, grid
    x0, y0, x1, y1 = boxes(scene, height=height, width=width)[thing]
    found = np.zeros(grid, np.bool_)
    top, bottom = int(y0 / height * rows) - near, int(np.ceil(y1 / height * rows)) + near
    left, right = int(x0 / width * columns) - near, int(np.ceil(x1 / width * columns)) + near
    found[max(0, top) : bottom, max(0, left) : right] = True
    return found


def points(found: Explanations, asked: list[Asked], scenes: list[Scene], layer: int | None = None) -> pd.DataFrame:
    """Return a row per word that one object decides, in right answers: whether its strongest cell is on the object."""
    rows = []
    for one in found:
        question = asked[int(str(one.row))]
        if one.answer != question.answer:
            continue
        for at, word in enumerate(one.maps.words):
            thing = next((who for begin, end, who in question.spans if begin <= word.begin < end), None)
            if thing is None or word.text.lower() in _SMALL_WORDS:
                continue
            grid = one.grid(at, layer=layer)
            peak = np.unravel_index(int(grid.argmax()), grid.shape)
            scene, size = scenes[question.scene], one.maps.sizes[0]
            inside, near = (cells_of(scene, thing, size, grid.shape, near=n) for n in (0, 1))  # type: ignore[arg-type]
            measured = {"inside": inside[peak], "near": near[peak], "peak": grid[peak]}
            chance = {"chance_inside": inside.mean(), "chance_near": near.mean()}
            rows.append({"scene": question.scene, "kind": question.kind, **measured, **chance, **areas(one, at)})
    return pd.DataFrame(rows)


def areas(one: Explanation, at: int) -> dict[str, float]:
    """Return by how much a word's areas under the curves differ from those of random orders; more is better."""
    if one.maps.words[at].curves is None:
        return {}
    curves = one.curves(at)
    area = {name: float(area_under(curves["share"].to_numpy(), curves[name].to_numpy())) for name in curves}
    return {
        "deletion": area["random_deletion"] - area["deletion"],
        "insertion": area["insertion"] - area["random_insertion"],
    }


def shown(frame: pd.DataFrame, name: str) -> str:
    """Return the mean of a column with its interval over scenes."""
    groups = [group[name].to_numpy(float) for _, group in frame.groupby("scene")]
    sums, counts = np.array([[one.sum(), len(one)] for one in groups]).T
    low, high = interval_of(lambda some: float(sums[some].sum() / counts[some].sum()), len(groups))
    return f"{frame[name].mean():.3f} [{low:.3f}, {high:.3f}]"


def report(name: str, frame: pd.DataFrame) -> None:
    """Print a line for each kind of question, and one for all."""
    for kind, some in [*frame.groupby("kind"), ("all", frame)]:
        more = [f"{area} {shown(some, area)}" for area in ("deletion", "insertion") if area in some]
        chance = f"{some['chance_inside'].mean():.3f} / {some['chance_near'].mean():.3f}"
        print(
            f"  {name:28} {kind:8} {len(some):5} words  inside {shown(some, 'inside')}  or next {shown(some, 'near')}  "
            f"chance {chance}  {'  '.join(more)}",
            flush=True,
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=90_000)
    parser.add_argument("--split", choices=["train", "heldout"], default="heldout")
    parser.add_argument("--kinds", nargs="+", default=["what", "colour", "caption"])
    parser.add_argument("--methods", nargs="+", default=["raw", "attention", "occlusion", "gradient"])
    parser.add_argument("--curves", action="store_true")
    parser.add_argument("--by-layer", action="store_true")
    given = parser.parse_args()
    scenes = sample_scenes(given.scenes, seed=given.seed, split=given.split, world=WORLD)
    asked = ask(scenes, given.seed, tuple(given.kinds))
    images = [draw(scene) for scene in scenes]
    df = pd.DataFrame({"image": [images[one.scene] for one in asked], "prompt": [one.prompt for one in asked]})
    print(f"{len(scenes)} scenes ({given.split}, seed {given.seed}), {len(asked)} answers")
    for name in given.methods:
        how: dict[str, Any] = {"correct": name != "raw", "method": "attention" if name == "raw" else name}
        by_layer = given.by_layer and how["method"] == "attention"
        found = df.vl.explain(
            "image", prompts="prompt", check=given.curves, layers="all" if by_layer else None, **how, **OPTIONS
        )
        right = np.mean([one.answer == asked[int(str(one.row))].answer for one in found])
        print(f"{name}: {right:.3f} of the answers are right")
        words = points(found, asked, scenes)
        report(name, words)
        if name == "occlusion":  # a word that no square changes, such as the only one that grammar allows, has no place
            report(f"{name}, of at least {_LEAST_DROP}", words[words["peak"] >= _LEAST_DROP])
        for layer in found[0].maps.layers if by_layer else ():
            report(f"{name}, layer {layer}", points(found, asked, scenes, layer))


if __name__ == "__main__":
    main()
