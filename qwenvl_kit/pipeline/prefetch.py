"""Load the images of a run ahead of the backend, in threads, and hand them over as requests.

Groups of rows that share their images are the units of work. Where a group waits decides which threads have it: those
that fetch (queued by host), those that read local files and pixels, or those that wait for a decoder of its own
process. A group that must wait elsewhere goes there, and its thread goes on with the next one.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qwenvl_kit._cpu import available_cpus
from qwenvl_kit.errors import RowError
from qwenvl_kit.images import RetryAt, host_of
from qwenvl_kit.images.decode_pool import N_WORKERS, DecodeCancelled
from qwenvl_kit.images.fetch.limits import MAX_PER_HOST
from qwenvl_kit.images.source_context import source_context
from qwenvl_kit.pipeline.host_queues import HostQueues
from qwenvl_kit.pipeline.threads import worker
from qwenvl_kit.types import Request

if TYPE_CHECKING:
    from qwenvl_kit.images import Fetch, Fetched, ImageLoader
    from qwenvl_kit.pipeline.cache_key import CacheKeyBuilder
    from qwenvl_kit.pipeline.collector import ResultCollector
    from qwenvl_kit.pipeline.plan import Group, Plan, PromptRef
    from qwenvl_kit.pipeline.source_index import SourceIndex
    from qwenvl_kit.types import ImageSource, LoadedImage

_MAX_BYTES = 128 * 2**20  # pixels that wait for the backend
_MAX_TAKEN_BYTES = 64 * 2**20  # that it takes at a time: a batch of the largest pictures would hold a gigabyte
_MAX_REQUESTS = 512
_MAX_SHARED = 64  # images kept because other groups show them too
_MAX_SLOW_BYTES = 128 * 2**20  # encoded bytes that wait for a decoder's process
_POLL_S = 0.1  # how often a waiting backend looks whether the run was cancelled
_IDLE_S = 0.25  # how often a thread without work does
_JOIN_S = 0.7  # a cancelled run leaves threads behind that wait for a host longer than this; they end by themselves
_N_FETCHERS = 32  # twice what one host gets


@dataclass(slots=True, eq=False)
class _Task:
    """A group whose images are being loaded."""

    group: Group
    prompts: Sequence[PromptRef] | None = None  # those that no earlier run answered; None before it was looked up
    images: list[LoadedImage] = field(default_factory=list)
    fetch: Fetch | None = None
    fetched: Fetched | None = None  # waits for a decoder


@dataclass(slots=True, eq=False)
class _Shared:
    """An image that several groups show: the first one loads it, the others wait."""

    owner: _Task
    image: LoadedImage | None = None
    error: RowError | None = None
    waiting: list[_Task] = field(default_factory=list)


@dataclass(slots=True)
class _Place:
    """What a thread may do: fetch from one host, or wait for a decoder's process."""

    host: str | None = None
    is_slow: bool = False


