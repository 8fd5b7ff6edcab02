"""Boxes of ten thousand images, in every turn and size, mapped from a model's input back to the original.

Run it by hand: ``python tests/reliability/box_mapping.py --sizes 10000``. Each size is taken in all eight EXIF turns,
with no resized side, with each and with both, and under three limits: the box of an exact answer must come back within
the rounding of one pixel of the model's input. Then as many images are decoded and resized, each in one turn and one
setting, and the box is read off the pixels of the model's input. It prints a line of JSON for each part, and gives exit
status 1 for a box that is off.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from helpers.mapped_boxes import (
    SETTINGS,
    TURNS,
    Case,
    draw_case,
    error_of,
    exact_answer,
    least_side,
    load,
    seen_answer,
)
from PIL import Image

from qwenvl_kit import Config
from qwenvl_kit.errors import RowError
from qwenvl_kit.images import Sizing
from qwenvl_kit.images.decode import size_in_header
from qwenvl_kit.types import LoadedImage, PatchGeometry

_ROUNDING = 0.5 + 1e-6


def main() -> int:
    """Run both parts and print them; return 1 where a box is off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    cases = [draw_case(random.Random(f"{asked.seed}:{number}")) for number in range(asked.sizes)]
    is_right = [part(cases) for part in (mapped, decoded)]
    return 0 if all(is_right) else 1


def mapped(cases: list[Case]) -> bool:
    """Map the box of each case in every turn, setting and limit; sizes are read from headers."""
    counts: Counter[str] = Counter(wrong_size=0)
    worst = 0.0
    for case in cases:
        for turn in TURNS:
            size = size_in_header(_header(case.size, turn), max_image_pixels=10**8)
            counts["wrong_size"] += size != case.size
            for options in _all_options(case):
                counts["mappings"] += 1
                try:
                    image = _as_loaded(size, Config(**options))
                except RowError:
                    counts["refused_aspect"] += 1
                    continue
                error = error_of(case, image, exact_answer(case, image))
                if error is None:
                    counts["unread"] += 1
                    counts["unread_of_a_pixel_or_more"] += least_side(case, image) >= 1
                    continue
                worst = max(worst, error.in_input)
    needles = sum(max(case.size) >= 20 * min(case.size) for case in cases)
    small = sum(case.size[0] * case.size[1] < 56 * 56 for case in cases)
    line = {"part": "mapped", "sizes": len(cases), "needles": needles, "below_least": small, **counts}
    print(json.dumps({**line, "worst_in_input_pixels": round(worst, 9)}), flush=True)
    return worst <= _ROUNDING and not counts["wrong_size"] and not counts["unread_of_a_pixel_or_more"]


def decoded(cases: list[Case]) -> bool:
    """Decode and resize each case, and read its box off the pixels that a model would see."""
    counts: Counter[str] = Counter(wrong_size=0)
    exact = seen = 0.0
    for case in cases:
        image = load(case)
        if image is None:
            counts["refused_aspect"] += 1
            continue
        counts["wrong_size"] += image.source_size != case.size
        if (error := error_of(case, image, exact_answer(case, image))) is not None:
            exact = max(exact, error.in_input)
        answer = seen_answer(image) if least_side(case, image) >= 4 else None
        if answer is not None and (error := error_of(case, image, answer)) is not None:
            counts["read_off_pixels"] += 1
            seen = max(seen, error.in_larger)
    line = {"part": "decoded", "images": len(cases), **counts, "worst_exact": round(exact, 9)}
    print(json.dumps({**line, "worst_read_off": round(seen, 3)}), flush=True)
    return exact <= _ROUNDING and seen <= 1 and not counts["wrong_size"]


def _header(size: tuple[int, int], turn: int) -> bytes:
    """Return a file whose upright size is `size`."""
    exif = Image.Exif()
    exif[0x0112] = turn
    buffer = io.BytesIO()
    stored = size if turn >= 5 else size[::-1]
    Image.new("1", stored).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def _all_options(case: Case) -> list[dict[str, Any]]:
    draws = random.Random(repr(case))
    sides = {"resized_height": draws.randint(1, 4_000), "resized_width": draws.randint(1, 4_000)}
    most = draws.randint(3_136, 2_000_000)
    limits: list[dict[str, Any]] = [
        {},
        {"max_pixels": most},
        {"max_pixels": most, "min_pixels": draws.randint(784, most)},
    ]
    chosen = {
        "none": {},
        "height": {"resized_height": sides["resized_height"]},
        "width": {"resized_width": sides["resized_width"]},
        "both": sides,
    }
    return [{**chosen[setting], **limit} for setting in SETTINGS for limit in limits]


def _as_loaded(size: tuple[int, int], config: Config) -> LoadedImage:
    """Return an image of the sizes that loading gives, with pixels that take no memory."""
    height, width = Sizing.of(config.image, PatchGeometry()).target(size)
    return LoadedImage(np.broadcast_to(np.uint8(0), (height, width, 3)), "", size)


if __name__ == "__main__":
    sys.exit(main())
