"""Sampling options as parameters of a chat completion, under the names of vLLM and SGLang beside OpenAI's own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig

OPTION_OF = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "repetition_penalty": "repetition_penalty",
    "logprobs": "logprobs",
    "top_logprobs": "logprobs",
    "max_tokens": "max_caption_length",
    "max_completion_tokens": "max_caption_length",
}
"""Parameters, and the options that set them."""

_OWN_OPTIONS = {
    **OPTION_OF,
    "model": "model_name",
    "messages": "prompt and system_prompt",
    "response_format": "df.vl.extract",
    "structured_outputs": "regex or choices of df.vl.ask",
    "guided_regex": "regex of df.vl.ask",
    "guided_choice": "choices of df.vl.ask",
    "regex": "regex of df.vl.ask",
}
_FIXED = ("stream", "stream_options", "n")
_NO_TOP_K = -1  # of vLLM and SGLang; left out, the checkpoint's own would run


def parameters(
    resolved: ResolvedConfig, max_new_tokens: int, seed: int | None, refused: Collection[str] = ()
) -> dict[str, Any]:
    """Return the parameters of one row's request, without messages.

    Parameters
    ----------
    resolved : ResolvedConfig
        How answers are made.
    max_new_tokens : int
        Longest answer.
    seed : int or None
        Of the row.
    refused : collection of str
        Parameters that the server refuses, which are left out. ``max_completion_tokens`` takes the place of
        ``max_tokens``.
    """
    found: dict[str, Any] = {"max_tokens": max_new_tokens, "temperature": 0.0}
    if resolved.do_sample:
        sampled = {"temperature": resolved.temperature, "top_p": resolved.top_p, "top_k": resolved.top_k, "seed": seed}
        found.update({name: value for name, value in sampled.items() if value is not None})
        if resolved.top_k is None:
            found["top_k"] = _NO_TOP_K
    if resolved.repetition_penalty is not None:
        found["repetition_penalty"] = resolved.repetition_penalty
    if resolved.logprobs is not None:
        found |= {"logprobs": True, "top_logprobs": resolved.logprobs}
    found |= {"stream": True, "stream_options": {"include_usage": True}}
    if "max_tokens" in refused:
        found["max_completion_tokens"] = max_new_tokens
    return {**{name: value for name, value in found.items() if name not in refused}, **(resolved.extra_body or {})}


def check_extra_body(extra_body: Mapping[str, object] | None) -> None:
    """Check that further fields replace none that an option sets, so that the record holds what ran.

    Raises
    ------
    ConfigError
        A field belongs to an option, or to this package.
    """
    for name in extra_body or {}:
        if name in _OWN_OPTIONS:
            raise ConfigError(f"extra_body sets {name!r}, which is the option {_OWN_OPTIONS[name]}. Pass that instead.")
        if name in _FIXED:
            raise ConfigError(f"extra_body sets {name!r}, which qwenvl_kit sets itself. Leave it out.")
