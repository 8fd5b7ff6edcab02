"""Options in, one frozen and validated `Config` out.

It knows what may be asked for, and nothing of what this machine can do: see `qwenvl_kit.checkpoints.resolve`.
"""

from __future__ import annotations

import difflib
import functools
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypedDict, TypeVar, Union, Unpack, get_args, get_origin, get_type_hints

import numpy as np

from qwenvl_kit.errors import ConfigError, UnknownOption

ImageSrcType = Literal["auto", "image_url", "image_base64", "image_binary"]
DType = Literal["bfloat16", "float16", "float32"]
Decode = Literal["exact", "draft"]
OnError = Literal["keep", "raise"]
Engine = Literal["local", "daft", "ray"]
Role = Literal["answer", "load", "run"]
DeviceMap = str | Mapping[str, int | str]
MaxMemory = Mapping[int | str, int | str]

DEFAULT_PROMPT = "请给出这张图片的详细描述。"
# What transformers and vLLM call our options.
_ELSEWHERE = {
    "max_new_tokens": ("max_caption_length",),
    "max_tokens": ("max_caption_length",),
    "model": ("model_name",),
    "torch_dtype": ("dtype",),
    "attn_implementation": ("use_flash_attention_2",),
    "device": ("device_map",),
    "question": ("prompt",),
    "num_threads": ("threads",),
    "enforce_eager": ("torch_compile",),
}
_T = TypeVar("_T")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")  # https://www.rfc-editor.org/rfc/rfc3986#section-3.1, in lower case
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
_HEADERS_OF_CONNECTION = frozenset({"host", "connection", "content-length", "transfer-encoding"})
_PLACE = re.compile(r"auto|balanced|balanced_low_0|sequential|(cpu|cuda|mps|xpu|npu|hpu)(:\d+)?")


class Options(TypedDict, total=False):
    """The keyword arguments of `Config`, for type checkers; a test keeps both alike."""

    image_src_type: ImageSrcType
    model_path: str
    model_name: str
    prompt: str | None
    batch_size: int
    dtype: DType
    use_flash_attention_2: bool
    max_caption_length: int
    resized_height: int | None
    resized_width: int | None
    do_sample: bool
    temperature: float
    top_k: int | None
    top_p: float
    rank: int | None
    backend: str
    threads: int | None
    torch_compile: bool
    device_map: DeviceMap | None
    max_memory: MaxMemory | None
    local_files_only: bool
    min_pixels: int | None
    max_pixels: int | None
    num_beams: int
    repetition_penalty: float | None
    stop_repetition: bool
    seed: int | None
    system_prompt: str | None
    decode: Decode
    strict: bool
    on_error: OnError
    timeout_s: float
    max_image_bytes: int
    max_image_pixels: int
    decode_timeout_s: float
    allow_private_hosts: bool
    headers: Mapping[str, str] | None
    extra_schemes: Sequence[str]
    local_paths: bool | str
    store: str | None
    trust_sources: bool
    engine: Engine
    concurrency: int | None
    num_gpus: float | None
    progress: bool


def _option(default: _T, role: Role, doc: str) -> _T:
    value: _T = field(default=default, metadata={"role": role, "doc": doc})
    return value


