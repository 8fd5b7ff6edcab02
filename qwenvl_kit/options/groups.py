"""The five groups of options. One line declares an option: type, default, rule and meaning."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TypeVar

import numpy as np

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.options.keywords import (
    DeviceMap,
    DType,
    Engine,
    ImageDecode,
    ImageEncoding,
    ImageMode,
    ImageSrcType,
    MaxMemory,
    OnError,
    RowsInFlight,
)
from qwenvl_kit.options.rules import (
    ADAPTER,
    BASE_URL,
    DEVICE_MAP,
    ENVIRONMENT_NAME,
    EXTRA_BODY,
    FLAG,
    GPU_SHARE,
    HEADERS,
    LOCAL_PATHS,
    MAX_MEMORY,
    NAME,
    ROWS_IN_FLIGHT,
    SCHEMES,
    TEXT,
    Choice,
    Integer,
    Number,
    Rule,
    check,
)

DEFAULT_PROMPT = "请给出这张图片的详细描述。"
_PIXELS = Integer(1, none="the checkpoint's limit", unit="pixels")
_SIDE = Integer(1, none="the original size", unit="pixels")
_T = TypeVar("_T")


def option(default: _T, rule: Rule, doc: str) -> _T:
    """Declare an option."""
    value: _T = field(default=default, metadata={"rule": rule, "doc": doc})
    return value


class Group:
    """Base of the groups: checks each value, then the combinations."""

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]  # every group is a dataclass
            value = _plain(getattr(self, one.name))
            check(one.name, value, one.metadata["rule"])
            object.__setattr__(self, one.name, value)
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Raise for values that exclude each other."""


# fmt: off
@dataclass(frozen=True, kw_only=True)
class ModelOptions(Group):
    """Options that select and load the model."""

    model_path: str = option("/opt/las/models", NAME, "folder of local models")
    model_name: str = option("Qwen/Qwen2.5-VL-7B-Instruct", NAME, "a model of the Qwen2.5-VL family: a name below `model_path`, a folder, a hub name, or `demo`")
    adapter: str | None = option(None, ADAPTER, "a LoRA adapter in peft's layout that is folded into the weights: a folder, a name below `model_path`, or a hub name")
    backend: str = option("torch", NAME, "what runs the model: `torch`, `onnx` (an export), `openai` (a server), or `echo` (no model: returns the prompt)")
    dtype: DType = option("bfloat16", Choice(DType), "number format of weights and activations")
    use_flash_attention_2: bool = option(True, FLAG, "use FlashAttention-2 on CUDA with a 16-bit dtype; sdpa otherwise")
    torch_compile: bool = option(False, FLAG, "compile decode steps, into CUDA graphs on a GPU; the record has the warm-up time")
    threads: int | None = option(None, Integer(1, none="the library's default"), "CPU threads of the model")
    rank: int | None = option(None, Integer(0, none="the default device"), "index of the GPU among those visible to the process")
    device_map: DeviceMap | None = option(None, DEVICE_MAP, "accelerate's device map: `auto`, a device, or a dict from module to device, `cpu` or `disk`")
    max_memory: MaxMemory | None = option(None, MAX_MEMORY, "maximum memory per device for `device_map`, such as `{0: '20GiB', 'cpu': '60GiB'}`")
    local_files_only: bool = option(True, FLAG, "False allows a download from the hub")
    base_url: str | None = option(None, BASE_URL, "with `openai`: address of the server, such as `http://localhost:8000/v1`")
    api_key_env: str = option("OPENAI_API_KEY", ENVIRONMENT_NAME, "with `openai`: environment variable that holds the server's key; it is read for each request, and kept nowhere")
    extra_body: Mapping[str, object] | None = option(None, EXTRA_BODY, "with `openai`: further fields of each request, such as `{'min_p': 0.1}`; on record")
    request_timeout_s: float = option(600.0, Number(0, unit="seconds"), "with `openai`: maximum time of a row's answer, retries included, in seconds")

    def _check_combinations(self) -> None:
        if self.rank is not None and self.device_map is not None:
            raise ConfigError(
                f"rank={self.rank} and device_map={self.device_map!r} both set the device. Pass only one of them."
            )
        if self.max_memory is not None and self.device_map is None:
            raise ConfigError(
                f"max_memory={dict(self.max_memory)!r} requires a device_map. Add device_map='auto'."
            )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(Group):
    """Options that choose the tokens of an answer."""

    max_caption_length: int = option(256, Integer(1), "maximum number of new tokens")
    do_sample: bool = option(False, FLAG, "sample; greedy or beam search otherwise")
    temperature: float = option(1.0, Number(), "randomness of sampling; above 0")
    top_k: int | None = option(50, Integer(0, none="no limit"), "sample among the k most likely tokens; 0 or None for no limit")
    top_p: float = option(1.0, Number(0, 1), "nucleus sampling: probability of the smallest set of tokens to sample from; in (0, 1]")
    seed: int | None = option(None, Integer(0, 2**63 - 1, none="new random numbers in each run"), "makes sampling reproducible in any batch; None uses new random numbers in each run")
    num_beams: int = option(1, Integer(1), "beams of beam search; 1 for none")
    repetition_penalty: float | None = option(None, Number(0, none="the checkpoint's own"), "above 1 discourages repetition; None for the checkpoint's own, which is recorded")
    stop_repetition: bool = option(False, FLAG, "stop an answer that repeats one phrase; such answers are flagged in any case")
    logprobs: int | None = option(None, Integer(0, 100, none="no log-probabilities"), "log-probabilities of an answer's tokens in `run`, with so many likeliest alternatives for each; None for none")

    def _check_combinations(self) -> None:
        if self.do_sample and self.temperature <= 0:
            raise ConfigError(
                f"temperature={self.temperature!r} is invalid with do_sample=True. Use a number above 0, or "
                "do_sample=False for greedy search."
            )
        if self.num_beams > 1 and self.stop_repetition:
            raise ConfigError(
                f"Beam search (num_beams={self.num_beams}) does not support stop_repetition=True. Use num_beams=1."
            )
        if self.num_beams > 1 and self.do_sample:
            raise ConfigError(
                f"num_beams={self.num_beams} and do_sample=True exclude each other, because sampled beams depend on "
                "other rows of the batch. Use num_beams=1 or do_sample=False."
            )


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Group):
    """Options that set the pixels of an image."""

    resized_height: int | None = option(None, _SIDE, "height of the resized image in pixels; None for the original")
    resized_width: int | None = option(None, _SIDE, "width of the resized image in pixels; None for the original")
    min_pixels: int | None = option(None, _PIXELS, "minimum area in pixels; None for the checkpoint's own")
    max_pixels: int | None = option(None, _PIXELS, "maximum area in pixels; None for the checkpoint's own")
    image_decode: ImageDecode = option("exact", Choice(ImageDecode), "`draft` decodes JPEGs at a reduced scale where the target is much smaller: faster, with slightly different pixels")
    image_encoding: ImageEncoding = option("png", Choice(ImageEncoding), "with `openai`: how pixels are sent: `png`, which is lossless, or `jpeg` (quality 95)")
    image_mode: ImageMode = option("data", Choice(ImageMode), "with `openai`: `data` sends pixels, `url` the http, https and data addresses of the cells, which the server fetches and resizes")

    def _check_combinations(self) -> None:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ConfigError(f"min_pixels={self.min_pixels} exceeds max_pixels={self.max_pixels}. Swap them.")


