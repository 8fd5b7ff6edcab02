"""What sampling needs of each row, on the device of the logits, so that a step needs nothing from the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qwenvl_kit.inference.patches import upload
from qwenvl_kit.inference.seeded_noise import counter_gumbel_noise

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.inference.sequence import Sequence

_NEXT, _STEP, _SEED, _TOKENS = range(4)  # columns of the table; tokens fill the rest
_WIDTH_STEP = 64  # tokens by which the table grows


class SamplingRows:
    """Distinct tokens, seed and step of each row, in one int64 table.

    A row whose sequence is another than before, or has other tokens, is written anew from the sequence: after a finish,
    a move, a preemption. All other rows are kept up to date on the device.

    Parameters
    ----------
    keeps_tokens : bool
        Keep the distinct tokens; the repetition penalty needs them.
    """

    def __init__(self, *, keeps_tokens: bool) -> None:
        self._keeps_tokens = keeps_tokens
        self._table = torch.zeros(0, _TOKENS, dtype=torch.int64)  # (rows, 3 + tokens)
        self._held: list[tuple[Sequence, int]] = []  # the sequence of each row, and how many tokens of it are in

    def update(self, sequences: list[Sequence], vocab_size: int, device: torch.device) -> None:
        """Make row i that of sequence i."""
        wanted = [(sequence, sequence.n_tokens) for sequence in sequences]
        held = [*self._held, *[None] * len(wanted)]
        stale = [row for row, one in enumerate(wanted) if one != held[row]]
        self._held = wanted
        if not stale:
            return
        if self._grow(len(wanted), max(self._n_columns(sequences[row]) for row in stale), device):
            stale = list(range(len(wanted)))
        rows = upload(
            torch.tensor([[row, *self._row(sequences[row], vocab_size)] for row in stale], dtype=torch.int64), device
        )
        self._table.index_copy_(0, rows[:, 0], rows[:, 1:])

    def append(self, tokens: Tensor) -> None:
        """Add the token (B,) that each row generated."""
        table = self._table[: len(tokens)]
        if self._keeps_tokens:
            table.scatter_(1, table[:, _NEXT, None].clone(), tokens[:, None])
            table[:, _NEXT] += 1
        table[:, _STEP] += 1
        self._held = [(sequence, n + 1) for sequence, n in self._held]

    def penalize(self, scores: Tensor, penalty: float) -> Tensor:
        """Apply a repetition penalty to scores (B, V) in place, bit for bit as transformers does.

        It gathers and scatters the tokens of each row, and so costs the same for any vocabulary.
        """
        tokens = self._table[: len(scores), _TOKENS:]  # (B, n); padded with a row's first, whose score is the same
        score = scores.gather(1, tokens)
        return scores.scatter_(1, tokens, torch.where(score < 0, score * penalty, score / penalty))

    def noise(self, scores: Tensor) -> Tensor:
        """Return Gumbel noise (B, V) for this step."""
        table = self._table[: len(scores)]
        return counter_gumbel_noise(table[:, _SEED], table[:, _STEP], scores.shape[1])

    def _grow(self, n_rows: int, n_columns: int, device: torch.device) -> bool:
        """Grow the table where it is too small, and return whether it is a new one."""
        held_rows, held_columns = self._table.shape
        if n_rows <= held_rows and n_columns <= held_columns:
            return False
        n_rows = held_rows if n_rows <= held_rows else max(n_rows, 2 * held_rows)
        self._table = torch.zeros(n_rows, max(n_columns, held_columns), dtype=torch.int64, device=device)
        return True

    def _n_columns(self, sequence: Sequence) -> int:
        """Return how many columns a sequence can need."""
        if not self._keeps_tokens:
            return _TOKENS
        n_tokens = len(set(sequence.prompt_ids)) + sequence.request.max_new_tokens
        return _TOKENS + -(-n_tokens // _WIDTH_STEP) * _WIDTH_STEP

    def _row(self, sequence: Sequence, vocab_size: int) -> list[int]:
        """Return a row of the table."""
        step, seed = len(sequence.output_ids), sequence.seed
        if not self._keeps_tokens:
            return [_TOKENS, step, seed]
        # a model may embed more tokens than it can generate
        distinct = dict.fromkeys([*sequence.prompt_ids, *sequence.output_ids])
        tokens = [token for token in distinct if token < vocab_size]
        padding = [tokens[0]] * (self._table.shape[1] - _TOKENS - len(tokens))
        return [_TOKENS + len(tokens), step, seed, *tokens, *padding]
