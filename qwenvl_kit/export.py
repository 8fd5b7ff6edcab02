"""Export a checkpoint to ONNX, and compare the export with the checkpoint.

>>> from qwenvl_kit.export import to_onnx, verify
>>> done = to_onnx("demo", "demo-onnx")  # doctest: +SKIP
>>> print(done.parity)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenvl_kit.onnx_backend.export.exporter import Exported, to_onnx
    from qwenvl_kit.onnx_backend.export.parity import Parity, verify
    from qwenvl_kit.onnx_backend.generate import OnnxQwenVL

__path__: list[str] = []  # its former submodules import: see `qwenvl_kit._moved`
__all__ = ["Exported", "OnnxQwenVL", "Parity", "to_onnx", "verify"]


def __getattr__(name: str) -> Any:
    """Import torch, onnx and optimum only when one of the names is used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from qwenvl_kit.onnx_backend.require import require_onnx

    require_onnx("exporting to ONNX")
    from qwenvl_kit.onnx_backend.export.exporter import Exported, to_onnx
    from qwenvl_kit.onnx_backend.export.parity import Parity, verify
    from qwenvl_kit.onnx_backend.generate import OnnxQwenVL

    public: tuple[Any, ...] = (Exported, OnnxQwenVL, Parity, to_onnx, verify)
    return next(one for one in public if one.__name__ == name)
