"""Interactive images: a before/after slider and the grid of visual tokens. Their scripts need no network."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets

_STATIC = Path(__file__).parent / "static"


def _text(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")


class BeforeAfter(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget has no types here
    """Two images in one frame, divided by a slider.

    Attributes
    ----------
    before, after : str
        Data URIs; hidden where `before` is empty.
    before_label, after_label, alt : str
        Labels and alternative text.
    position : int
        Percent of the width of `before`.

    Examples
    --------
    >>> BeforeAfter(before="data:,", after="data:,", before_label="56", after_label="112").position
    50
    """

    _esm = _text("before_after.js")
    _css = _text("before_after.css")
    before = traitlets.Unicode("").tag(sync=True)
    after = traitlets.Unicode("").tag(sync=True)
    before_label = traitlets.Unicode("before").tag(sync=True)
    after_label = traitlets.Unicode("after").tag(sync=True)
    alt = traitlets.Unicode("picture").tag(sync=True)
    position = traitlets.Int(50, min=0, max=100).tag(sync=True)


class TokenGrid(anywidget.AnyWidget):  # type: ignore[misc]
    """An image with every visual token framed.

    Attributes
    ----------
    picture : str
        A data URI; hidden where it is empty.
    rows, columns : int
        Number of visual tokens down and across.
    alt : str
        Alternative text.

    Examples
    --------
    >>> grid = TokenGrid(picture="data:,", rows=3, columns=4)
    """

    _esm = _text("token_grid.js")
    _css = _text("token_grid.css")
    picture = traitlets.Unicode("").tag(sync=True)
    rows = traitlets.Int(0).tag(sync=True)
    columns = traitlets.Int(0).tag(sync=True)
    alt = traitlets.Unicode("picture").tag(sync=True)
