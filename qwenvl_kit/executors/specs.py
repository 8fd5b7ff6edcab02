"""Find the model of a config: one function for each backend, imported on its first use."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import BackendSpec
    from qwenvl_kit.options import Config


def torch_spec(config: Config) -> BackendSpec:
    """Find a checkpoint and a device of torch's."""
    from qwenvl_kit.torch_backend import backend

    return backend.spec(config)


def onnx_spec(config: Config) -> BackendSpec:
    """Find an export for ONNX Runtime."""
    from qwenvl_kit.onnx_backend import backend

    return backend.spec(config)


def openai_spec(config: Config) -> BackendSpec:
    """Find a model that a server serves."""
    from qwenvl_kit.openai_backend import backend

    return backend.spec(config)


def echo_spec(config: Config) -> BackendSpec:
    """Return the model that repeats its prompt."""
    from qwenvl_kit.inference import echo

    return echo.spec(config)


_SPECS = {"torch": torch_spec, "onnx": onnx_spec, "openai": openai_spec, "echo": echo_spec}


def make_spec(config: Config) -> BackendSpec:
    """Find the model that a config names, without reading its weights.

    Raises
    ------
    ConfigError
        There is no such backend, or it cannot do what the config asks.
    ModelNotFound
        The model is at none of the places looked at, or the server does not list it.
    ServerError
        The server cannot be used.

    Examples
    --------
    >>> from qwenvl_kit import Config
    >>> make_spec(Config(backend="echo")).fingerprint
    'echo-1'
    """
    if config.backend not in _SPECS:
        near = difflib.get_close_matches(config.backend, _SPECS, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"backend={config.backend!r} is invalid. Use torch, onnx, openai or echo.{guess}")
    return _SPECS[config.backend](config)
