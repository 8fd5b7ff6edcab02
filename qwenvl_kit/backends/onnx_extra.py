"""Whether the packages for ONNX are installed, and the error that says how to get them."""

from __future__ import annotations

import importlib.util

from qwenvl_kit.errors import MissingExtra

_PACKAGES = ("onnx", "onnxruntime", "onnx_ir", "optimum")


def require_onnx(purpose: str) -> None:
    """Raise where a package of the extra is missing.

    Raises
    ------
    MissingExtra
        With the command that installs it.
    """
    if any(importlib.util.find_spec(package) is None for package in _PACKAGES):
        raise MissingExtra(purpose, "onnx")
