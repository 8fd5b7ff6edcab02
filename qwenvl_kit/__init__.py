"""Run Qwen2.5-VL on a column of images: ``df.vl.caption("image")``.

The import registers ``df.vl`` and ``Series.vl`` on pandas. The first call imports torch and transformers.
"""

from qwenvl_kit import _moved, accessor, series_accessor  # noqa: F401  # the accessors register themselves
from qwenvl_kit._version import __version__
from qwenvl_kit.conformance import conform
from qwenvl_kit.errors import (
    BackendBusy,
    BackendFailed,
    CheckpointError,
    ColumnNotFound,
    ConfigError,
    CostWarning,
    ExportFailed,
    ForkedProcess,
    InsufficientMemory,
    Interrupted,
    MissingExtra,
    ModelNotFound,
    OptionWarning,
    QwenVLError,
    QwenVLWarning,
    RowError,
    RowErrors,
    RowErrorWarning,
    ServerError,
    StoreError,
    StoreWarning,
    UnknownOption,
)
from qwenvl_kit.executors import unload
from qwenvl_kit.frame_run import last_run
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.options import Config
from qwenvl_kit.stamps import restamp, stamp
from qwenvl_kit.types import Result

__all__ = [
    "BackendBusy",
    "BackendFailed",
    "CheckpointError",
    "ColumnNotFound",
    "Config",
    "ConfigError",
    "Control",
    "CostWarning",
    "ExportFailed",
    "ForkedProcess",
    "InsufficientMemory",
    "Interrupted",
    "MissingExtra",
    "ModelNotFound",
    "OptionWarning",
    "QwenVLError",
    "QwenVLWarning",
    "Result",
    "RowError",
    "RowErrorWarning",
    "RowErrors",
    "ServerError",
    "StoreError",
    "StoreWarning",
    "UnknownOption",
    "__version__",
    "conform",
    "last_run",
    "restamp",
    "stamp",
    "unload",
]

_moved.install()


def __dir__() -> list[str]:
    return __all__
