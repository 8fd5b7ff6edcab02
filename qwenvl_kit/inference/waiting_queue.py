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
_MAX_BYTES = 256 * 2**20  # of pixels that wait: 256 images of 12 megapixels would take 9 GB


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
        self._max_waiting = _WINDOW * batch_size
        self._passed_over: tuple[Sequence | None, int] = (None, 0)  # the oldest, and how many left before it

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

    def next_batch(
        self, max_num_seqs: int | None = None, fits: Callable[[list[Sequence]], bool] = lambda _: True
    ) -> list[Sequence]:
        """Remove and return the oldest sequence that fits, those with the same images, and those of like length.

        Sequences that do not fit now let others pass, but not for ever: once a whole window has passed the oldest one,
        nothing is returned until it fits.

        Parameters
        ----------
        max_num_seqs : int, optional
            Return no more than so many.
        fits : callable
            Return whether sequences may run next, together with those that run.
        """
        limit = self._batch_size if max_num_seqs is None else min(max_num_seqs, self._batch_size)
        oldest, n_passed = self.sequences[0], self._n_passed()
        chosen = self._fitting(self._nearest(0), limit, fits)
        if not chosen and n_passed < self._max_waiting:
            first = next((i for i, one in enumerate(self.sequences) if fits([one])), None)
            chosen = set() if first is None else self._fitting(self._nearest(first), limit, fits)
        batch = [one for i, one in enumerate(self.sequences) if i in chosen]
        self.sequences = [one for i, one in enumerate(self.sequences) if i not in chosen]
        self._passed_over = (oldest, n_passed + len(batch))
        return batch

    def put_back(self, sequences: list[Sequence]) -> None:
        """Put preempted sequences before all others."""
        self.sequences[:0] = sequences

    def widen(self, n_sequences: int) -> None:
        """Let at least so many sequences wait."""
        self._max_waiting = max(self._max_waiting, n_sequences)

    def shrink_to(self, batch_size: int) -> None:
        """Lower the size of later batches, after memory ran out."""
        self._batch_size = max(1, min(self._batch_size, batch_size))

    def _n_passed(self) -> int:
        """Return how many sequences have left before the oldest one."""
        oldest, n_passed = self._passed_over
        return n_passed if oldest is self.sequences[0] else 0

    def _nearest(self, first: int) -> list[int]:
        """Return the indices of all sequences, those with the first one's images first, then by likeness in length."""
        length = len(self.sequences[first].prompt_ids)
        ranks = {self.sequences[first].image_keys: (-1, 0)}  # of a group with the same images: by its first sequence
        for i, one in enumerate(self.sequences):
            ranks.setdefault(one.image_keys, (abs(len(one.prompt_ids) - length), i))
        return sorted(range(len(self.sequences)), key=lambda i: (i != first, ranks[self.sequences[i].image_keys], i))

    def _fitting(self, order: list[int], limit: int, fits: Callable[[list[Sequence]], bool]) -> set[int]:
        """Return the indices of up to `limit` sequences that fit, in this order; none if the first does not."""
        chosen = order[:limit]
        if fits([self.sequences[i] for i in chosen]):
            return set(chosen)
        chosen = []
        for i in order:
            if len(chosen) < limit and fits([self.sequences[at] for at in (*chosen, i)]):
                chosen.append(i)
            elif not chosen:
                break
        return set(chosen)

    def _get(self, queue: RequestQueue, *, block: bool) -> list[Request]:
        room = self._max_waiting - len(self.sequences)
        n_bytes = sum(image.pixels.nbytes for one in self.sequences for image in one.request.images)
        if self.is_drained or room < 1 or n_bytes >= _MAX_BYTES:
            return []
        block = block and not self.sequences
        requests = queue.get(1 if block else room, block=block)
        self.is_drained = requests is None
        if requests and block and room > 1:
            requests = [*requests, *(queue.get(room - 1, block=False) or [])]
        return requests or []
