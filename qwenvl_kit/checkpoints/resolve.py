"""Resolve the options of a config into what will really run, with a note for each difference.

Nothing is loaded: device and capabilities are the backend's, defaults are the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from qwenvl_kit._warnings import warn
from qwenvl_kit.checkpoints.capabilities import (
    Capabilities,
    Device,
    IgnoredOption,
    check_compilation,
    check_fixed,
    check_sampling,
    check_server_options,
    choose_attention,
    choose_rows_in_flight,
)
from qwenvl_kit.checkpoints.checkpoint import FAMILY
from qwenvl_kit.errors import ConfigError, OptionWarning
from qwenvl_kit.images import Sizing
from qwenvl_kit.options import FORMER_NAMES, ImageOptions, SamplingOptions, names_of

if TYPE_CHECKING:
    from qwenvl_kit.options import Config, RowsInFlight
    from qwenvl_kit.types import PatchGeometry

_EVERYTHING = Capabilities()
_SPELT_OUT = ("notes", "advice", "generation")  # fields that a record holds in another form
_told: set[str] = set()  # advice that this process was warned of
_RECORDED_AS = {current: former for former, current in FORMER_NAMES.items()}  # records keep the first name


@dataclass(frozen=True, slots=True)
class CheckpointDefaults:
    """Values of a checkpoint, for options that the caller leaves out.

    Attributes
    ----------
    model : str
        Its folder.
    fingerprint : str
        Digest of its weights.
    geometry : PatchGeometry
        How its processor cuts images into patches.
    repetition_penalty : float or None
        Of its generation config; 1 is none. None where only the server knows it.
    generation : tuple of (str, value)
        Its own generation settings that are honoured.
    notes : tuple of IgnoredOption
        Its own generation settings that are not.
    family : str
        The ``model_type`` of its config, which decides how its answers name places in an image.
    """

    model: str
    fingerprint: str
    geometry: PatchGeometry
    repetition_penalty: float | None = 1.0
    generation: tuple[tuple[str, Any], ...] = ()
    notes: tuple[IgnoredOption, ...] = ()
    family: str = FAMILY


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """Options as they really run; kept with the results.

    Its `answer_fields`, its fingerprint, the images and the prompt decide an answer. `rows_in_flight` is ``auto`` where
    free memory decides, which is known once the model is loaded. `repetition_penalty` is None where a server applies
    its own. The fields from `base_url` to `extra_body` are those of a server.
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
    repetition_penalty: float | None
    stop_repetition: bool
    logprobs: int | None = None
    quantization: str | None = None
    provider: str | None = None
    threads: int | None = None
    torch_compile: bool = False
    rows_in_flight: RowsInFlight = "auto"
    base_url: str | None = None
    image_encoding: str | None = None
    image_mode: str | None = None
    extra_body: Mapping[str, object] | None = None
    family: str = FAMILY
    generation: tuple[tuple[str, Any], ...] = ()
    notes: tuple[IgnoredOption, ...] = field(default=())
    advice: tuple[str, ...] = field(default=())

    def record(self) -> dict[str, Any]:
        """Return all fields as plain JSON values."""
        plain = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in _SPELT_OUT}
        notes = [*(str(note) for note in self.notes), *self.advice]
        return {**plain, "generation": dict(self.generation), "notes": notes}


_RECORDED = {"image_decode": "decode"}  # the name in records and store keys, which stored results depend on


def answer_fields(resolved: ResolvedConfig) -> dict[str, Any]:
    """Return the values that change an answer, as they really run."""
    options = (*names_of(SamplingOptions), *names_of(ImageOptions))
    values = {name: getattr(resolved, name) for name in (_RECORDED.get(one, one) for one in options)}
    # Left out where there are none, so that results stored before these settings were honoured stay valid.
    for name in ("logprobs", "image_encoding", "image_mode"):
        if values[name] is None:
            del values[name]
    if resolved.extra_body:
        values["extra_body"] = dict(resolved.extra_body)
    return {**values, "generation": dict(resolved.generation)} if resolved.generation else values


