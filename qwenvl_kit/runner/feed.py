"""Groups of rows in, a bounded feed of requests out, loaded ahead by threads while a backend is busy.

It knows how pictures are loaded and that memory is short; who takes the requests it does not know.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from qwenvl_kit._cpu import available_cpus
from qwenvl_kit.errors import RowError
from qwenvl_kit.records import Request
from qwenvl_kit.runner.threads import worker

if TYPE_CHECKING:
    from qwenvl_kit.records import ImageSource, Picture
    from qwenvl_kit.runner.keys import Keys
    from qwenvl_kit.runner.ledger import Ledger
    from qwenvl_kit.runner.plan import Ask, Group, Plan

_MAX_BYTES = 256 * 2**20  # pixels that wait for the backend
_MAX_REQUESTS = 512
_MAX_SHARED = 64  # pictures kept because other groups show them too
_POLL_S = 0.1  # how often a waiting backend looks whether the run was cancelled
_N_FETCHERS = 32  # twice what one host gets, so that a slow one does not hold up the others


class LoadingFeed:
    """A `Feed` that loads pictures ahead.

    Parameters
    ----------
    plan : Plan
        What is to be loaded.
    load : callable
        Makes a `Picture` of an `ImageSource`, or raises RowError.
    keys : Keys
        Names answers, so that none is asked for twice.
    ledger : Ledger
        Where rows go that need no backend.
    recall : callable
        Gives the digests of pictures that need not be loaded to be known, or None.
    system : str or None
        System prompt of all requests.
    max_new_tokens : int
        Longest answer.
    cancel : threading.Event
        Ends loading and waiting.
    """

    def __init__(
        self,
        plan: Plan,
        load: Callable[[ImageSource], Picture],
        keys: Keys,
        ledger: Ledger,
        *,
        recall: Callable[[Sequence[ImageSource]], Sequence[str] | None],
        system: str | None,
        max_new_tokens: int,
        cancel: threading.Event,
    ) -> None:
        self._load = _Once(load, plan.shared_sources())
        self._keys, self._ledger, self._recall = keys, ledger, recall
        self._system, self._max_new_tokens = system, max_new_tokens
        self._cancel = cancel
        self._ready: deque[Request] = deque()
        self._ready_bytes = 0
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        # Fetching waits and decoding works: many threads for the one, as many as cores for the other.
        local = [group for group in plan.groups if not group.is_remote()]
        remote = [group for group in plan.groups if group.is_remote()]
        self._threads = [
            *self._workers(local, max(2, available_cpus()), "load"),
            *self._workers(remote, _N_FETCHERS, "fetch"),
        ]
        self._n_working = len(self._threads)

    def start(self) -> None:
        """Begin to load."""
        for thread in self._threads:
            thread.start()

    def wait(self) -> bool:
        """Wait for the first request; False when there will be none, so that no model need be loaded."""
        with self._changed:
            self._wait_for_request()
            self._raise_failure()
            return bool(self._ready) and not self._cancel.is_set()

    def take(self, n: int, *, block: bool) -> list[Request] | None:
        """Take up to `n` requests: ``[]`` when none is ready yet, None when no more will come."""
        with self._changed:
            if block:
                self._wait_for_request()
            self._raise_failure()
            if self._cancel.is_set() or not (self._ready or self._n_working):
                return None
            taken = [self._ready.popleft() for _ in range(min(n, len(self._ready)))]
            self._ready_bytes -= sum(map(_size, taken))
            self._changed.notify_all()
            return taken

    def join(self) -> None:
        """Wait until the threads have ended; cancel first, or take all."""
        for thread in self._threads:
            thread.join()

    def _wait_for_request(self) -> None:
        while not (self._ready or self._failure or self._cancel.is_set()) and self._n_working:
            self._changed.wait(_POLL_S)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _workers(self, groups: Sequence[Group], n_most: int, name: str) -> list[threading.Thread]:
        shared = iter(groups)
        n_threads = min(n_most, len(groups))
        return [worker(functools.partial(self._work, shared), f"{name}-{number}") for number in range(n_threads)]

    def _work(self, groups: Iterator[Group]) -> None:
        try:
            while not self._cancel.is_set() and (group := self._next(groups)) is not None:
                self._load_group(group)
        except BaseException as error:  # noqa: BLE001  # ours or a callback's: the backend's thread passes it on
            self._failure = error
        finally:
            with self._changed:
                self._n_working -= 1
                self._changed.notify_all()

    def _next(self, groups: Iterator[Group]) -> Group | None:
        with self._changed:
            return next(groups, None)

    def _load_group(self, group: Group) -> None:
        asks = self._unknown(group)
        try:
            pictures = tuple(self._load(source) for source in group.sources) if asks else ()
        except RowError as error:
            for ask in asks:
                self._ledger.fail(ask.row, error)
            return
        digests = [picture.digest for picture in pictures]
        for ask in asks:
            key = self._keys.key(digests, ask.prompt, ask.draw)
            if self._ledger.claim(ask.row, key):
                seed = self._keys.seed(key)
                self._put(Request(ask.row, pictures, ask.prompt, self._system, seed, self._max_new_tokens))

    def _unknown(self, group: Group) -> Sequence[Ask]:
        """The group's questions that no earlier run has answered, as far as can be told without loading it."""
        digests = self._recall(group.sources)
        if digests is None:
            return group.asks
        return [
            ask
            for ask in group.asks
            if not self._ledger.answer_known(ask.row, self._keys.key(digests, ask.prompt, ask.draw))
        ]

    def _put(self, request: Request) -> None:
        with self._changed:
            while self._is_full() and not self._cancel.is_set():
                self._changed.wait(_POLL_S)
            self._ready.append(request)
            self._ready_bytes += _size(request)
            self._changed.notify_all()

    def _is_full(self) -> bool:
        return len(self._ready) >= _MAX_REQUESTS or self._ready_bytes >= _MAX_BYTES


class _Once:
    """Loads sources that several groups share once, and keeps as many of them as memory allows."""

    def __init__(self, load: Callable[[ImageSource], Picture], shared: frozenset[str]) -> None:
        self._load, self._shared = load, shared
        self._kept: OrderedDict[str, Future[Picture]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, source: ImageSource) -> Picture:
        if source.key not in self._shared:
            return self._load(source)
        with self._lock:
            future = self._kept.get(source.key)
            is_mine = future is None
            if future is None:
                future = self._kept[source.key] = Future()
                if len(self._kept) > _MAX_SHARED:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(source.key)
        if is_mine:
            try:
                future.set_result(self._load(source))
            except BaseException as error:  # noqa: BLE001  # every waiter gets it
                future.set_exception(error)
        return future.result()


def _size(request: Request) -> int:
    return sum(picture.pixels.nbytes for picture in request.pictures)