@dataclass(frozen=True, kw_only=True)
class FetchOptions(Group):
    """Options that read cells, and limit what one image may cost."""

    image_src_type: ImageSrcType = option("auto", Choice(ImageSrcType), "what the cells contain: `image_url` (http, tos, s3 URL or path), `image_base64`, `image_binary`, or `auto` to recognise each value")
    timeout_s: float = option(30.0, Number(0, unit="seconds"), "timeout of fetching one image, in seconds")
    max_image_bytes: int = option(64 * 2**20, Integer(1, unit="bytes"), "maximum size of an encoded image, in bytes")
    max_image_pixels: int = option(89_478_485, Integer(1, unit="pixels"), "maximum size of a decoded image, in pixels (Pillow's own limit)")
    decode_timeout_s: float = option(2.0, Number(0, unit="seconds"), "maximum CPU time of decoding one image, in seconds; larger images get it per 4 MB or 32 megapixels")
    allow_private_hosts: bool = option(True, FLAG, "False blocks hosts in private networks")
    headers: Mapping[str, str] | None = option(None, HEADERS, "HTTP headers of each request, such as `{'User-Agent': 'survey/1.0 (me@example.org)'}`; left out of records, and not forwarded to other hosts")
    extra_schemes: Sequence[str] = option((), SCHEMES, "allowed URL schemes beyond http, https, file, s3, s3a, gs, gcs, tos, hf and data; fsspec reads them")
    local_paths: bool | str = option(True, LOCAL_PATHS, "False blocks local files; a folder allows the files below it")


@dataclass(frozen=True, kw_only=True)
class RunOptions(Group):
    """Options that control a run."""

    prompt: str | None = option(DEFAULT_PROMPT, TEXT, "prompt of rows without their own")
    system_prompt: str | None = option(None, TEXT, "replaces the checkpoint's system prompt")
    start_with: str | None = option(None, TEXT, "beginning of every answer, which the model continues; spaces at its end are left out")
    batch_size: int = option(4, Integer(1), "images per forward pass; at least 1")
    rows_in_flight: RowsInFlight | None = option(None, ROWS_IN_FLIGHT, "rows that generate tokens at once; `auto` sizes them from free memory; None is `batch_size` where that is given, else `auto`")
    strict: bool = option(False, FLAG, "raise for ignored options, instead of a warning")
    on_error: OnError = option("keep", Choice(OnError), "`keep` failed rows as null, or `raise` RowErrors at the end")
    store: str | None = option(None, TEXT, "path of an SQLite file that keeps results; the same call again resumes")
    trust_sources: bool = option(False, FLAG, "with `store`: do not revalidate URLs that were fetched before")
    engine: Engine = option("local", Choice(Engine), "where the run executes: `local` in this process, `daft` in workers on this machine, `ray` on a cluster")
    concurrency: int | None = option(None, Integer(1, none="one worker"), "with `daft` and `ray`: workers, each with its own model; None is 1")
    num_gpus: float | None = option(None, GPU_SHARE, "with `ray`: GPUs per worker; None is 1 on a cluster with GPUs, else 0")
    progress: bool = option(True, FLAG, "show a progress bar with images per second and remaining time")

    def _check_combinations(self) -> None:
        if self.engine == "local" and self.concurrency is not None:
            raise ConfigError(f"concurrency={self.concurrency} requires workers. Add engine='daft' or engine='ray'.")
        if self.engine != "ray" and self.num_gpus is not None:
            raise ConfigError(
                f"num_gpus={self.num_gpus:g} requires engine='ray'. Add it, or select a GPU of this machine with rank=…."
            )


GROUPS: tuple[type[Group], ...] = (ModelOptions, SamplingOptions, ImageOptions, FetchOptions, RunOptions)


def _plain(value: object) -> object:
    """Convert numpy scalars, lists and paths to plain immutable values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list):
        return tuple(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value
