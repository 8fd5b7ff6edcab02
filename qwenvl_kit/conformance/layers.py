"""Judge the answers of all rounds: a verdict for each layer of an engine.

Rounds that ask the same in another way are compared with the engine's own answers to the base round, so that a fault in
one layer is not seen in the others. The rest is compared with the reference where the base round is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from qwenvl_kit.conformance.agreement import Tally, tally
from qwenvl_kit.conformance.diagnosis import Cause, diagnose
from qwenvl_kit.conformance.variants import NO_PENALTY, REVERSED

if TYPE_CHECKING:
    from qwenvl_kit.conformance.cases import Round
    from qwenvl_kit.conformance.engines import Reference
    from qwenvl_kit.types import Result

Outcome = Literal["pass", "fail", "unclear", "not tried"]

LOOSE = 0.5
"""Nats that other decoders and other interpolations of pixels may change, where these take part."""

_MAX_LOOSE_SHARE = 0.25  # of answers that may differ there
_CORE = (  # layers of which the base round tells
    *("preprocessing", "M-RoPE", "window attention", "visual tokens"),
    *("precision", "stop tokens", "box coordinates", "log-probabilities"),
)
_AS_BASE = "the base round is wrong, which may explain this"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found of a layer.

    Attributes
    ----------
    layer : str
    outcome : {"pass", "fail", "unclear", "not tried"}
        ``unclear`` where a fault of another layer hides this one.
    n_cases, n_differ : int
        Answers that were compared, and those that differ.
    logprob_difference : float or None
        Largest difference in nats; None where the engine gives no log-probabilities.
    words : str
        What is wrong; empty for ``pass``.
    """

    layer: str
    outcome: Outcome
    n_cases: int = 0
    n_differ: int = 0
    logprob_difference: float | None = None
    words: str = ""


