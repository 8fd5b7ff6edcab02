"""State of one request during generation."""

from __future__ import annotations

import bisect
import itertools
import math
import secrets
from collections.abc import Callable, Collection
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

import torch

from qwenvl_kit.inference.mrope import mrope_positions
from qwenvl_kit.inference.repetition import repeated_phrase

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.attribution import AnswerMaps
    from qwenvl_kit.inference.constraints import AnswerMatcher
    from qwenvl_kit.inference.seeded_noise import SeededGumbelNoise
    from qwenvl_kit.types import FinishReason, Request

_REPETITION_CHECK_INTERVAL = 16  # tokens; a loop does not go away

ImageKey = tuple[str, tuple[int, int]]  # digest and size: equal for images with equal pixels


class Sequence:
    """A request with the tokens generated so far.

    It holds all that a prefill needs, so a preempted sequence resumes where it stopped.

    Parameters
    ----------
    request : Request
        The request.
    prompt_ids : list of int
        Token ids of the prompt, one for each visual token.
    grid : int64 Tensor (n_images, 3)
        Frames, rows and columns of patches of each image.
    image_id : int
        The id of a visual token.
    merge : int
        Patches per side that become one visual token.

    Attributes
    ----------
    start_ids : list of int
        Tokens at the end of the prompt that begin the answer.
    output_ids : list of int
        Generated tokens, without the one that ended the answer.
    finish_reason : {"stop", "length", "repetition"} or None
        Why generation ended; None while it goes on.
    overflowed : bool
        Its logits were NaN or infinite.
    label_ids : tuple of tuple of int
        Tokens of the labels to score, if there are any.
    label_logprobs : tuple of float
        Their log-likelihoods, once `score_labels` has set them.
    label_tokens : tuple of int
        Tokens of each, end of turn included.
    maps : AnswerMaps or None
        Where the words of its answer come from, once it is finished, if that was asked for.
    error : Exception or None
        Raised while its images were prepared, or its answer was traced to them.
    seconds : float
        Its share of the time so far.
    logprobs : list of list of (int, float)
        For each sampled token its id and log-probability, and then those of the likeliest ones; if asked for.
    seed : int
        Of its random numbers; a random one where the request has none.
    noise : SeededGumbelNoise or None
        Its random state, once a token was sampled on a CPU.
    matcher : AnswerMatcher or None
        The place of the output in the request's constraint, once a token was sampled under it.
    """

    def __init__(self, request: Request, prompt_ids: list[int], grid: Tensor, *, image_id: int, merge: int) -> None:
        self.request, self.prompt_ids, self.grid = request, prompt_ids, grid
        self.output_ids: list[int] = []
        self.start_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.overflowed = False
        self.label_ids: tuple[tuple[int, ...], ...] = ()
        self.label_logprobs: tuple[float, ...] = ()
        self.label_tokens: tuple[int, ...] = ()
        self.maps: AnswerMaps | None = None
        self.error: Exception | None = None
        self.seconds = 0.0
        self.logprobs: list[list[tuple[int, float]]] = []
        self.seed = secrets.randbits(63) if request.seed is None else request.seed
        self.noise: SeededGumbelNoise | None = None
        self.matcher: AnswerMatcher | None = None
        self._emitted = ""
        grids = [(int(frames), int(rows), int(columns)) for frames, rows, columns in grid.tolist()]
        self._prompt_positions, self._next_position = mrope_positions(prompt_ids, grids, image_id=image_id, merge=merge)
        self._visual = [at for at, token in enumerate(prompt_ids) if token == image_id]  # indices of visual tokens
        ends = itertools.accumulate(frames * rows * columns // merge**2 for frames, rows, columns in grids)
        self._visual_bounds = [0, *ends]  # of each image, in `_visual`
        self._ids = torch.zeros(len(prompt_ids) + request.max_new_tokens, dtype=torch.long)
        self._ids[: len(prompt_ids)] = torch.tensor(prompt_ids)

    @property
    def is_finished(self) -> bool:
        """Whether no more tokens are to be generated."""
        return self.finish_reason is not None or self.overflowed or self.error is not None

    @property
    def asks_for_maps(self) -> bool:
        """Whether a finished answer is to be traced to its images."""
        return self.request.attribution is not None and self.finish_reason is not None and not self.overflowed

    @property
    def n_tokens(self) -> int:
        """Tokens of prompt and output; after a step, all but the last are cached."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def answer_ids(self) -> list[int]:
        """Tokens of the answer, with its given beginning."""
        return self.start_ids + self.output_ids

    @property
    def max_len(self) -> int:
        """The most tokens that prompt and output can have."""
        return len(self._ids)

    @property
    def position(self) -> int:
        """M-RoPE position of the newest token; its three rows are equal."""
        return self._next_position + len(self.output_ids) - 1

    @property
    def ids(self) -> Tensor:
        """Tokens of prompt and output, int64 (T,)."""
        return self._ids[: self.n_tokens]

    @property
    def image_keys(self) -> tuple[ImageKey, ...]:
        """Keys of its images; equal for sequences with the same images."""
        return tuple((image.digest, image.size) for image in self.request.images)

    def positions(self) -> Tensor:
        """Return M-RoPE positions of `ids`, int64 (3, T)."""
        output = self._next_position + torch.arange(len(self.output_ids))
        return torch.cat([torch.from_numpy(self._prompt_positions), output.expand(3, -1)], dim=1)

    def shared_prefix_len(self, other: Sequence) -> int:
        """Return how many tokens of its prompt can be copied from another's cache.

        At least one token is left to prefill, and an image is shared whole or not at all. A resumed sequence shares
        nothing.
        """
        if self.output_ids:
            return 0
        limit = min(len(self.prompt_ids) - 1, len(other.prompt_ids))
        differ = (self._ids[:limit] != other._ids[:limit]).nonzero()
        n_equal = int(differ[0]) if len(differ) else limit
        for at, key in enumerate(self.image_keys):
            first, last = self._visual[self._visual_bounds[at]], self._visual[self._visual_bounds[at + 1] - 1]
            if first >= n_equal:
                break
            if last >= n_equal or key != other.image_keys[at]:
                return first
        return n_equal

    @property
    def visual_indices(self) -> list[int]:
        """Indices of its visual tokens."""
        return self._visual

    def n_visual_in(self, length: int) -> int:
        """Return how many of its first `length` tokens are visual."""
        return bisect.bisect_left(self._visual, length)

    def append_token(self, token: int | None, eos_ids: Collection[int], *, stop_repetition: bool) -> None:
        """Append a sampled token and set `finish_reason` if it is the last; None stands for non-finite logits."""
        if token is None:
            self.overflowed = True
        elif token in eos_ids:
            self.finish_reason = "stop"
        else:
            self._ids[self.n_tokens] = token
            self.output_ids.append(token)
            if self._is_whole():
                self.finish_reason = "stop"
            elif len(self.output_ids) >= self.request.max_new_tokens:
                self.finish_reason = "length"
            elif stop_repetition and self._repeats():
                self.finish_reason = "repetition"

    def score_labels(self, logprobs: Seq[float], n_tokens: Seq[int]) -> None:
        """Finish with the scores of the labels; one that is not finite makes the sequence overflowed."""
        self.label_logprobs, self.label_tokens = tuple(logprobs), tuple(n_tokens)
        self.overflowed = not all(map(math.isfinite, logprobs))
        self.finish_reason = "stop"

    def emit_text(self, decode: Callable[[list[int]], str], on_token: Callable[[int, str], None]) -> None:
        """Call `on_token` with the new text; a character of several tokens waits until it is whole or the end."""
        try:
            text = decode(self.answer_ids)
        except Exception:  # noqa: BLE001  # the same call for the result makes it this row's error
            return
        is_cut = text.endswith("\ufffd") and not self.is_finished
        if is_cut or len(text) <= len(self._emitted):
            return
        new, self._emitted = text[len(self._emitted) :], text
        on_token(self.request.row, new)

    def _is_whole(self) -> bool:
        """Return whether the constraint allows no more tokens."""
        if self.matcher is None:
            return False
        self.matcher.advance_to(self.output_ids)
        return self.matcher.is_complete

    def _repeats(self) -> bool:
        is_due = len(self.output_ids) % _REPETITION_CHECK_INTERVAL == 0
        return is_due and repeated_phrase(self.output_ids) is not None
