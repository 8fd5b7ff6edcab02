"""Forbid the tokens that constraints forbid, for all rows of a step at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qwenvl_kit.errors import RowError
from qwenvl_kit.inference.patches import upload

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from qwenvl_kit.inference.constraints import Grammars
    from qwenvl_kit.inference.sequence import Sequence

    Packed = NDArray[np.int32]  # (B, words): a bit for each token that may follow


class ConstraintMasks:
    """Masks of the rows of a step.

    Parameters
    ----------
    grammars : callable
        Return the grammars for the tokenizer; called once a row has a constraint.
    """

    def __init__(self, grammars: Callable[[], Grammars]) -> None:
        self._grammars = grammars
        self._executor: Any = None

    def apply(self, logits: Tensor, sequences: list[Sequence]) -> None:
        """Set the logits (B, V) of forbidden tokens to -inf; other rows than the constrained ones stay as they are.

        A row that cannot go on gets an `error`.
        """
        packed = self._allowed(sequences, logits.shape[1])
        if packed is not None:
            logits.masked_fill_(_forbidden(packed, logits.shape[1], logits.device), -torch.inf)

    def _allowed(self, sequences: list[Sequence], vocab_size: int) -> Packed | None:
        """Return the tokens that may follow each row; None where no row goes on under a constraint."""
        rows = [at for at, sequence in enumerate(sequences) if self._advance(sequence)]
        if not rows:
            return None
        masks = self._fill([sequences[at] for at in rows])
        n_words = min(
            -(-vocab_size // 32), masks.shape[1]
        )  # the tokenizer may have more tokens than its model, or fewer
        packed: Packed = np.full((len(sequences), -(-vocab_size // 32)), -1, np.int32)
        packed[rows] = 0
        packed[rows, :n_words] = masks[:, :n_words]
        if vocab_size % 32:
            packed[:, -1] &= (1 << vocab_size % 32) - 1
        for at in rows:
            self._stop_if_stuck(sequences[at], packed[at])
        return packed

    def _fill(self, sequences: list[Sequence]) -> Packed:
        """Return the masks of constrained rows, computed in parallel."""
        if self._executor is None:
            from llguidance import LLExecutor

            self._executor = LLExecutor()
        masks: Packed = np.zeros((len(sequences), self._grammars().n_words), np.int32)
        matchers = [(one.matcher.matcher, at) for at, one in enumerate(sequences) if one.matcher is not None]
        self._executor.unsafe_compute_mask_ptr(matchers, masks.ctypes.data, masks.strides[0], len(masks))
        return masks

    def _stop_if_stuck(self, sequence: Sequence, allowed: Packed) -> None:
        """Give a row that cannot go on its error, and any token, so that its logits stay finite."""
        reason = None if sequence.matcher is None else sequence.matcher.error
        if reason is None and not allowed.any():
            reason = "no token of the model can follow"
        if reason is not None:
            allowed[:] = -1
            _stop(sequence, reason)

    def _advance(self, sequence: Sequence) -> bool:
        """Return whether a row has a constraint and can go on; its matcher is made before its first token."""
        constraint = sequence.request.constraint
        if constraint is None or sequence.error is not None:
            return False
        try:
            if sequence.matcher is None:
                sequence.matcher = self._grammars().matcher(constraint)
            sequence.matcher.advance_to(sequence.output_ids)
        except Exception as error:  # noqa: BLE001  # a grammar or a tokenizer of others; free rows go on
            _stop(sequence, str(error))
            return False
        return True


def _forbidden(packed: Packed, vocab_size: int, device: torch.device) -> Tensor:
    """Return which tokens may not follow, bool (B, V)."""
    if device.type == "cpu":  # five times as fast as shifts of a tensor
        bits = np.unpackbits(np.invert(packed).view(np.uint8), axis=1, count=vocab_size, bitorder="little")
        return torch.from_numpy(bits).view(torch.bool)
    words = upload(torch.from_numpy(np.ascontiguousarray(packed)), device)  # a 32nd of the mask's bytes
    shifts = torch.arange(32, dtype=torch.int32, device=device)
    return ((words[:, :, None] >> shifts) & 1).flatten(1)[:, :vocab_size] == 0


def _stop(sequence: Sequence, reason: str) -> None:
    sequence.error = RowError("generate", f"The answer cannot follow its constraint: {reason}. Simplify it.")
