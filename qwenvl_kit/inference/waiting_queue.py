"""Sequences that wait for a forward pass, and the order in which they leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qwenvl_kit.inference.outputs import failed

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import RequestQueue
    from qwenvl_kit.inference.sequence import Sequence
    from qwenvl_kit.types import Request, Result

_WINDOW = 4  # batches' worth of requests among which neighbours of like length are sought


class WaitingQueue:
    """Waiting sequences, grouped by their images and by length to waste little padding.

    Parameters
    ----------
    encode : callable
        Tokenize a request.
    batch_size : int
        Most sequences of one batch.

    Attributes
    ----------
    sequences : list of Sequence
        In the order of their arrival.
    is_drained : bool
        No more requests will come.
    """

    def __init__(self, encode: Callable[[Request], Sequence], batch_size: int) -> None:
        self.sequences: list[Sequence] = []
        self.is_drained = False
        self._encode, self._batch_size = encode, batch_size

    def fill_from(self, queue: RequestQueue, *, block: bool = True) -> list[Result]:
        """Encode the requests that are ready, and return an error for each that cannot be encoded.

        With `block`, wait for a request if no sequence waits.
        """
        errors: list[Result] = []
        for request in self._get(queue, block=block):
            try:
                self.sequences.append(self._encode(request))
            except Exception as error:  # noqa: BLE001  # a tokenizer or template refused this row
                errors.append(failed(request, error, "encoding the prompt"))
        return errors

    def next_batch(self, max_num_seqs: int | None = None) -> list[Sequence]:
        """Remove and return the oldest sequence, those with the same images, and those nearest in prompt length."""
        limit = self._batch_size if max_num_seqs is None else min(max_num_seqs, self._batch_size)
        oldest = self.sequences[0]
        ranks = {oldest.image_keys: (-1, 0)}  # of a group with the same images: by length and index of its first
        for i, one in enumerate(self.sequences):
            ranks.setdefault(one.image_keys, (abs(len(one.prompt_ids) - len(oldest.prompt_ids)), i))
        nearest = sorted(range(len(self.sequences)), key=lambda i: (ranks[self.sequences[i].image_keys], i))
        chosen = set(nearest[:limit])
        batch = [one for i, one in enumerate(self.sequences) if i in chosen]
        self.sequences = [one for i, one in enumerate(self.sequences) if i not in chosen]
        return batch

    def put_back(self, sequences: list[Sequence]) -> None:
        """Put preempted sequences before all others."""
        self.sequences[:0] = sequences

    def shrink_to(self, batch_size: int) -> None:
        """Lower the size of later batches, after memory ran out."""
        self._batch_size = max(1, min(self._batch_size, batch_size))

    def _get(self, queue: RequestQueue, *, block: bool) -> list[Request]:
        room = _WINDOW * self._batch_size - len(self.sequences)
        if self.is_drained or room < 1:
            return []
        block = block and not self.sequences
        requests = queue.get(1 if block else room, block=block)
        self.is_drained = requests is None
        if requests and block and room > 1:
            requests = [*requests, *(queue.get(room - 1, block=False) or [])]
        return requests or []
