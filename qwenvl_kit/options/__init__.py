"""The options of a call: five groups, their rules, and `Config`, which holds them all."""

from qwenvl_kit.options.config import Config
from qwenvl_kit.options.groups import (
    DEFAULT_PROMPT,
    FetchOptions,
    ImageOptions,
    ModelOptions,
    RunOptions,
    SamplingOptions,
)
from qwenvl_kit.options.keywords import (
    DeviceMap,
    DType,
    Engine,
    FetchKeywords,
    ImageDecode,
    ImageSrcType,
    MaxMemory,
    OnError,
    Options,
    RowsInFlight,
)
from qwenvl_kit.options.rules import Choice
from qwenvl_kit.options.table import FORMER_NAMES, OptionDoc, names_of, option_docs, option_names, suggest

__all__ = [
    "DEFAULT_PROMPT",
    "FORMER_NAMES",
    "Choice",
    "Config",
    "DType",
    "DeviceMap",
    "Engine",
    "FetchKeywords",
    "FetchOptions",
    "ImageDecode",
    "ImageOptions",
    "ImageSrcType",
    "MaxMemory",
    "ModelOptions",
    "OnError",
    "OptionDoc",
    "Options",
    "RowsInFlight",
    "RunOptions",
    "SamplingOptions",
    "names_of",
    "option_docs",
    "option_names",
    "suggest",
]
