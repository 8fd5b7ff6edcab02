"""Read a checkpoint's own generation settings: those that are honoured, and notes for the others.

The caller's options replace sampling, beams and length; transformers' own processors implement the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from qwenvl_kit.checkpoints.capabilities import IgnoredOption
from qwenvl_kit.checkpoints.resolve import CheckpointDefaults

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.checkpoint import Checkpoint
    from qwenvl_kit.options import Config

_HONOURED = (
    *("sequence_bias", "no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens"),
    *("suppress_tokens", "begin_suppress_tokens"),
)
_HONOURED_BY_BEAMS: dict[str, Callable[[Any], bool]] = {
    "length_penalty": lambda value: isinstance(value, int | float),
    "early_stopping": lambda value: value is True or value == "never",
}
_SAMPLING_ONLY = ("min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "renormalize_logits")
# Settings that the caller's options replace, or that change no token.
_HARMLESS = frozenset(
    {
        *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
        *("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "max_length"),
        *("use_cache", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory"),
        *("compile_config", "disable_compile", "continuous_batching_config"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
        # Assisted decoding changes the pace and not the tokens, and needs an assistant that a file cannot give.
        *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
        *("assistant_early_exit", "assistant_lookbehind", "assistant_ensemble_weight", "target_lookbehind"),
        *("prompt_lookup_num_tokens", "max_matching_ngram_size", "speculation_type", "use_mtp"),
        *("transformers_version", "_from_model_config"),
    }
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "length_penalty": (1,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "guidance_scale": (1,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "min_p": (0,),
    "penalty_alpha": (0,),
    "cache_implementation": ("dynamic", "static", "offloaded", "offloaded_static", "hybrid", "sliding_window"),
}


def defaults_of(checkpoint: Checkpoint, config: Config) -> CheckpointDefaults:
    """Return a checkpoint's defaults, with a note for each setting that is not honoured.

    Parameters
    ----------
    checkpoint : Checkpoint
        Its generation config is read.
    config : Config
        Beams and sampling decide which settings have an effect.
    """
    asked = {name: value for name, value in checkpoint.generation.items() if not _is_neutral(name, value)}
    names: tuple[str, ...] = _HONOURED
    if config.num_beams > 1:
        names += tuple(name for name, is_usable in _HONOURED_BY_BEAMS.items() if is_usable(asked.get(name)))
    return CheckpointDefaults(
        str(checkpoint.path),
        "",
        checkpoint.geometry,
        checkpoint.repetition_penalty,
        generation=tuple((name, asked[name]) for name in names if name in asked),
        notes=tuple(
            IgnoredOption(f"generation_config.{name}", value, "generating without it", "a setting of the checkpoint")
            for name, value in asked.items()
            if name not in names and _has_effect(name, config)
        ),
        family=checkpoint.config["model_type"],
    )


def own_processors(
    settings: Mapping[str, Any], prompt_length: int, eos_ids: Sequence[int], device: Any
) -> LogitsProcessorList:
    """Return the processors of a row, in the order of ``generate`` after its penalty.

    Parameters
    ----------
    settings : mapping
        Those of `CheckpointDefaults.generation`.
    prompt_length : int
        Tokens of the row's prompt.
    eos_ids : sequence of int
        Tokens that end an answer.
    device : torch.device
        Where the logits are.
    """
    ends, chain = list(eos_ids), LogitsProcessorList()
    if "no_repeat_ngram_size" in settings:
        chain.append(NoRepeatNGramLogitsProcessor(settings["no_repeat_ngram_size"]))
    if "bad_words_ids" in settings:
        chain.append(NoBadWordsLogitsProcessor(settings["bad_words_ids"], ends))
    if "min_length" in settings:
        chain.append(MinLengthLogitsProcessor(settings["min_length"], ends, device=device))
    if "min_new_tokens" in settings:
        least = settings["min_new_tokens"]
        chain.append(MinNewTokensLengthLogitsProcessor(prompt_length, least, ends, device=device))
    if "suppress_tokens" in settings:
        chain.append(SuppressTokensLogitsProcessor(settings["suppress_tokens"], device=device))
    if "begin_suppress_tokens" in settings:
        tokens = settings["begin_suppress_tokens"]
        chain.append(SuppressTokensAtBeginLogitsProcessor(tokens, prompt_length, device=device))
    return chain


def biases(settings: Mapping[str, Any]) -> LogitsProcessorList:
    """Return the processors that ``generate`` applies before its penalty."""
    bias = settings.get("sequence_bias")
    return LogitsProcessorList([] if bias is None else [SequenceBiasLogitsProcessor(bias)])


def _is_neutral(name: str, value: Any) -> bool:
    if value is None or value is False or value == [] or value == {}:
        return True
    return name in _HARMLESS or value in _NEUTRAL.get(name, ())


def _has_effect(name: str, config: Config) -> bool:
    if name in _SAMPLING_ONLY:
        return config.do_sample or (name == "renormalize_logits" and config.num_beams > 1)
    if name in (*_HONOURED_BY_BEAMS, "diversity_penalty", "num_beam_groups"):
        return config.num_beams > 1
    return not (name == "num_beams" and "num_beams" in config.explicit)
