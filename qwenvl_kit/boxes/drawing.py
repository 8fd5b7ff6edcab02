"""Draw boxes and points over an image as HTML and CSS alone: it works without a script, also in a saved notebook.

Each object can be reached with the keyboard, and its text is read aloud.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenvl_kit.html import plain, render

if TYPE_CHECKING:
    from markupsafe import Markup

MAX_MARKS = 60
"""Objects drawn over one image; the rest is counted."""

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""Okabe and Ito's colours for all kinds of colour vision (https://jfly.uni-koeln.de/color/), without black."""

_LINES = ("solid", "dashed", "dotted")
_MAX_LABELS = 42  # of a legend
_LONGEST_LABEL = 60
_COLOUR_RULES = "\n".join(f".qwenvl-c{at} {{ --c: {colour}; }}" for at, colour in enumerate(COLOURS))
_LINE_RULES = "\n".join(f".qwenvl-l{at} {{ --l: {line}; }}" for at, line in enumerate(_LINES))

# A mark's colour stands between a white and a black line: one of both is seen on any image.
STYLE = f"""
{_COLOUR_RULES}
{_LINE_RULES}
.qwenvl-image {{ position: relative; width: fit-content; margin: 0 auto 6px; }}
.qwenvl-mark {{ position: absolute; box-sizing: border-box; margin: 0; border: 2px var(--l) var(--c);
  box-shadow: 0 0 0 1px #fff, inset 0 0 0 1px #000; forced-color-adjust: none; }}
.qwenvl-point {{ width: 12px; height: 12px; margin: -6px 0 0 -6px; border-radius: 50%; background: var(--c);
  box-shadow: 0 0 0 1.5px #fff, 0 0 0 3px #000; }}
.qwenvl-mark > b {{ position: absolute; left: -3px; bottom: 100%; padding: 0 3px;
  font: 600 10px/14px system-ui, sans-serif; color: #fff; background: #111; white-space: nowrap;
  border-left: 3px solid var(--c); }}
.qwenvl-mark.qwenvl-under > b {{ bottom: auto; top: 100%; }}
.qwenvl-mark.qwenvl-end > b {{ left: auto; right: -3px; }}
.qwenvl-mark > b > i {{ display: none; font-style: normal; }}
.qwenvl-mark:is(:hover, :focus-visible) {{ z-index: 999 !important; outline: 3px solid #111; outline-offset: 2px;
  box-shadow: 0 0 0 3px #fff, inset 0 0 0 1px #000; }}
.qwenvl-mark:is(:hover, :focus-visible) > b > i {{ display: inline; }}
.qwenvl-swatch {{ display: inline-block; width: 20px; height: 12px; vertical-align: -1px; margin-right: 5px;
  box-sizing: border-box; border: 2px var(--l) var(--c); outline: 1px solid rgba(128, 128, 128, .6);
  forced-color-adjust: none; }}
.qwenvl-objects, .qwenvl-legend {{ margin: 0 0 6px; font-size: 12px; line-height: 1.5; overflow-wrap: anywhere; }}
.qwenvl-legend {{ display: flex; flex-wrap: wrap; gap: 2px 14px; margin-bottom: 10px; }}
.qwenvl-objects small, .qwenvl-note {{ opacity: .75; font-size: 12px; }}
.qwenvl-note {{ margin: 0 0 6px; }}
.qwenvl-views {{ display: flex; flex-wrap: wrap; gap: 8px 20px; }}
.qwenvl-view {{ flex: 1 1 150px; min-width: 0; }}
"""
_IMAGE = """<div class="qwenvl-image" role="group" aria-label="{{ said }}"><img src="{{ uri }}" alt="{{ alt }}">
{%- for mark in marks %}<span class="{{ mark.classes }}" style="{{ mark.place }}" tabindex="0" role="img" aria-label="
{{- mark.words }}" title="{{ mark.words }}"><b aria-hidden="true">{{ mark.number }}<i> {{ mark.label }}</i></b></span>
{%- endfor %}</div>"""
# JupyterLab gives ul, ol and li its own bullets, numbers and margins.
_OBJECTS = """{% if marks %}<div class="qwenvl-objects" role="list">{% for mark in marks %}<div role="listitem"><span
class="{{ mark.swatch }}"></span>{{ mark.number }} {{ mark.label }}{% if mark.note %} <small>
{{- mark.note }}</small>{% endif %}</div>{% endfor %}
{%- if n_more %}<div role="listitem">and {{ n_more }} more</div>{% endif %}</div>{% endif %}"""
_LEGEND = """<div class="qwenvl-legend" role="list" aria-label="Labels">{% for swatch, label, n in entries %}<div
role="listitem"><span class="{{ swatch }}"></span>{{ label }} ({{ n }})</div>{% endfor %}
{%- if n_more %}<div role="listitem">and {{ n_more }} more labels</div>{% endif %}</div>"""


