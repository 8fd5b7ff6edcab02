"""What was asked and what this machine has go in; what will really run comes out, with a note for each difference.

It decides, and loads nothing: a backend tells it the device, the checkpoint its defaults.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from qwenvl_kit.errors import ConfigError, OptionWarning
from qwenvl_kit.images import Sizing
from qwenvl_kit.options import option_docs

if TYPE_CHECKING:
    from qwenvl_kit.options import Config
    from qwenvl_kit.types import PatchGeometry

SIXTEEN_BIT = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model will run, as a backend found it.

    Attributes
    ----------
    name : str
        ``cpu``, ``cuda:0`` or the like.
    is_cuda : bool
        Whether CUDA computes.
    flash_attention : str or None
        Version of the flash-attn package, None without it.
    """

    name: str
    is_cuda: bool = False
    flash_attention: str | None = None


@dataclass(frozen=True, slots=True)
class CheckpointDefaults:
    """What a checkpoint says where the caller says nothing.

    Attributes
    ----------
    generation : tuple of (str, value)
        Its own generation settings that are honoured.
    notes : tuple of Note
        Its own generation settings that are not.
    """

    model: str
    fingerprint: str
    geometry: PatchGeometry
    repetition_penalty: float = 1.0
    generation: tuple[tuple[str, Any], ...] = ()
    notes: tuple[IgnoredOption, ...] = ()


@dataclass(frozen=True, slots=True)
class IgnoredOption:
    """One option that is not honoured as it stands, and why."""

    option: str
    asked: Any
    resolved: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.option}={self.asked!r} does not take effect ({self.reason}); {self.resolved} runs"


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """What really runs; kept with the results.

    ``answer`` fields of it, the model's fingerprint, the pictures and the prompt decide an answer.
    """

    backend: str
    model: str
    fingerprint: str
    dtype: str
    attention: str
    device: str
    batch_size: int
    max_caption_length: int
    resized_height: int | None
    resized_width: int | None
    min_pixels: int
    max_pixels: int
    decode: str
    do_sample: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    num_beams: int
    repetition_penalty: float
    stop_repetition: bool
    quantization: str | None = None
    provider: str | None = None
    threads: int | None = None
    torch_compile: bool = False
    generation: tuple[tuple[str, Any], ...] = ()
    notes: tuple[IgnoredOption, ...] = field(default=())

    def record(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("notes", "generation")}
        return {**plain, "generation": dict(self.generation), "notes": [str(note) for note in self.notes]}


_ANSWER = (
    "max_caption_length",
    "resized_height",
    "resized_width",
    "min_pixels",
    "max_pixels",
    "decode",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "num_beams",
    "repetition_penalty",
    "stop_repetition",
)


def answer_fields(resolved: ResolvedConfig) -> dict[str, Any]:
    """The values that change an answer, as they really run."""
    values = {name: getattr(resolved, name) for name in _ANSWER}
    # Left out where there are none, so that results stored before these settings were honoured stay valid.
    return {**values, "generation": dict(resolved.generation)} if resolved.generation else values


def resolve(
    config: Config,
    device: Device,
    defaults: CheckpointDefaults,
    *,
    dtype: str | None = None,
    attention: str | None = None,
) -> ResolvedConfig:
    """Decide what will really run.

    Parameters
    ----------
    config : Config
        What was asked.
    device : Device
        Where it will run.
    defaults : CheckpointDefaults
        What the checkpoint says.
    dtype : str, optional
        The only dtype that a backend can run; None where it can run any.
    attention : str, optional
        The only attention that a backend has; None where flash-attention can be had.

    Returns
    -------
    Effective
        With a note for each option that differs from what was asked, or from its default.

    Examples
    --------
    >>> from qwenvl_kit.options import Config
    >>> from qwenvl_kit.types import PatchGeometry
    >>> effective = resolve(Config(), Device("cpu"), CheckpointDefaults("demo", "…", PatchGeometry()))
    >>> effective.attention, [note.option for note in effective.notes]
    ('sdpa', ['use_flash_attention_2'])
    """
    dtype = dtype or config.dtype
    why_not = _why_not_compiled(config)
    compiles = config.torch_compile and why_not is None
    if attention is None:
        attention, notes = _attention(config, device, dtype, compiles=compiles)
    else:
        attention, notes = _only(attention, config)
    geometry = Sizing.of(config, defaults.geometry).geometry
    sampling = config.do_sample
    return ResolvedConfig(
        backend=config.backend,
        model=defaults.model,
        fingerprint=defaults.fingerprint,
        dtype=dtype,
        attention=attention,
        device=device.name,
        batch_size=config.batch_size,
        max_caption_length=config.max_caption_length,
        resized_height=config.resized_height,
        resized_width=config.resized_width,
        min_pixels=geometry.min_pixels,
        max_pixels=geometry.max_pixels,
        decode=config.decode,
        do_sample=sampling,
        temperature=config.temperature if sampling else None,
        top_k=(config.top_k or None) if sampling else None,
        top_p=config.top_p if sampling else None,
        seed=config.seed if sampling else None,
        num_beams=config.num_beams,
        repetition_penalty=_penalty(config, defaults),
        stop_repetition=config.stop_repetition,
        threads=config.threads,
        torch_compile=compiles,
        generation=defaults.generation,
        notes=(
            *notes,
            *_not_compiled(config, why_not),
            *_dropped_sampling(config),
            *_other_dtype(config, dtype),
            *defaults.notes,
        ),
    )


