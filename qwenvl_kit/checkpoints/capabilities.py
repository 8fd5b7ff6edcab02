"""Compare the options of a config with what a backend and a device can do.

A backend states its `Capabilities`. Each option beyond them becomes an `IgnoredOption`, or is refused where the caller
passed it and another value would give an answer of another kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.options import option_docs

if TYPE_CHECKING:
    from qwenvl_kit.options import Config, RowsInFlight

_SERVER_OPTIONS = ("base_url", "api_key_env", "extra_body", "request_timeout_s", "image_encoding", "image_mode")
SIXTEEN_BIT = ("bfloat16", "float16")
NO_FLASH_ATTENTION = "flash-attn is not installed: pip install 'qwenvl_kit[flash]' --no-build-isolation"


@dataclass(frozen=True, slots=True)
class Device:
    """A device that a model runs on.

    Attributes
    ----------
    name : str
        ``cpu``, ``cuda:0`` or the like.
    is_cuda : bool
        Whether CUDA computes.
    flash_attention : str or None
        Version of the flash-attn package; None where it cannot be used.
    flash_fault : str
        Why it cannot be used.
    capability : (int, int) or None
        Compute capability of its oldest GPU; None on a CPU.
    spans : bool
        A device map certainly places modules on several devices.
    advice : tuple of str
        What the caller should know about it, such as a dtype that it computes slowly.
    """

    name: str
    is_cuda: bool = False
    flash_attention: str | None = None
    flash_fault: str = NO_FLASH_ATTENTION
    capability: tuple[int, int] | None = None
    spans: bool = False
    advice: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedOption:
    """An option of which a backend supports one value.

    Attributes
    ----------
    option : str
        Its name.
    value : object
        The value that runs.
    reason : str
        Why no other does, such as ``backend='onnx' does not support beam search``.
    instead : str
        What happens in place of another value, such as ``running in eager mode``.
    remedy : str
        What to do. Where it is given, another value that the caller passed is refused and not ignored.
    """

    option: str
    value: Any
    reason: str
    instead: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend can do; everything, where nothing is stated.

    Attributes
    ----------
    fixed : tuple of FixedOption
        Options of which it supports one value.
    attention : str or None
        Its only attention; None where dtype and device decide between sdpa and flash-attention.
    rows_in_flight : int or "auto"
        How many rows generate tokens at once where the caller does not say.
    is_server : bool
        The model runs in a server, which gets the options of one.
    """

    fixed: tuple[FixedOption, ...] = ()
    attention: str | None = None
    rows_in_flight: RowsInFlight = "auto"
    is_server: bool = False


@dataclass(frozen=True, slots=True)
class IgnoredOption:
    """An option that is not honoured as it stands, and why.

    Attributes
    ----------
    option : str
        Its name.
    asked : object
        Its value.
    instead : str
        What happens instead, such as ``using sdpa``.
    reason : str
        Why.
    remedy : str
        What to do; empty where a caller who passed the option is warned only.
    """

    option: str
    asked: Any
    instead: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.option}={self.asked!r} is ignored ({self.reason}); {self.instead}."


def check_fixed(config: Config, capabilities: Capabilities) -> tuple[IgnoredOption, ...]:
    """Return options with a value that the backend does not support.

    Raises
    ------
    ConfigError
        The caller passed such a value, and the backend refuses it.
    """
    ignored = tuple(
        IgnoredOption(one.option, getattr(config, one.option), one.instead, one.reason, one.remedy)
        for one in capabilities.fixed
        if getattr(config, one.option) != one.value
    )
    refused = [one for one in ignored if one.remedy and one.option in config.explicit]
    if refused:
        raise ConfigError(" ".join(f"{one.reason} ({one.option}={one.asked!r}). {one.remedy}" for one in refused))
    return ignored


def choose_attention(
    config: Config, capabilities: Capabilities, device: Device, dtype: str, *, compiles: bool
) -> tuple[str, tuple[IgnoredOption, ...]]:
    """Return the attention that runs, with a note where flash-attention was asked for and cannot."""
    attention, reason = _attention(config, capabilities, device, dtype, compiles=compiles)
    if reason is None or not config.use_flash_attention_2:
        return attention, ()
    return attention, (IgnoredOption("use_flash_attention_2", True, f"using {attention}", reason),)


def check_compilation(config: Config, device: Device) -> tuple[IgnoredOption, ...]:
    """Return a note where another option excludes compiled decode steps."""
    if not config.torch_compile:
        return ()
    if device.spans:
        reason = f"device_map={config.device_map!r} moves modules between devices"
    elif config.num_beams > 1:
        reason = f"num_beams={config.num_beams} runs through transformers' generate"
    else:
        return ()
    return (IgnoredOption("torch_compile", True, "running in eager mode", reason),)


def choose_rows_in_flight(config: Config, capabilities: Capabilities) -> tuple[RowsInFlight, tuple[IgnoredOption, ...]]:
    """Return how many rows generate tokens at once, with a note where another number was asked for and cannot be."""
    asked = config.rows_in_flight
    if any(one.option == "rows_in_flight" for one in capabilities.fixed):
        return config.batch_size, ()
    if config.num_beams > 1:
        reason = f"num_beams={config.num_beams} runs through transformers' generate"
        instead = f"searching for batch_size={config.batch_size} rows at once"
        note = IgnoredOption("rows_in_flight", asked, instead, reason)
        return config.batch_size, () if asked is None else (note,)
    if asked is None:
        return config.batch_size if "batch_size" in config.explicit else capabilities.rows_in_flight, ()
    return asked, ()


def check_sampling(config: Config) -> tuple[IgnoredOption, ...]:
    """Return sampling options that differ from their defaults though nothing is sampled."""
    if config.do_sample:
        return ()
    defaults = _defaults()
    search = "using beam search" if config.num_beams > 1 else "using greedy search"
    return tuple(
        IgnoredOption(name, getattr(config, name), search, "do_sample=False")
        for name in ("temperature", "top_k", "top_p")
        if getattr(config, name) != defaults[name]
    )


def check_server_options(config: Config, capabilities: Capabilities) -> tuple[IgnoredOption, ...]:
    """Return options of a server that differ from their defaults though the model runs here."""
    if capabilities.is_server:
        return ()
    defaults, reason = _defaults(), f"backend={config.backend!r} sends nothing to a server"
    return tuple(
        IgnoredOption(name, getattr(config, name), "running without it", reason)
        for name in _SERVER_OPTIONS
        if getattr(config, name) != defaults[name]
    )


def _defaults() -> dict[str, Any]:
    return {option.name: option.default for option in option_docs()}


def _attention(
    config: Config, capabilities: Capabilities, device: Device, dtype: str, *, compiles: bool
) -> tuple[str, str | None]:
    """Return the attention that runs, and why flash-attention does not."""
    if capabilities.attention is not None:
        return capabilities.attention, f"backend={config.backend!r} has its own attention"
    if not config.use_flash_attention_2:
        return "sdpa", None
    if not device.is_cuda:
        return "sdpa", f"the model runs on {device.name}, not on CUDA"
    if dtype not in SIXTEEN_BIT:
        return "sdpa", f"dtype={dtype!r} has no flash-attention kernel"
    if device.flash_attention is None:
        return "sdpa", device.flash_fault
    if compiles:
        return "sdpa", "torch_compile=True needs attention over a fixed shape"
    return "flash_attention_2", None
