"""Panels for notebooks: images, parameters and answers side by side, with a responsive kernel.

>>> from qwenvl_kit.widgets import DtypeCompare, Playground, ResizeCompare, SamplingCompare
"""

from __future__ import annotations

from qwenvl_kit.errors import MissingExtra

try:
    import anywidget  # noqa: F401  # the extra installs both
    import ipywidgets  # noqa: F401
except ImportError as error:
    raise MissingExtra("qwenvl_kit.widgets", "notebook") from error

from qwenvl_kit.widgets.box_compare import BoxCompare
from qwenvl_kit.widgets.explain import Explain
from qwenvl_kit.widgets.judge import Judge
from qwenvl_kit.widgets.line_panels import ModelCompare, PromptCompare
from qwenvl_kit.widgets.overlay import BeforeAfter, TokenGrid
from qwenvl_kit.widgets.panels import DtypeCompare, Playground, SamplingCompare
from qwenvl_kit.widgets.resize_panel import ResizeCompare

__all__ = [
    "BeforeAfter",
    "BoxCompare",
    "DtypeCompare",
    "Explain",
    "Judge",
    "ModelCompare",
    "Playground",
    "PromptCompare",
    "ResizeCompare",
    "SamplingCompare",
    "TokenGrid",
]