@dataclass(frozen=True, init=False, repr=False)
class Config:
    """Everything that a run can be told, validated at birth.

    Each field has a role: ``answer`` fields change the answer, ``load`` fields change the loaded model,
    ``run`` fields change neither.

    Examples
    --------
    >>> config = Config(dtype="float32", batch_size=8)
    >>> config
    Config(batch_size=8, dtype='float32')
    >>> config.replace(batch_size=2).batch_size
    2
    >>> Config(temperatur=0.5)
    Traceback (most recent call last):
    qwenvl_kit.errors.UnknownOption: there is no option 'temperatur'; did you mean 'temperature'?

    Raises
    ------
    ConfigError
        A value breaks its option's rule, or two options contradict each other.
    UnknownOption
        An option does not exist.
    """

    image_src_type: ImageSrcType = _option(
        "auto",
        "run",
        "what the cells hold: `image_url` (http, tos, s3 address or path), `image_base64`, "
        "`image_binary`, or `auto` to tell by the value",
    )
    model_path: str = _option("/opt/las/models", "load", "folder that holds local models")
    model_name: str = _option(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "load",
        "a model of the Qwen2.5-VL family: a name below `model_path`, a folder, a hub name, or `demo`",
    )
    prompt: str | None = _option(DEFAULT_PROMPT, "run", "asked of every picture that has no prompt of its own")
    batch_size: int = _option(4, "run", "pictures in one forward; at least 1")
    dtype: DType = _option("bfloat16", "load", "`bfloat16`, `float16` or `float32`")
    use_flash_attention_2: bool = _option(True, "load", "takes effect on CUDA with a 16-bit dtype; sdpa otherwise")
    max_caption_length: int = _option(256, "answer", "most new tokens; at least 1")
    resized_height: int | None = _option(None, "answer", "scale to this height in pixels; None keeps the original")
    resized_width: int | None = _option(None, "answer", "scale to this width in pixels; None keeps the original")
    do_sample: bool = _option(False, "answer", "sample; greedy or beam search otherwise")
    temperature: float = _option(1.0, "answer", "randomness of sampling; above 0")
    top_k: int | None = _option(50, "answer", "sample among the k likeliest tokens; 0 or None for no limit")
    top_p: float = _option(1.0, "answer", "nucleus sampling: smallest set of tokens of this probability; in (0, 1]")
    rank: int | None = _option(None, "load", "index of the GPU to use, among those visible to the process")
    backend: str = _option(
        "torch",
        "load",
        "what runs the model: `torch`, `onnx` (an export), or `echo` (no model: answers with the prompt)",
    )
    threads: int | None = _option(
        None, "load", "CPU threads that the model computes with; None leaves it to the library"
    )
    torch_compile: bool = _option(
        False, "load", "compile decode steps, into CUDA graphs where there is a GPU; the warm-up is on record"
    )
    device_map: DeviceMap | None = _option(
        None, "load", "accelerate's device map: `auto`, a device, or a dict from module to device, `cpu` or `disk`"
    )
    max_memory: MaxMemory | None = _option(
        None, "load", "most memory per device for `device_map`, such as `{0: '20GiB', 'cpu': '60GiB'}`"
    )
    local_files_only: bool = _option(True, "load", "False allows a download from the hub")
    min_pixels: int | None = _option(None, "answer", "smallest area in pixels; None takes the checkpoint's")
    max_pixels: int | None = _option(None, "answer", "largest area in pixels; None takes the checkpoint's")
    num_beams: int = _option(1, "answer", "beams of beam search; 1 is none")
    repetition_penalty: float | None = _option(
        None, "answer", "above 1 discourages repetition; None takes the checkpoint's own and records it"
    )
    stop_repetition: bool = _option(
        False, "answer", "end an answer that says one phrase over and over; such answers are flagged in any case"
    )
    seed: int | None = _option(
        None, "answer", "makes sampling repeatable, whatever the batch; None draws anew each time"
    )
    system_prompt: str | None = _option(None, "run", "replaces the checkpoint's own system prompt")
    decode: Decode = _option(
        "exact",
        "answer",
        "`draft` decodes JPEGs at a reduced scale where the target is much smaller: faster, pixels differ slightly",
    )
    strict: bool = _option(False, "run", "raise where an option that was given cannot be honoured, instead of warning")
    on_error: OnError = _option("keep", "run", "`keep` failed rows as null, or `raise` RowErrors when all are finished")
    timeout_s: float = _option(30.0, "run", "longest time for fetching one picture, in seconds")
    max_image_bytes: int = _option(64 * 2**20, "run", "largest encoded picture, in bytes")
    max_image_pixels: int = _option(89_478_485, "run", "largest decoded picture, in pixels (Pillow's own limit)")
    decode_timeout_s: float = _option(
        2.0, "run", "most CPU time for decoding one picture, in seconds; larger ones get it per 4 MB or 32 megapixels"
    )
    allow_private_hosts: bool = _option(True, "run", "False refuses addresses in private networks")
    headers: Mapping[str, str] | None = _option(
        None,
        "run",
        "HTTP headers to send with each request, such as `{'User-Agent': 'survey/1.0 (me@example.org)'}`; kept out of "
        "records, and not sent on to another host",
    )
    extra_schemes: Sequence[str] = _option(
        (),
        "run",
        "schemes of addresses allowed beyond http, https, file, s3, s3a, gs, gcs, tos, hf and data; fsspec reads them",
    )
    local_paths: bool | str = _option(
        True, "run", "False refuses cells that name local files; a folder allows the files below it"
    )
    store: str | None = _option(None, "run", "path of an SQLite file that keeps results; calling again resumes")
    trust_sources: bool = _option(
        False, "run", "with `store`: do not ask whether an address that was seen before still holds the same picture"
    )
    engine: Engine = _option(
        "local", "run", "where it runs: `local` in this process, `daft` in workers on this machine, `ray` on a cluster"
    )
    concurrency: int | None = _option(None, "run", "with `daft` and `ray`: workers, each with its own model; None is 1")
    num_gpus: float | None = _option(
        None, "run", "with `ray`: GPUs of each worker; None is 1 where the cluster has any, else 0"
    )
    progress: bool = _option(True, "run", "show a progress bar with pictures per second and time left")

    explicit: frozenset[str] = field(init=False, compare=False, default=frozenset())
    """Names of the options that the caller passed."""

    def __init__(self, **options: Unpack[Options]) -> None:
        names = option_names()
        for name in options:
            if name not in names:
                raise UnknownOption(_unknown(name, names))
        for option in fields(self):
            if option.name != "explicit":
                value = options.get(option.name, option.default)
                object.__setattr__(self, option.name, _plain(value))
        object.__setattr__(self, "explicit", frozenset(options))
        _validate(self)

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in option_names() if name in self.explicit}
        if shown.get("headers"):
            shown["headers"] = dict.fromkeys(shown["headers"], "***")  # they may hold a token
        return f"Config({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], Config], tuple[dict[str, Any]]]:
        return _rebuild, ({name: getattr(self, name) for name in self.explicit},)

    def replace(self, **changes: Unpack[Options]) -> Config:
        """The same config with `changes`; they count as asked for too."""
        kept: dict[str, Any] = {name: getattr(self, name) for name in self.explicit}
        return Config(**{**kept, **changes})

    def values(self, role: Role) -> dict[str, Any]:
        """Name and value of each field that has this role."""
        return {o.name: getattr(self, o.name) for o in fields(self) if o.metadata.get("role") == role}


