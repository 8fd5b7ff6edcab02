"""Whether the packages for ONNX are installed, and the error that says how to get them."""

from __future__ import annotations

import importlib.util

from qwenvl_kit.errors import MissingExtra

_PACKAGES = ("onnx", "onnxruntime", "onnx_ir", "optimum.modeling_base")


def require_onnx(purpose: str) -> None:
    """Raise if a package of the extra is missing.

    Raises
    ------
    MissingExtra
        With the command that installs it.
    """
    if not all(map(_is_installed, _PACKAGES)):
        raise MissingExtra(purpose, "onnx")


def _is_installed(module: str) -> bool:
    """Return whether a module can be found; of optimum a submodule is checked, since our wheel has an optimum/ too."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False
