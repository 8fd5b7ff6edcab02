"""Types of the options, and the keyword arguments of `Config` for type checkers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

ImageSrcType = Literal["auto", "image_url", "image_base64", "image_binary"]
DType = Literal["bfloat16", "float16", "float32"]
ImageDecode = Literal["exact", "draft"]
ImageEncoding = Literal["png", "jpeg"]
ImageMode = Literal["data", "url"]
OnError = Literal["keep", "raise"]
Engine = Literal["local", "daft", "ray"]
DeviceMap = str | Mapping[str, int | str]
MaxMemory = Mapping[int | str, int | str]
RowsInFlight = int | Literal["auto"]


class ModelKeywords(TypedDict, total=False):
    """Keyword arguments of `ModelOptions`."""

    model_path: str
    model_name: str
    adapter: str | None
    backend: str
    dtype: DType
    use_flash_attention_2: bool
    torch_compile: bool
    threads: int | None
    rank: int | None
    device_map: DeviceMap | None
    max_memory: MaxMemory | None
    local_files_only: bool
    base_url: str | None
    api_key_env: str
    extra_body: Mapping[str, object] | None
    request_timeout_s: float


class SamplingKeywords(TypedDict, total=False):
    """Keyword arguments of `SamplingOptions`."""

    max_caption_length: int
    do_sample: bool
    temperature: float
    top_k: int | None
    top_p: float
    seed: int | None
    num_beams: int
    repetition_penalty: float | None
    stop_repetition: bool
    logprobs: int | None


class ImageKeywords(TypedDict, total=False):
    """Keyword arguments of `ImageOptions`."""

    resized_height: int | None
    resized_width: int | None
    min_pixels: int | None
    max_pixels: int | None
    image_decode: ImageDecode
    image_encoding: ImageEncoding
    image_mode: ImageMode


class FetchKeywords(TypedDict, total=False):
    """Keyword arguments of `FetchOptions`."""

    image_src_type: ImageSrcType
    timeout_s: float
    max_image_bytes: int
    max_image_pixels: int
    decode_timeout_s: float
    allow_private_hosts: bool
    headers: Mapping[str, str] | None
    extra_schemes: Sequence[str]
    local_paths: bool | str


class RunKeywords(TypedDict, total=False):
    """Keyword arguments of `RunOptions`."""

    prompt: str | None
    system_prompt: str | None
    start_with: str | None
    batch_size: int
    rows_in_flight: RowsInFlight | None
    strict: bool
    on_error: OnError
    store: str | None
    trust_sources: bool
    engine: Engine
    concurrency: int | None
    num_gpus: float | None
    progress: bool


class Options(ModelKeywords, SamplingKeywords, ImageKeywords, FetchKeywords, RunKeywords, total=False):
    """Keyword arguments of `Config`; a test compares both."""