@dataclass(frozen=True, slots=True)
class OptionDoc:
    """What a door needs to present an option.

    Attributes
    ----------
    name : str
        The keyword.
    hint : object
        Its type, as annotated.
    kind : str
        Its type in words, such as ``int or None``.
    default : object
        What runs where it is not given.
    doc : str
        Its meaning, allowed values included.
    """

    name: str
    hint: Any
    kind: str
    default: Any
    doc: str


@functools.cache
def option_docs() -> tuple[OptionDoc, ...]:
    """All options in order, for signatures, help texts and tables."""
    hints = get_type_hints(Config)
    return tuple(
        OptionDoc(o.name, hints[o.name], _kind(hints[o.name]), o.default, o.metadata["doc"])
        for o in fields(Config)
        if o.name != "explicit"
    )


def option_names() -> tuple[str, ...]:
    """Names of all options, in order."""
    return tuple(option.name for option in fields(Config) if option.name != "explicit")


def _rebuild(options: dict[str, Any]) -> Config:
    return Config(**options)


def _unknown(name: str, names: tuple[str, ...]) -> str:
    near = _ELSEWHERE.get(name) or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]!r}?" if near else f"options are: {', '.join(names)}"
    return f"there is no option {name!r}; {fix}"


def _validate(config: Config) -> None:
    _check_choices(config)
    _check_numbers(config)
    _check_texts(config)
    _check_pairs(config)


