"""Cancel the run of a panel whose cell is run again: nobody sees it any more, and the new one would wait for it."""

from __future__ import annotations

import weakref
from typing import Protocol


class Cancellable(Protocol):
    """A panel."""

    def cancel(self) -> None:
        """Stop between two tokens."""
        ...


_shown: dict[str, weakref.WeakSet[Cancellable]] = {}


def cancel_replaced(panel: Cancellable) -> None:
    """Cancel the panels that the running cell showed before, in an earlier execution, and remember this one."""
    cell = current_cell()
    if cell is None:
        return
    for other in _shown.get(cell, ()):
        if other is not panel:
            other.cancel()
    _shown[cell] = weakref.WeakSet([panel])


def current_cell() -> str | None:
    """Return the id of the running cell, which JupyterLab and Notebook 7 send; None elsewhere."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    header = getattr(shell, "parent_header", None) or {}
    cell = header.get("metadata", {}).get("cellId")
    return cell if isinstance(cell, str) else None
