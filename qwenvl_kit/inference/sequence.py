"""One request while it is finished: what it has said, what it reads next, whom it tells.

Slots, batches and models are unknown here.
"""

from __future__ import annotations

import bisect
import itertools
import secrets
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import torch

from qwenvl_kit.inference.mrope import mrope_positions
from qwenvl_kit.inference.repetition import repeated_phrase
from qwenvl_kit.inference.seeded_noise import SeededGumbelNoise

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.inference.processor import Encoded
    from qwenvl_kit.types import FinishReason

_LOOK_FOR_LOOPS_EVERY = 16  # tokens; a loop does not go away


class Sequence:
    """A request on its way to an answer.

    Everything it needs to be read again is here, so a row that lost its place in memory goes on where it stopped.

    Parameters
    ----------
    encoded : Encoded
        The request.
    image_id, merge : int
        See `mrope_positions`.
    device : torch.device
        Where logits are.

    Attributes
    ----------
    output_ids : list of int
        New tokens so far.
    finish_reason : {"stop", "length", "repetition"} or None
        Why there are no more.
    overflowed : bool
        Its logits were not finite.
    seconds : float
        Its share of the time so far.
    noise : SeededGumbelNoise
        Its own random draws, of which nothing is drawn unless it samples.
    """

    def __init__(self, encoded: Encoded, *, image_id: int, merge: int, device: torch.device) -> None:
        self.encoded = encoded
        self.output_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.overflowed = False
        self.seconds = 0.0
        seed = encoded.request.seed
        self.noise = SeededGumbelNoise([secrets.randbits(63) if seed is None else seed], device)
        self._told = ""
        grids = [(int(frames), int(rows), int(columns)) for frames, rows, columns in encoded.grid.tolist()]
        self._prompt_positions, self._following = mrope_positions(encoded.ids, grids, image_id=image_id, merge=merge)
        self._visual = [at for at, token in enumerate(encoded.ids) if token == image_id]  # places of visual tokens
        ends = itertools.accumulate(frames * rows * columns // merge**2 for frames, rows, columns in grids)
        self._shown_before = [0, *ends]  # visual tokens of the pictures before each, and of all
        n_most = len(encoded.ids) + encoded.request.max_new_tokens
        self._ids = torch.zeros(n_most, dtype=torch.long)  # prompt and answer, filled from the front
        self._ids[: len(encoded.ids)] = torch.tensor(encoded.ids)

    @property
    def is_done(self) -> bool:
        """Whether nothing more is to be generated."""
        return self.finish_reason is not None or self.overflowed

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt and of the answer so far; after a step all but the last are in the row's slot."""
        return len(self.encoded.ids) + len(self.output_ids)

    @property
    def max_len(self) -> int:
        """Tokens that its slot must be able to hold."""
        return len(self._ids)

    @property
    def position(self) -> int:
        """Position of its newest token."""
        return self._following + len(self.output_ids) - 1

    @property
    def ids(self) -> Tensor:
        """Prompt and answer so far, int64 (T,)."""
        return self._ids[: self.n_tokens]

    def positions(self) -> Tensor:
        """M-RoPE positions of `ids`, int64 (3, T)."""
        ahead = self._following + torch.arange(len(self.output_ids))
        return torch.cat([torch.from_numpy(self._prompt_positions), ahead.expand(3, -1)], dim=1)

    def shared_prefix_len(self, other: Sequence) -> int:
        """Tokens that its prompt and another row's begin with alike; a picture is shared whole or not at all."""
        if self.output_ids:
            return 0
        n_most = min(len(self.encoded.ids) - 1, len(other.encoded.ids))  # at least one token is left to read
        differ = (self._ids[:n_most] != other._ids[:n_most]).nonzero()
        n_alike = int(differ[0]) if len(differ) else n_most
        for at, image_key in enumerate(self.encoded.image_keys):
            first, last = self._visual[self._shown_before[at]], self._visual[self._shown_before[at + 1] - 1]
            if first >= n_alike:
                break
            if last >= n_alike or image_key != other.encoded.image_keys[at]:
                return first
        return n_alike

    def n_visual_in(self, length: int) -> int:
        """How many of its first tokens are visual ones."""
        return bisect.bisect_left(self._visual, length)

    def append_token(self, token: int | None, eos_ids: Collection[int], *, stops_loops: bool) -> None:
        """Take the next token and see whether it is the last; None stands for logits that are not finite."""
        if token is None:
            self.overflowed = True
        elif token in eos_ids:
            self.finish_reason = "stop"
        else:
            self._ids[self.n_tokens] = token
            self.output_ids.append(token)
            if len(self.output_ids) >= self.encoded.request.max_new_tokens:
                self.finish_reason = "length"
            elif stops_loops and len(self.output_ids) % _LOOK_FOR_LOOPS_EVERY == 0 and repeated_phrase(self.output_ids):
                self.finish_reason = "repetition"

    def emit_text(self, decode: Callable[[list[int]], str], listener: Callable[[int, str], None]) -> None:
        """Hand what is new of the text to a listener; a character of several tokens waits until it or the row ends."""
        try:
            text = decode(self.output_ids)
        except Exception:  # noqa: BLE001  # told as the row's error when the answer is decoded
            return
        is_cut = text.endswith("\ufffd") and not self.is_done
        if is_cut or len(text) <= len(self._told):
            return
        new, self._told = text[len(self._told) :], text
        listener(self.encoded.request.row, new)