def _check_choices(config: Config) -> None:
    _one_of(config, "image_src_type", ("auto", "image_url", "image_base64", "image_binary"))
    _one_of(config, "dtype", ("bfloat16", "float16", "float32"))
    _one_of(config, "decode", ("exact", "draft"))
    _one_of(config, "on_error", ("keep", "raise"))
    _one_of(config, "engine", ("local", "daft", "ray"))
    for option in option_docs():
        if option.kind == "bool":
            _rule(config, option.name, lambda v: isinstance(v, bool), "must be True or False", "pass True or False")


def _check_numbers(config: Config) -> None:
    for name in ("batch_size", "max_caption_length", "num_beams", "max_image_bytes", "max_image_pixels"):
        _rule(config, name, lambda v: _is_int(v) and v >= 1, "must be a whole number of at least 1", "pass 1 or more")
    _rule(
        config,
        "threads",
        lambda v: v is None or (_is_int(v) and v >= 1),
        "must be a whole number of at least 1, or None",
        "pass None for the library's own choice",
    )
    for name in ("resized_height", "resized_width", "min_pixels", "max_pixels"):
        _rule(
            config,
            name,
            lambda v: v is None or (_is_int(v) and v >= 1),
            "must be a whole number of pixels of at least 1, or None",
            "pass None to leave it to the picture",
        )
    _rule(
        config,
        "rank",
        lambda v: v is None or (_is_int(v) and v >= 0),
        "must be the index of a visible GPU, from 0, or None",
        "pass None for the default device",
    )
    _rule(
        config,
        "top_k",
        lambda v: v is None or (_is_int(v) and v >= 0),
        "must be a whole number from 0, or None",
        "pass 0 or None for no limit",
    )
    _rule(config, "top_p", lambda v: _is_number(v) and 0 < v <= 1, "must lie in (0, 1]", "pass 1.0 for no limit")
    _rule(
        config,
        "temperature",
        lambda v: _is_number(v) and (v > 0 or not config.do_sample),
        "must be above 0 when do_sample=True",
        "pass do_sample=False for the likeliest answer",
    )
    _rule(
        config,
        "repetition_penalty",
        lambda v: v is None or (_is_number(v) and v > 0),
        "must be above 0, or None",
        "pass 1.0 for no penalty, None for the checkpoint's own",
    )
    _rule(
        config,
        "seed",
        lambda v: v is None or (_is_int(v) and 0 <= v < 2**63),
        "must be a whole number from 0 to 2**63 - 1, or None",
        "pass a small number such as 0",
    )
    _rule(
        config,
        "concurrency",
        lambda v: v is None or (_is_int(v) and v >= 1),
        "must be a number of workers of at least 1, or None",
        "pass None for one",
    )
    _rule(
        config,
        "num_gpus",
        lambda v: v is None or (_is_number(v) and (0 <= v <= 1 or (v > 1 and v == int(v)))),
        "must be a number of GPUs from 0, a part of one or whole ones, or None",
        "pass 0 for the CPU",
    )
    for name, usual in (("timeout_s", 30), ("decode_timeout_s", 2)):
        _rule(
            config, name, lambda v: _is_number(v) and v > 0, "must be above 0 seconds", f"pass seconds, such as {usual}"
        )


def _check_texts(config: Config) -> None:
    for name in ("model_path", "model_name", "backend"):
        _rule(config, name, lambda v: isinstance(v, str) and v != "", "must be a text", "pass a name or a folder")
    for name in ("prompt", "system_prompt", "store"):
        _rule(
            config, name, lambda v: v is None or _is_text(v), "must be a text of whole characters or None", "pass a str"
        )
    _check_fetching(config)
    _rule(
        config,
        "device_map",
        lambda v: v is None or isinstance(v, Mapping) or (isinstance(v, str) and _PLACE.fullmatch(v) is not None),
        "must be auto, balanced, balanced_low_0, sequential, a device such as cuda:1, a dict or None",
        "pass 'auto' to let accelerate decide",
    )
    _rule(
        config,
        "max_memory",
        lambda v: v is None or isinstance(v, Mapping),
        "must be a dict or None",
        "pass a dict such as {0: '20GiB', 'cpu': '60GiB'}",
    )


