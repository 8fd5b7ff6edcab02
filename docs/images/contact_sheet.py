"""Draw docs/images/contact_sheet.png: scenes with the captions of the embedded model, right or wrong.

``python docs/images/contact_sheet.py`` needs the package and nothing else; a minute on two cores.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

import qwenvl_kit  # noqa: F401 - registers df.vl
from qwenvl_kit.demo import WORLD, caption, draw, sample_scenes

TILE, TEXT, GAP, COLUMNS = 240, 108, 16, 4


def main() -> None:
    """Caption eight held-out scenes and write the sheet."""
    scenes = sample_scenes(8, seed=11, world=WORLD)
    df = pd.DataFrame({"image": [draw(scene) for scene in scenes]})
    captions = df.vl.caption("image", prompt="Describe this image in detail.", model_name="demo", dtype="float32")
    rows = -(-len(scenes) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (TILE + GAP) + GAP, rows * (TILE + TEXT + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for index, (scene, pixels, text) in enumerate(zip(scenes, df["image"], captions, strict=True)):
        left, top = GAP + index % COLUMNS * (TILE + GAP), GAP + index // COLUMNS * (TILE + TEXT + GAP)
        tile = Image.fromarray(pixels)
        tile = tile.resize([round(side * TILE / max(tile.size)) for side in tile.size], Image.Resampling.LANCZOS)
        sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        right = text == caption(scene, "en")
        lines = textwrap.fill(("" if right else "[wrong] ") + text, 33)
        pen.multiline_text((left, top + TILE + 6), lines, fill="black" if right else "firebrick", font=font, spacing=3)
    sheet.save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
