"""Draw signs with a number. The digits are bitmaps of their own, so that no installed font decides how they look."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import ImageDraw

_LARGEST = 99
_RIM = 0.04
_DIGIT_WIDTH = 0.38
_DIGIT_HEIGHT = 0.68
_GAP = 0.07
_RIM_RGB, _PLATE_RGB, _INK_RGB = (90, 90, 90), (248, 248, 242), (16, 16, 24)

# Seven rows of five pixels for each digit.
_BITMAPS = """
.###. ..#.. .###. ####. ...#. ##### ..##. ##### .###. .###.
#...# .##.. #...# ....# ..##. #.... .#... ....# #...# #...#
#...# ..#.. ....# ....# .#.#. ####. #.... ...#. #...# #...#
#...# ..#.. ...#. .###. #..#. ....# ####. ...#. .###. .####
#...# ..#.. ..#.. ....# ##### ....# #...# ..#.. #...# ....#
#...# ..#.. .#... ....# ...#. #...# #...# ..#.. #...# ...#.
.###. .###. ##### ####. ...#. .###. .###. ..#.. .###. .##..
"""
_ROWS = [line.split() for line in _BITMAPS.split("\n") if line]
_DIGITS = [[row[digit] for row in _ROWS] for digit in range(10)]


@dataclass(frozen=True, kw_only=True)
class Sign:
    """A light square plate with a dark number, in an empty cell of a scene. It is no object of the scene.

    Attributes
    ----------
    number
        0 to 99.
    cell
        Index into `CELLS`.
    offset
        Distance (x, y) of the centre from the centre of the cell, in cells.
    extent
        Side over the shorter side of a cell.
    """

    number: int
    cell: int
    offset: tuple[float, float] = (0.0, 0.0)
    extent: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.number <= _LARGEST:
            raise ValueError(f"number must be 0 to {_LARGEST}, not {self.number!r}. Signs hold at most two digits.")


def draw_sign(pen: ImageDraw.ImageDraw, number: int, box: tuple[float, float, float, float]) -> None:
    """Draw a plate with a number into a box in pixels."""
    left, top, right, bottom = box
    side = right - left
    rim = _RIM * side
    pen.rectangle(box, fill=_RIM_RGB)
    pen.rectangle((left + rim, top + rim, right - rim, bottom - rim), fill=_PLATE_RGB)
    digits = str(number)
    wide = len(digits) * _DIGIT_WIDTH + (len(digits) - 1) * _GAP
    for at, digit in enumerate(digits):
        x = left + side * (0.5 - wide / 2 + at * (_DIGIT_WIDTH + _GAP))
        y = (top + bottom) / 2 - side * _DIGIT_HEIGHT / 2
        _draw_digit(pen, int(digit), (x, y), side)


def _draw_digit(pen: ImageDraw.ImageDraw, digit: int, corner: tuple[float, float], side: float) -> None:
    rows = _DIGITS[digit]
    across, down = side * _DIGIT_WIDTH / len(rows[0]), side * _DIGIT_HEIGHT / len(rows)
    for row, pixels in enumerate(rows):
        for column, pixel in enumerate(pixels):
            if pixel == "#":
                x, y = corner[0] + column * across, corner[1] + row * down
                pen.rectangle((round(x), round(y), round(x + across) - 1, round(y + down) - 1), fill=_INK_RGB)