def _check_fetching(config: Config) -> None:
    _rule(
        config,
        "local_paths",
        lambda v: isinstance(v, bool) or (_is_text(v) and v != ""),
        "must be True, False or a folder",
        "pass the folder that holds the pictures",
    )
    _rule(
        config,
        "extra_schemes",
        lambda v: isinstance(v, tuple) and all(isinstance(one, str) and _SCHEME.fullmatch(one) for one in v),
        "must be a list of schemes",
        "pass names without '://', such as ['oss']",
    )
    if config.headers is not None and not _are_headers(config.headers):
        # The value stays out of the message: it may hold a token.
        raise ConfigError(
            "headers must be a dict of header names and values, both texts of one line, without Host, Connection, "
            "Content-Length and Transfer-Encoding, which are the connection's own; pass "
            "{'User-Agent': 'survey/1.0 (me@example.org)'}"
        )


def _are_headers(headers: object) -> bool:
    return isinstance(headers, Mapping) and all(
        isinstance(name, str)
        and isinstance(value, str)
        and _HEADER_NAME.fullmatch(name) is not None
        and _HEADER_VALUE.fullmatch(value) is not None
        and name.lower() not in _HEADERS_OF_CONNECTION
        for name, value in headers.items()
    )


def _check_pairs(config: Config) -> None:
    _check_engine(config)
    if config.rank is not None and config.device_map is not None:
        raise ConfigError(
            f"rank={config.rank} and device_map={config.device_map!r} both say where the model goes; pass one of them"
        )
    if config.max_memory is not None and config.device_map is None:
        raise ConfigError(
            f"max_memory={dict(config.max_memory)!r} takes effect with a device_map only; pass device_map='auto' too"
        )
    if config.min_pixels and config.max_pixels and config.min_pixels > config.max_pixels:
        raise ConfigError(
            f"min_pixels must not exceed max_pixels; got {config.min_pixels} > {config.max_pixels}; swap them"
        )
    if config.num_beams > 1 and config.stop_repetition:
        raise ConfigError(
            f"stop_repetition=True needs one answer at a time to look at; got num_beams={config.num_beams}; pass "
            "num_beams=1"
        )
    if config.num_beams > 1 and config.do_sample:
        raise ConfigError(
            f"num_beams={config.num_beams} and do_sample=True exclude each other, since sampled beams would depend "
            "on the rows beside them; pass num_beams=1 or do_sample=False"
        )


def _check_engine(config: Config) -> None:
    if config.engine == "local" and config.concurrency is not None:
        raise ConfigError(
            f"concurrency={config.concurrency} takes effect with workers only; pass engine='daft' or engine='ray' too"
        )
    if config.engine != "ray" and config.num_gpus is not None:
        raise ConfigError(
            f"num_gpus={config.num_gpus:g} takes effect on Ray only, which gives each worker its own; pass "
            "engine='ray' too, or rank=… to choose a GPU of this machine"
        )
    if config.engine == "ray" and config.rank:
        raise ConfigError(
            f"rank counts the GPUs that a worker on Ray sees, which are its own; got {config.rank}; pass rank=0 or "
            "rank=None"
        )


def _rule(config: Config, name: str, holds: Callable[[Any], bool], rule: str, fix: str) -> None:
    value = getattr(config, name)
    if not holds(value):
        raise ConfigError(f"{name} {rule}; got {value!r}; {fix}")


def _one_of(config: Config, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.4)
    fix = f"did you mean {near[0]!r}?" if near else f"pass {choices[0]!r}"
    raise ConfigError(f"{name} must be one of {', '.join(choices)}; got {value!r}; {fix}")


def _kind(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(dict.fromkeys(_kind(part) for part in get_args(hint)))
    if get_origin(hint) is Literal:
        return "str"
    if get_origin(hint) is Mapping:
        return "dict"
    if get_origin(hint) is Sequence:
        return "list"
    return "None" if hint is NoneType else str(hint.__name__)


def _plain(value: object) -> object:
    """Turn numpy scalars, as grids and frames hold them, and paths into Python's own values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list):
        return tuple(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value == value.encode("utf-8", "replace").decode()


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


assert all(option.default is not MISSING for option in fields(Config))
