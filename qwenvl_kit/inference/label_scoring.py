"""Score the labels of a prompt: the log-likelihood of each as the whole answer."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from qwenvl_kit.inference.packing import pack_sizes

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.inference.model_runner import ModelRunner
    from qwenvl_kit.inference.sequence import Sequence

_MAX_TOKENS = 512  # of the labels in one pass: their logits over a vocabulary of 152,000 take 5 MB a block of 8


class LabelScorer:
    """Score the labels of sequences whose prompts are prefilled.

    A label is scored as a whole: log p(label) is the sum over its tokens and the end of the turn of the log-probability
    of each given those before it, from logits without penalty or temperature.

    Parameters
    ----------
    model_runner : ModelRunner
        Holds the prompts in its cache.
    end_id : int
        The token that ends a turn: the first of the checkpoint's end tokens.
    """

    def __init__(self, model_runner: ModelRunner, end_id: int) -> None:
        self._model_runner, self._end_id = model_runner, end_id

    def score(self, sequence: Sequence, slot: int, logits: Tensor) -> None:
        """Finish a sequence with its scores, given the logits (V,) of its prompt's last token."""
        answers = [[*ids, self._end_id] for ids in sequence.label_ids]
        first = logits.log_softmax(dim=0)
        scores: list[float] = []
        for batch in pack_sizes([len(ids) for ids in answers], _MAX_TOKENS):
            scores += self._score_batch(sequence, slot, first, [answers[at] for at in batch])
        sequence.score_labels(scores, n_tokens=[len(ids) for ids in answers])

    def _score_batch(self, sequence: Sequence, slot: int, first: Tensor, answers: Seq[Seq[int]]) -> list[float]:
        n_cached, position = len(sequence.prompt_ids), sequence.position + 1
        rest = self._model_runner.score(slot, n_cached, position, answers)
        # in double precision: float32 itself is 3e-5 coarse at a log-likelihood of -300
        return [math.fsum([float(first[ids[0]]), *after.tolist()]) for ids, after in zip(answers, rest, strict=True)]