def warn_ignored_options(config: Config, resolved: ResolvedConfig, *, stacklevel: int = 2) -> None:
    """Warn once about options that the caller named and that do not take effect; raise under ``strict=True``.

    Raises
    ------
    ConfigError
        ``strict=True`` and such an option was named.
    """
    named = [str(note) for note in resolved.notes if note.option in config.explicit]
    if not named:
        return
    if config.strict:
        raise ConfigError(f"strict=True: {'; '.join(named)}; leave the option out, or pass strict=False")
    warnings.warn("; ".join(named), OptionWarning, stacklevel=stacklevel + 1)


def asked_record(config: Config) -> dict[str, Any]:
    """What the caller passed, as plain JSON values; of headers their names, since values may be secrets."""
    asked = {name: _plain(getattr(config, name)) for name in sorted(config.explicit)}
    if config.headers is not None:
        asked["headers"] = sorted(config.headers)
    return asked


def _attention(config: Config, device: Device, dtype: str, *, compiles: bool) -> tuple[str, tuple[IgnoredOption, ...]]:
    if not config.use_flash_attention_2:
        return "sdpa", ()
    if not device.is_cuda:
        reason = f"the model runs on {device.name}, not on CUDA"
    elif dtype not in SIXTEEN_BIT:
        reason = f"dtype={dtype!r} has no flash-attention kernel"
    elif device.flash_attention is None:
        reason = "flash-attn is not installed: pip install 'qwenvl_kit[flash]' --no-build-isolation"
    elif compiles:
        reason = "torch_compile=True needs attention of one shape, which flash-attention's is not"
    else:
        return "flash_attention_2", ()
    return "sdpa", (IgnoredOption("use_flash_attention_2", True, "sdpa", reason),)


def _only(attention: str, config: Config) -> tuple[str, tuple[IgnoredOption, ...]]:
    if not config.use_flash_attention_2:
        return attention, ()
    return attention, (
        IgnoredOption("use_flash_attention_2", True, attention, f"backend={config.backend!r} has its own"),
    )


def _why_not_compiled(config: Config) -> str | None:
    if config.backend != "torch":
        return f"backend={config.backend!r} has nothing for torch to compile"
    if config.device_map is not None:
        return "a device_map moves the model's parts about"
    if config.num_beams > 1:
        return f"num_beams={config.num_beams} searches through transformers' generate"
    return None


def _not_compiled(config: Config, why_not: str | None) -> tuple[IgnoredOption, ...]:
    if not config.torch_compile or why_not is None:
        return ()
    return (IgnoredOption("torch_compile", True, "every operator by itself", why_not),)


def _dropped_sampling(config: Config) -> tuple[IgnoredOption, ...]:
    if config.do_sample:
        return ()
    defaults = {option.name: option.default for option in option_docs()}
    runs = "beam search" if config.num_beams > 1 else "greedy search"
    return tuple(
        IgnoredOption(name, getattr(config, name), runs, "do_sample=False")
        for name in ("temperature", "top_k", "top_p")
        if getattr(config, name) != defaults[name]
    )


def _other_dtype(config: Config, dtype: str) -> tuple[IgnoredOption, ...]:
    if dtype == config.dtype:
        return ()
    return (IgnoredOption("dtype", config.dtype, dtype, "the model is stored in another dtype"),)


def _penalty(config: Config, defaults: CheckpointDefaults) -> float:
    return defaults.repetition_penalty if config.repetition_penalty is None else config.repetition_penalty


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
