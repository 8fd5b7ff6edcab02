"""Compile constraints to grammars of llguidance, and follow each answer through its grammar.

https://github.com/guidance-ai/llguidance; an extra of this package.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_kit.errors import ConfigError, MissingExtra, printable

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.checkpoint import Checkpoint
    from qwenvl_kit.types import Constraint

# A space may follow "," and ":", and no white space stands elsewhere. Where it is allowed without a bound, a model can
# repeat it to the token limit (https://github.com/vllm-project/vllm/pull/12744); with none, "[1, 2]" cannot be said.
_JSON = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_MAX_COMPILED = 64
_LARGEST = (99_999, 99_999)  # pixels: at 200:1 an input of 12.8 megapixels, the family's most, has a side of 50,680
_LONGEST_REASON = 300
_NAMES = {"json": "schema", "regex": "regex", "choices": "list of choices"}


def require_llguidance(purpose: str) -> None:
    """Raise `MissingExtra` if llguidance is not installed."""
    if importlib.util.find_spec("llguidance") is None:
        raise MissingExtra(purpose, "schema")


def check_constraint(constraint: Constraint) -> None:
    """Compile a constraint without a tokenizer.

    Raises
    ------
    ConfigError
        llguidance refuses it.
    MissingExtra
        llguidance is not installed.

    Examples
    --------
    >>> from qwenvl_kit.types import Constraint
    >>> check_constraint(Constraint("regex", "(yes|no)"))
    """
    require_llguidance("constraining answers")
    from llguidance import LLMatcher

    is_error, messages = LLMatcher.validate_grammar_with_warnings(_grammar(constraint.at(*_LARGEST)))
    if is_error:
        raise _refusal(constraint, messages[0])


def check_constraints(checkpoint: Checkpoint, constraints: Sequence[Constraint]) -> None:
    """Compile constraints for the tokenizer of a checkpoint, before its weights are read.

    Raises
    ------
    ConfigError
        llguidance refuses one of them, or cannot read the tokenizer.
    MissingExtra
        llguidance is not installed.
    """
    for constraint in constraints:
        grammars_of(checkpoint).matcher(constraint.at(*_LARGEST))


def grammars_of(checkpoint: Checkpoint) -> Grammars:
    """Return the grammars for the tokenizer of a checkpoint or export; those of the last two are kept.

    Raises
    ------
    ConfigError
        llguidance cannot read the tokenizer.
    MissingExtra
        llguidance is not installed.
    """
    return _grammars(checkpoint.path, checkpoint.state)


@functools.lru_cache(maxsize=2)
def _grammars(folder: Path, state: object) -> Grammars:
    from qwenvl_kit.checkpoints.checkpoint import read
    from qwenvl_kit.checkpoints.loading import load_config, load_processor
    from qwenvl_kit.inference.preflight import tokens_of

    checkpoint = read(folder, weights="*")
    processor = load_processor(checkpoint)
    tokens = tokens_of(checkpoint, processor, load_config(checkpoint))
    return Grammars(processor.tokenizer, vocab_size=tokens.vocab_size, eos_ids=tokens.eos_ids, name=str(folder))


class Grammars:
    """Grammars over the tokens of one tokenizer.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerFast
        The tokenizer.
    vocab_size : int
        Tokens of the model; it may have more or fewer than the tokenizer.
    eos_ids : sequence of int
        Tokens that end an answer.
    name : str
        Of the checkpoint, for messages.

    Attributes
    ----------
    n_words : int
        Words of 32 tokens in a mask.

    Raises
    ------
    ConfigError
        llguidance cannot read the tokenizer.
    MissingExtra
        llguidance is not installed.
    """

    def __init__(self, tokenizer: Any, *, vocab_size: int, eos_ids: Sequence[int], name: str) -> None:
        require_llguidance("constraining answers")
        from llguidance import LLParserLimits, LLTokenizer

        try:
            # Ids without a token get no text, so no grammar allows them.
            n_tokens = max(vocab_size, max(tokenizer.get_vocab().values()) + 1)
            self._tokenizer = LLTokenizer(_serialized(tokenizer), n_vocab=n_tokens, eos_token=list(eos_ids))
        except Exception as error:  # whatever the library raises for a file of others
            raise ConfigError(
                f"{name}: llguidance cannot read its tokenizer ({type(error).__name__}: "
                f"{printable(str(error), _LONGEST_REASON)}). Pass constrain=False, or leave regex and choices out."
            ) from error
        self.n_words = -(-n_tokens // 32)
        self._limits = LLParserLimits(verbose_errors=False)
        self._compiled = functools.lru_cache(maxsize=_MAX_COMPILED)(self._compile)

    def matcher(self, constraint: Constraint) -> AnswerMatcher:
        """Return a matcher at the beginning of an answer.

        Raises
        ------
        ConfigError
            llguidance refuses the constraint.
        """
        return AnswerMatcher(self._compiled(constraint).deep_copy())

    def _compile(self, constraint: Constraint) -> Any:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, _grammar(constraint), log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # a pattern that explodes fails here, or in a later step
        if matcher.is_error():
            raise _refusal(constraint, matcher.get_error())
        return matcher


class AnswerMatcher:
    """The place of one answer in its grammar.

    Parameters
    ----------
    matcher : llguidance.LLMatcher
        At the beginning.
    """

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher
        self._n_consumed = 0

    @property
    def error(self) -> str | None:
        """Why the grammar cannot be followed further, such as a limit of its size; None if it can."""
        return printable(self.matcher.get_error(), _LONGEST_REASON) if self.matcher.is_error() else None

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole, and no token can follow."""
        return bool(self.matcher.is_stopped() and not self.matcher.is_error())

    def advance_to(self, output_ids: Sequence[int]) -> None:
        """Consume the tokens of an answer that are new."""
        if len(output_ids) > self._n_consumed:
            self.matcher.consume_tokens(list(output_ids[self._n_consumed :]))
            self._n_consumed = len(output_ids)


def _serialized(tokenizer: Any) -> str:
    """Return a fast tokenizer as JSON, without its normalizer.

    llguidance tokenizes texts that a grammar forces. NFC, which Qwen's tokenizers apply, would give tokens of other
    characters (U+F900 becomes U+8C48), which the grammar then refuses.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({**parts, "normalizer": None, "padding": None, "truncation": None})


def _grammar(constraint: Constraint) -> str:
    from llguidance import LLMatcher

    if constraint.kind == "json":
        grammar: str = LLMatcher.grammar_from_json_schema(constraint.source, overrides=_JSON)
    elif constraint.kind == "regex":
        grammar = LLMatcher.grammar_from_regex(constraint.source)
    else:
        choices = (json.dumps(choice, ensure_ascii=False) for choice in json.loads(constraint.source))
        grammar = LLMatcher.grammar_from_lark(f"start: {' | '.join(choices)}")
    return grammar


def _refusal(constraint: Constraint, reason: str) -> ConfigError:
    return ConfigError(
        f"llguidance refuses the {_NAMES[constraint.kind]}: {printable(reason, _LONGEST_REASON)}. Simplify it."
    )
