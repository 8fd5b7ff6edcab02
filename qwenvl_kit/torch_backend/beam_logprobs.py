"""Record the log-probabilities of beams while transformers' ``generate`` searches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import LogitsProcessor

if TYPE_CHECKING:
    from torch import Tensor

_Place = list[tuple[int, float]]


class BeamLogprobs(LogitsProcessor):  # type: ignore[misc]  # transformers' bases are untyped
    """Keep what the log-probabilities of the best beam are made of, a few numbers a step.

    ``generate`` itself can only keep the whole vocabulary of each step (``output_logits``): 2.5 GB for 256 steps of 16
    beams over 152,000 tokens. Which tokens are taken is known one step later, and which beams they continue
    (``beam_indices``) at the end, so each step keeps the log-probability that every beam before gives every new token.

    Parameters
    ----------
    n_rows : int
        Rows of the batch.
    n_beams : int
        Beams of each row.
    eos_ids : sequence of int
        Tokens that end an answer.
    n_alternatives : int
        Likeliest tokens to keep in each place.
    """

    def __init__(self, n_rows: int, n_beams: int, eos_ids: Sequence[int], n_alternatives: int) -> None:
        self._n_rows, self._n_beams, self._n_alternatives = n_rows, n_beams, n_alternatives
        self._eos_ids = list(eos_ids)
        self._logprobs: Tensor | None = None  # (B, beams, V) of the newest step
        self._taken: list[Tensor] = []  # (B, beams, new beams) of each step but the newest
        self._ends: list[Tensor] = []  # (B, beams, n_eos)
        self._likeliest: list[tuple[Tensor, Tensor]] = []  # values and ids (B, beams, k)

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """Read the logits of each forward of a model, which processors get only after others have changed them."""
        handle = model.register_forward_hook(lambda _model, _inputs, outputs: self._read(outputs.logits))
        try:
            yield
        finally:
            handle.remove()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Record the step of beams (B·beams, T) that were chosen before; return their scores as they are."""
        logprobs = self._logits.log_softmax(dim=-1).view(self._n_rows, self._n_beams, -1)
        if self._logprobs is not None:
            tokens = input_ids[:, -1].view(self._n_rows, 1, self._n_beams).expand(-1, self._n_beams, -1)
            self._taken.append(self._logprobs.gather(2, tokens))
        self._ends.append(logprobs[:, :, self._eos_ids])
        values, ids = logprobs.topk(min(self._n_alternatives, logprobs.shape[2]))
        self._likeliest.append((values, ids))
        self._logprobs = logprobs
        return scores

    def places(self, row: int, beams: Sequence[int], tokens: Sequence[int]) -> list[_Place]:
        """Return each token of a row's answer with its log-probability, and then the likeliest ones.

        Parameters
        ----------
        row : int
            The row.
        beams : sequence of int
            The beam, of all in the batch, that each token continues: ``generate``'s ``beam_indices``.
        tokens : sequence of int
            The answer, with the token that ended it.
        """
        own = [beam - row * self._n_beams for beam in beams]
        return [
            [(token, float(self._logprob(row, own, at, token))), *self._alternatives(row, own[at], at)]
            for at, token in enumerate(tokens)
        ]

    def _read(self, logits: Tensor) -> None:
        self._logits = logits[:, -1].float()  # (B·beams, V)

    def _logprob(self, row: int, beams: list[int], at: int, token: int) -> Tensor:
        if token in self._eos_ids:
            return self._ends[at][row, beams[at], self._eos_ids.index(token)]
        if at < len(self._taken):
            return self._taken[at][row, beams[at], beams[at + 1]]
        assert self._logprobs is not None, "a token was generated"
        return self._logprobs[row, beams[at], token]

    def _alternatives(self, row: int, beam: int, at: int) -> _Place:
        values, ids = (one[row, beam].tolist() for one in self._likeliest[at])
        return list(zip(ids, values, strict=True))