class Judge:
    """Judge an engine's answers.

    Parameters
    ----------
    asked : mapping of str to Round
        The rounds.
    found : mapping of str to sequence of Result
        The engine's answers to them.
    reference : Reference
        The right answers.
    tolerance : float
        Largest difference of log-probabilities, in nats.
    default_penalty : float
        Repetition penalty of the engine's checkpoint.
    """

    def __init__(
        self,
        asked: Mapping[str, Round],
        found: Mapping[str, Sequence[Result]],
        reference: Reference,
        *,
        tolerance: float,
        default_penalty: float,
    ) -> None:
        self._asked, self._found, self._reference = asked, found, reference
        self._tolerance, self._penalty = tolerance, default_penalty
        self._base = self._against_reference("base", tolerance)
        self._cause = self._diagnosed() if self._base.n_differ else None

    def verdicts(self) -> list[Verdict]:
        """Return the verdicts, layer by layer."""
        core = [self._core(layer) for layer in _CORE]
        if self._cause is not None and self._cause.layer not in (*_CORE, "chat template", "repetition penalty"):
            core.insert(0, self._failed(self._cause.layer, self._base, self._cause.words))
        return [
            *core,
            self._exif(),
            self._resizing(),
            self._image_order(),
            self._isolation(),
            self._padding(),
            self._repetition_penalty(),
            self._chat_template(),
            self._long_prompts(),
        ]

    def _diagnosed(self) -> Cause:
        return diagnose(self._asked["base"], self._found["base"], self._reference, self._tolerance)

    def _core(self, layer: str) -> Verdict:
        if self._cause is None:
            no_logprobs = layer == "log-probabilities" and self._base.logprob_difference is None
            words = "the engine gives none" if no_logprobs else ""
            return self._verdict(layer, "not tried" if no_logprobs else "pass", self._base, words)
        if self._cause.layer == layer:
            return self._failed(layer, self._base, self._cause.words)
        return self._verdict(layer, "unclear", self._base, _AS_BASE)

    def _exif(self) -> Verdict:
        tolerance = max(LOOSE, self._tolerance)
        known = self._against_itself("turned", tolerance)
        if not self._is_wrong(known, tolerance):
            return self._verdict("EXIF", "pass", known)
        return self._failed("EXIF", known, "images with an EXIF orientation are not answered like the upright ones")

    def _resizing(self) -> Verdict:
        tolerance = max(LOOSE, self._tolerance)
        known = self._against_itself("unsized", tolerance)
        if self._cause is None and self._asked["long images"].cases:
            known += self._against_reference("long images", tolerance)
        if not self._is_wrong(known, tolerance):
            return self._verdict("resizing", "pass", known)
        words = "images that the engine resizes are not answered like those that have their size already"
        return self._failed("resizing", known, words)

    def _image_order(self) -> Verdict:
        known = self._against_reference("two images", self._tolerance)
        words = "the answers about two images differ"
        if self._is_wrong(known) and self._cause is None:
            swapped = self._reference.ask(self._asked["two images"], REVERSED)
            if not tally(self._found["two images"], swapped, self._tolerance).n_differ:
                words = "the images are swapped"
        return self._by_reference("image order", known, words)

    def _isolation(self) -> Verdict:
        known, others = self._against_itself("alike", self._tolerance), self._n_of_others()
        if not (self._is_wrong(known) or others):
            return self._verdict("batch isolation", "pass", known)
        words = "rows that are asked at once have other answers than alone, though none is padded"
        return self._failed("batch isolation", known, f"{words}; {others} have that of another row")

    def _padding(self) -> Verdict:
        known = self._against_itself("by two", self._tolerance) + self._against_itself("by seven", self._tolerance)
        if not self._is_wrong(known):
            return self._verdict("padding", "pass", known)
        if self._isolation().outcome == "fail":
            return self._verdict("padding", "unclear", known, "rows of one length depend on each other already")
        words = "rows of unequal length that are asked at once have other answers than alone: padding, or its mask"
        return self._failed("padding", known, words)

    def _repetition_penalty(self) -> Verdict:
        layer = "repetition penalty"
        if self._cause is not None and self._cause.layer == layer:
            return self._failed(layer, self._base, self._cause.words)
        if self._penalty == 1:
            return self._verdict(layer, "not tried", Tally(()), "the checkpoint has none; export it and load that")
        asked = replace(self._asked["default penalty"], penalty=self._penalty)
        known = tally(self._found["default penalty"], self._reference.ask(asked), self._tolerance)
        words = f"the checkpoint's own penalty of {self._penalty:g} is not what runs by default"
        if self._cause is None and known.n_differ:
            without = self._reference.ask(asked, NO_PENALTY)
            if not tally(self._found["default penalty"], without, self._tolerance).n_differ:
                words = f"the checkpoint's own penalty of {self._penalty:g} is dropped"
        return self._by_reference(layer, known, words)

    def _chat_template(self) -> Verdict:
        layer = "chat template"
        if self._cause is not None and self._cause.layer == layer:
            return self._failed(layer, self._base, self._cause.words)
        known = self._against_itself("no system prompt", self._tolerance)
        if self._is_wrong(known):
            return self._failed(layer, known, "requests without a system prompt do not get the default one")
        if self._cause is not None:
            return self._verdict(layer, "pass", known)
        other = self._against_reference("other system prompt", self._tolerance)
        return self._by_reference(layer, known + other, "system prompts are not what the requests say")

    def _long_prompts(self) -> Verdict:
        known = self._against_reference("long prompt", self._tolerance)
        return self._by_reference("long prompts", known, "long prompts are cut, refused or read otherwise")

    def _n_of_others(self) -> int:
        """Count answers of batches that are wrong and those of another row."""
        own = self._found["base"]
        texts = {one.text for one in own}
        pairs = [
            (one.text, own[case.twin].text)
            for name in ("alike", "by two", "by seven")
            for case, one in zip(self._asked[name].cases, self._found[name], strict=True)
            if case.twin is not None
        ]
        return sum(text != right and text in texts for text, right in pairs)

    def _against_itself(self, name: str, tolerance: float) -> Tally:
        own = self._found["base"]
        expected = [own[case.twin] for case in self._asked[name].cases if case.twin is not None]
        return tally(self._found[name], expected, tolerance)

    def _against_reference(self, name: str, tolerance: float) -> Tally:
        return tally(self._found[name], self._reference.ask(self._asked[name]), tolerance)

    def _is_wrong(self, known: Tally, tolerance: float | None = None) -> bool:
        """Return whether an answer differs; with a loose tolerance, whether more than a quarter do."""
        is_loose = (self._tolerance if tolerance is None else tolerance) >= LOOSE
        return known.n_differ > (_MAX_LOOSE_SHARE * len(known.agreements) if is_loose else 0)

    def _by_reference(self, layer: str, known: Tally, words: str) -> Verdict:
        if not self._is_wrong(known):
            return self._verdict(layer, "pass", known)
        if self._cause is not None:
            return self._verdict(layer, "unclear", known, _AS_BASE)
        return self._failed(layer, known, words)

    def _failed(self, layer: str, known: Tally, words: str) -> Verdict:
        return self._verdict(layer, "fail", known, words)

    @staticmethod
    def _verdict(layer: str, outcome: Outcome, known: Tally, words: str = "") -> Verdict:
        return Verdict(
            layer=layer,
            outcome=outcome,
            n_cases=len(known.agreements),
            n_differ=known.n_differ,
            logprob_difference=known.logprob_difference,
            words=words,
        )