def resolve(
    config: Config,
    device: Device,
    defaults: CheckpointDefaults,
    capabilities: Capabilities = _EVERYTHING,
) -> ResolvedConfig:
    """Decide what will really run.

    Parameters
    ----------
    config : Config
        Options, as the caller passed them.
    device : Device
        Where the model will run.
    defaults : CheckpointDefaults
        Values of the checkpoint where the caller passed none.
    capabilities : Capabilities
        What the backend can do.

    Returns
    -------
    ResolvedConfig
        With a note for each option that differs from what was passed, or from its default.

    Raises
    ------
    ConfigError
        The caller passed a value that the backend refuses.

    Examples
    --------
    >>> from qwenvl_kit.checkpoints.capabilities import Device
    >>> from qwenvl_kit.options import Config
    >>> from qwenvl_kit.types import PatchGeometry
    >>> resolved = resolve(Config(), Device("cpu"), CheckpointDefaults("demo", "…", PatchGeometry()))
    >>> resolved.attention, [note.option for note in resolved.notes]
    ('sdpa', ['use_flash_attention_2'])
    """
    unsupported = check_fixed(config, capabilities)
    fixed = {one.option: one.value for one in capabilities.fixed}
    dtype = fixed.get("dtype", config.dtype)
    uncompiled = () if "torch_compile" in fixed else check_compilation(config, device)
    compiles = fixed.get("torch_compile", config.torch_compile) and not uncompiled
    attention, unattended = choose_attention(config, capabilities, device, dtype, compiles=compiles)
    rows_in_flight, unsized = choose_rows_in_flight(config, capabilities)
    misplaced = check_server_options(config, capabilities)
    geometry = Sizing.of(config.image, defaults.geometry).geometry
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
        decode=config.image_decode,
        do_sample=sampling,
        temperature=config.temperature if sampling else None,
        top_k=(config.top_k or None) if sampling else None,
        top_p=config.top_p if sampling else None,
        seed=config.seed if sampling else None,
        num_beams=config.num_beams,
        repetition_penalty=_penalty(config, defaults),
        stop_repetition=config.stop_repetition,
        logprobs=fixed.get("logprobs", config.logprobs),
        threads=config.threads,
        torch_compile=compiles,
        rows_in_flight=rows_in_flight,
        family=defaults.family,
        generation=defaults.generation,
        notes=(*unattended, *unsupported, *uncompiled, *unsized, *check_sampling(config), *misplaced, *defaults.notes),
        advice=device.advice,
    )


def warn_ignored_options(config: Config, resolved: ResolvedConfig) -> None:
    """Issue one warning about the caller's own options that are ignored, and once a process each about the device.

    Raises
    ------
    ConfigError
        An option of the caller is ignored, under ``strict=True``.
    """
    for advice in resolved.advice:
        if advice not in _told:
            warn(advice, OptionWarning)
            _told.add(advice)
    ignored = " ".join(str(note) for note in resolved.notes if note.option in config.explicit)
    if not ignored:
        return
    if config.strict:
        raise ConfigError(f"strict=True: {ignored} Leave the option out, or pass strict=False.")
    warn(ignored, OptionWarning)


def asked_record(config: Config) -> dict[str, Any]:
    """Return the caller's options as plain JSON values; of headers the names only, since values may be secrets."""
    asked = {_RECORDED_AS.get(name, name): _plain(getattr(config, name)) for name in sorted(config.explicit)}
    if config.headers is not None:
        asked["headers"] = sorted(config.headers)
    return asked


def _penalty(config: Config, defaults: CheckpointDefaults) -> float | None:
    """Return a float, since transformers takes no int."""
    penalty = defaults.repetition_penalty if config.repetition_penalty is None else config.repetition_penalty
    return None if penalty is None else float(penalty)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