class ImagePrefetcher:
    """A `RequestQueue` that loads images ahead.

    Parameters
    ----------
    plan : Plan
        What is to be loaded.
    loader : ImageLoader
        Loads one image, step by step.
    keys : CacheKeyBuilder
        Names answers, so that none is asked for twice.
    collector : ResultCollector
        Where rows go that need no backend.
    source_index : SourceIndex or None
        Knows the digests of images that earlier runs have loaded.
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
        loader: ImageLoader,
        keys: CacheKeyBuilder,
        collector: ResultCollector,
        *,
        source_index: SourceIndex | None,
        system: str | None,
        max_new_tokens: int,
        cancel: threading.Event,
    ) -> None:
        self._loader, self._keys, self._collector = loader, keys, collector
        self._source_index = source_index
        self._system, self._max_new_tokens = system, max_new_tokens
        self._cancel = cancel
        lock = threading.Lock()
        self._to_take = threading.Condition(lock)  # requests, for the backend
        self._room = threading.Condition(lock)  # for requests, and for slow images
        self._to_fetch = threading.Condition(lock)
        self._to_load = threading.Condition(lock)
        self._to_decode = threading.Condition(lock)
        self._all = (self._to_take, self._room, self._to_fetch, self._to_load, self._to_decode)
        self._ready: deque[Request] = deque()
        self._ready_bytes = 0
        self._failure: BaseException | None = None
        local = [group for group in plan.groups if not group.is_remote()]
        self._local: Iterator[Group] = iter(local)
        self._hosts: HostQueues[Group | _Task] = HostQueues(MAX_PER_HOST)
        self._resumed: deque[_Task] = deque()  # whose shared image has come
        self._slow: deque[_Task] = deque()
        self._slow_bytes = 0
        self._shared_keys = plan.shared_sources()
        self._shared: OrderedDict[str, _Shared] = OrderedDict()
        n_remote = 0
        for group in plan.groups:
            if group.is_remote():
                n_remote += 1
                self._hosts.put(_first_host(group.sources), group)
        self._n_open = len(plan.groups)
        # Fetching waits and decoding works: many threads for the one, as many as CPUs for the other.
        self._threads = {
            "load": [worker(self._load_local, f"load-{n}") for n in range(min(max(2, available_cpus()), len(local)))],
            "fetch": [worker(self._fetch, f"fetch-{n}") for n in range(min(_N_FETCHERS, n_remote))],
        }
        self._slow_threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to load, with fewer threads where no more can be had.

        Raises
        ------
        RuntimeError
            Not even one of each kind can be had.
        """
        for kind, threads in self._threads.items():
            self._threads[kind] = _started(threads)

    def wait(self) -> bool:
        """Wait for the first request; False when there will be none, so that no model need be loaded."""
        with self._to_take:
            self._wait_for_request()
            self._raise_failure()
            return bool(self._ready) and not self._cancel.is_set()

    def get(self, n: int, *, block: bool) -> list[Request] | None:
        """Take up to `n` requests: ``[]`` when none is ready yet, None when no more will come.

        Of large pictures fewer are taken at a time.
        """
        with self._to_take:
            if block:
                self._wait_for_request()
            self._raise_failure()
            if self._cancel.is_set() or not (self._ready or self._n_open):
                return None
            taken: list[Request] = []
            n_bytes = 0
            while self._ready and len(taken) < n and (not taken or n_bytes + _size(self._ready[0]) <= _MAX_TAKEN_BYTES):
                taken.append(self._ready.popleft())
                n_bytes += _size(taken[-1])
            self._ready_bytes -= n_bytes
            # Threads that wait for room are woken when half of it is free, not for every request that is taken.
            if 2 * len(self._ready) <= _MAX_REQUESTS and 2 * self._ready_bytes <= _MAX_BYTES:
                self._room.notify_all()
            return taken

    def join(self) -> None:
        """Wait until the threads have ended; cancel first, or take all.

        After a cancellation those that wait for a host are left to end by themselves.
        """
        deadline = time.monotonic() + _JOIN_S
        for thread in (*self._threads["load"], *self._threads["fetch"], *self._slow_threads):
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()) if self._cancel.is_set() else None)

    def _wait_for_request(self) -> None:
        while not (self._ready or self._failure or self._cancel.is_set()) and self._n_open:
            self._to_take.wait(_POLL_S)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # ------------------------------------------------------------------ threads

    def _load_local(self) -> None:
        self._work(self._next_local)

    def _fetch(self) -> None:
        self._work(self._next_remote)

    def _decode_slow(self) -> None:
        self._work(self._next_slow)

    def _work(self, take: Callable[[], tuple[_Task, _Place] | None]) -> None:
        try:
            while self._work_once(take):
                pass
        except BaseException as error:  # noqa: BLE001  # ours or a callback's: the backend's thread passes it on
            with self._to_take:
                self._failure = self._failure or error
                self._notify_everyone()

    def _work_once(self, take: Callable[[], tuple[_Task, _Place] | None]) -> bool:
        """Do one task; False when there is no more. A thread that waits for the next one holds no pictures."""
        if (taken := take()) is None:
            return False
        task, place = taken
        try:
            self._advance(task, place)
        finally:
            self._leave_host(place)
        return True

    def _next_local(self) -> tuple[_Task, _Place] | None:
        with self._to_load:
            while not self._is_over():
                if self._resumed:
                    return self._resumed.popleft(), _Place()
                if (group := next(self._local, None)) is not None:
                    return _Task(group), _Place()
                self._to_load.wait(_IDLE_S)
            return None

    def _next_remote(self) -> tuple[_Task, _Place] | None:
        with self._to_fetch:
            while not self._is_over():
                if self._resumed:
                    return self._resumed.popleft(), _Place()
                now = time.monotonic()
                if (taken := self._hosts.take(now)) is not None:
                    host, work = taken
                    return work if isinstance(work, _Task) else _Task(work), _Place(host)
                due = self._hosts.next_due()
                self._to_fetch.wait(_IDLE_S if due is None else min(_IDLE_S, max(0.0, due - now)))
            return None

    def _next_slow(self) -> tuple[_Task, _Place] | None:
        with self._to_decode:
            while not self._is_over():
                if self._slow:
                    task = self._slow.popleft()
                    self._slow_bytes -= _held_bytes(task)
                    self._room.notify_all()
                    return task, _Place(is_slow=True)
                self._to_decode.wait(_IDLE_S)
            return None

    def _is_over(self) -> bool:
        return self._cancel.is_set() or self._failure is not None or not self._n_open

    def _notify_everyone(self) -> None:
        for condition in self._all:
            condition.notify_all()

    # ------------------------------------------------------------------ one group

    def _advance(self, task: _Task, place: _Place) -> None:
        """Load the images of a group until it is done, or must wait elsewhere."""
        if task.prompts is None:
            task.prompts = self._unknown(task.group)
        try:
            while task.prompts and len(task.images) < len(task.group.sources):
                source = task.group.sources[len(task.images)]
                image = self._image(task, source, place)
                if image is None:
                    return
                task.images.append(image)
        except DecodeCancelled:
            pass  # its rows are told cancelled with those that were not begun
        except RowError as error:
            for ref in task.prompts:
                self._collector.fail(ref.row, error)
        else:
            self._leave_host(place)  # while the backend is busy, another thread may have it
            self._ask(task.prompts, task.images)
        self._finish()

    def _unknown(self, group: Group) -> Sequence[PromptRef]:
        """The group's questions that no earlier run has answered, as far as can be told without loading it."""
        digests = self._source_index.digests(group.sources) if self._source_index is not None else None
        if digests is None:
            return group.prompts
        return [
            ref
            for ref in group.prompts
            if not self._collector.resolve_cached(ref.row, self._keys.key(digests, ref.prompt, ref.sample_index))
        ]

    def _ask(self, refs: Sequence[PromptRef], images: Sequence[LoadedImage]) -> None:
        digests = [image.digest for image in images]
        for ref in refs:
            key = self._keys.key(digests, ref.prompt, ref.sample_index)
            if self._collector.claim(ref.row, key):
                seed = self._keys.seed(key)
                self._put(Request(ref.row, tuple(images), ref.prompt, self._system, seed, self._max_new_tokens))

    def _finish(self) -> None:
        with self._to_take:
            self._n_open -= 1
            if not self._n_open:
                self._notify_everyone()

    def _put(self, request: Request) -> None:
        with self._room:
            while self._is_full() and not self._cancel.is_set():
                self._room.wait(_POLL_S)
            self._ready.append(request)
            self._ready_bytes += _size(request)
            self._to_take.notify_all()

    def _is_full(self) -> bool:
        return len(self._ready) >= _MAX_REQUESTS or self._ready_bytes >= _MAX_BYTES

    # ------------------------------------------------------------------ one image

    def _image(self, task: _Task, source: ImageSource, place: _Place) -> LoadedImage | None:
        """The image, loaded now or by another group; None where the task waits elsewhere from now on."""
        if source.key not in self._shared_keys:
            return self._load(task, source, place)
        shared = self._join_shared(task, source.key)
        if shared is None:
            return None
        if shared.error is not None:
            raise shared.error
        if shared.image is not None:
            return shared.image
        try:
            image = self._load(task, source, place)
        except RowError as error:
            self._settle_shared(shared, None, error)
            raise
        if image is not None:
            self._settle_shared(shared, image, None)
        return image

    def _join_shared(self, task: _Task, key: str) -> _Shared | None:
        """What is known of a shared image; None where the task waits until another group has loaded it."""
        with self._to_load:
            shared = self._shared.get(key)
            if shared is None:
                shared = self._shared[key] = _Shared(task)
                self._forget_oldest_shared()
            self._shared.move_to_end(key)
            if shared.owner is task or shared.image is not None or shared.error is not None:
                return shared
            shared.waiting.append(task)
            return None

    def _forget_oldest_shared(self) -> None:
        if len(self._shared) <= _MAX_SHARED:
            return
        loaded = (key for key, shared in self._shared.items() if shared.image is not None or shared.error is not None)
        if (oldest := next(loaded, None)) is not None:
            del self._shared[oldest]

    def _settle_shared(self, shared: _Shared, image: LoadedImage | None, error: RowError | None) -> None:
        with self._to_load:
            shared.image, shared.error = image, error
            self._resumed.extend(shared.waiting)
            shared.waiting.clear()
            self._to_load.notify_all()
            self._to_fetch.notify_all()

    def _load(self, task: _Task, source: ImageSource, place: _Place) -> LoadedImage | None:
        """Load an image now; None where the task waits elsewhere from now on. Any fault on the way is the row's."""
        with source_context(source.label, "fetch" if task.fetched is None else "decode", "Cannot load the image"):
            image = self._load_step(task, source, place)
        if image is not None and self._source_index is not None:
            self._source_index.remember(source, image)
        return image

    def _load_step(self, task: _Task, source: ImageSource, place: _Place) -> LoadedImage | None:
        if source.kind in ("pil", "array"):
            return self._loader.decode(source, None, self._loader.decode_cost(source, None))
        if task.fetched is None and not self._fetched(task, source, place):
            return None
        assert task.fetched is not None, "it was fetched just now, or before"
        cost = self._loader.decode_cost(source, task.fetched)
        if not (cost.is_short or place.is_slow) and self._queue_slow(task):
            return None
        fetched, task.fetched = task.fetched, None
        return self._loader.decode(source, fetched, cost)

    def _fetched(self, task: _Task, source: ImageSource, place: _Place) -> bool:
        """Fetch a source now; False where the task waits for its host from now on."""
        host = host_of(source)
        if host is not None and place.host != host:
            self._queue_for_host(host, task)
            return False
        task.fetch = task.fetch or self._loader.start_fetch(source)
        try:
            task.fetched = task.fetch.try_once()
        except RetryAt as later:
            assert host is not None, "only hosts ask for a pause"
            self._queue_for_host(host, task, not_before=later.at)
            return False
        task.fetch = None
        self._leave_host(place)
        return True

    def _queue_for_host(self, host: str, task: _Task, *, not_before: float = 0.0) -> None:
        with self._to_fetch:
            self._hosts.put(host, task, first=True, not_before=not_before)
            self._to_fetch.notify()

    def _leave_host(self, place: _Place) -> None:
        if place.host is not None:
            with self._to_fetch:
                self._hosts.done(place.host)
                self._to_fetch.notify()
            place.host = None

    def _queue_slow(self, task: _Task) -> bool:
        """Leave a task to the threads that wait for decoders' processes; False where there can be none."""
        if not self._has_slow_threads():
            return False
        with self._room:
            while self._slow_bytes >= _MAX_SLOW_BYTES and not self._is_over():
                self._room.wait(_POLL_S)
            self._slow.append(task)
            self._slow_bytes += _held_bytes(task)
            self._to_decode.notify()
        return True

    def _has_slow_threads(self) -> bool:
        """Start one more of these threads, up to one a process."""
        with self._to_decode:
            if len(self._slow_threads) < N_WORKERS:
                thread = worker(self._decode_slow, f"decode-{len(self._slow_threads)}")
                try:
                    thread.start()
                except RuntimeError:  # the system gives no more: this one waits itself
                    return bool(self._slow_threads)
                self._slow_threads.append(thread)
            return True


def _started(threads: Sequence[threading.Thread]) -> list[threading.Thread]:
    started: list[threading.Thread] = []
    for thread in threads:
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no more
            if not started:
                raise RuntimeError(
                    f"no thread could be started ({error}); raise the limit of processes (ulimit -u, or the "
                    "container's --pids-limit)"
                ) from error
            break
        started.append(thread)
    return started


def _first_host(sources: Sequence[ImageSource]) -> str:
    return next(host for source in sources if (host := host_of(source)) is not None)


def _held_bytes(task: _Task) -> int:
    """Bytes that a task holds beside the caller's own cell."""
    source = task.group.sources[len(task.images)]
    return len(task.fetched.data) if task.fetched is not None and source.kind != "bytes" else 0


def _size(request: Request) -> int:
    return sum(image.pixels.nbytes for image in request.images)
