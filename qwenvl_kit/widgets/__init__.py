"""Panels for notebooks: pictures, parameters and answers side by side, while the kernel stays free.

>>> from qwenvl_kit.widgets import DtypeCompare, Playground, ResizeCompare, SamplingCompare
"""

from __future__ import annotations

from qwenvl_kit.errors import MissingExtra

try:
    import anywidget  # noqa: F401  # all of the extra is needed, and told at once
    import ipywidgets  # noqa: F401
except ImportError as error:
    raise MissingExtra("qwenvl_kit.widgets", "notebook") from error

from qwenvl_kit.widgets.overlay import BeforeAfter, TokenGrid
from qwenvl_kit.widgets.panels import DtypeCompare, Playground, ResizeCompare, SamplingCompare

__all__ = ["BeforeAfter", "DtypeCompare", "Playground", "ResizeCompare", "SamplingCompare", "TokenGrid"]