@dataclass(frozen=True, slots=True)
class Mark:
    """An object as it is drawn.

    Attributes
    ----------
    number : int
        Within its image, from 1.
    label : str
        Written beside it.
    note : str
        Score and overlap, in words.
    corners : tuple of float
        ``x0, y0, x1, y1`` as shares of the image; of a point twice the same.
    style : int
        Number of the label, for colour and line.
    rank : int
        Marks of a higher rank lie above.
    is_point : bool
    words : str
        Read aloud.
    """

    number: int
    label: str
    note: str
    corners: tuple[float, float, float, float]
    style: int
    rank: int
    is_point: bool
    words: str

    @property
    def classes(self) -> str:
        """CSS classes of its outline."""
        x0, y0, x1, y1 = self.corners
        names = [
            "qwenvl-mark",
            style_classes(self.style),
            "qwenvl-point" if self.is_point else "",
            "qwenvl-under" if y0 < 0.08 and y1 < 0.92 else "",
            "qwenvl-end" if x0 + x1 > 1.2 else "",
        ]
        return " ".join(filter(None, names))

    @property
    def swatch(self) -> str:
        """CSS classes of its sample in a list."""
        return f"qwenvl-swatch {style_classes(self.style)}"

    @property
    def place(self) -> str:
        """CSS of its position, in percent of the image."""
        x0, y0, x1, y1 = (100 * min(1.0, max(0.0, share)) for share in self.corners)
        position = f"left:{x0:.2f}%;top:{y0:.2f}%;z-index:{self.rank}"
        return position if self.is_point else f"{position};width:{x1 - x0:.2f}%;height:{y1 - y0:.2f}%"


def draw_image(uri: str, alt: str, marks: Sequence[Mark], n_objects: int) -> Markup:
    """Return an image with marks over it, and the number of its objects for a screen reader.

    Examples
    --------
    >>> mark = Mark(1, "cat", "0.90", (0.1, 0.2, 0.5, 0.4), 0, 1, False, "1: cat")
    >>> "left:10.00%;top:20.00%;z-index:1;width:40.00%;height:20.00%" in draw_image("data:,", "row 0", [mark], 1)
    True
    """
    said = "1 object" if n_objects == 1 else f"{n_objects} objects"
    return render(_IMAGE, uri=uri, alt=alt, said=said, marks=marks)


def list_objects(marks: Sequence[Mark], n_objects: int) -> Markup:
    """Return the list of an image's objects with their notes, and how many more there are."""
    return render(_OBJECTS, marks=marks, n_more=n_objects - len(marks))


def draw_legend(counts: Mapping[str, int]) -> Markup:
    """Return the legend of labels in their order, with the number of objects of each."""
    entries = [
        (f"qwenvl-swatch {style_classes(at)}", plain(label, _LONGEST_LABEL), n)
        for at, (label, n) in enumerate(counts.items())
    ]
    return render(_LEGEND, entries=entries[:_MAX_LABELS], n_more=max(0, len(entries) - _MAX_LABELS))


def style_classes(at: int) -> str:
    """Return the CSS classes of the label at a position: seven colours, then the same with dashed and dotted lines."""
    return f"qwenvl-c{at % len(COLOURS)} qwenvl-l{at // len(COLOURS) % len(_LINES)}"
