"""Load the images of a run ahead of the backend, in threads, and hand them over as requests.

The unit of work is a group of rows that share their images. A group that must wait elsewhere is queued there, and its
thread takes the next one.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from qwenvl_kit._cpu import available_cpus
from qwenvl_kit.errors import RowError
from qwenvl_kit.images import RetryAt, host_of
from qwenvl_kit.images.decode_pool import N_WORKERS, DecodeCancelled
from qwenvl_kit.images.heap import trim_heap
from qwenvl_kit.images.source_context import source_context
from qwenvl_kit.pipeline.load_queues import LoadQueues, Place, Task
from qwenvl_kit.pipeline.request_buffer import RequestBuffer
from qwenvl_kit.pipeline.shared_images import SharedImages
from qwenvl_kit.pipeline.threads import worker
from qwenvl_kit.types import Request

if TYPE_CHECKING:
    from qwenvl_kit.images import DecodeCost, Fetched, ImageLoader
    from qwenvl_kit.pipeline.cache_key import CacheKeyBuilder
    from qwenvl_kit.pipeline.collector import ResultCollector
    from qwenvl_kit.pipeline.plan import Group, Plan, PromptRef
    from qwenvl_kit.pipeline.source_index import SourceIndex
    from qwenvl_kit.types import ImageSource, LoadedImage

_JOIN_S = 0.7  # a cancelled run leaves threads behind that wait for a host longer than this; they end by themselves
_N_FETCHERS = 32  # twice what one host gets


class ImagePrefetcher:
    """A `RequestQueue` that loads images ahead.

    Parameters
    ----------
    plan : Plan
        Groups to load.
    loader : ImageLoader
        Loads one image, step by step.
    keys : CacheKeyBuilder
        Keys of answers, so that equal requests run once.
    collector : ResultCollector
        Takes the results of rows that need no backend.
    source_index : SourceIndex or None
        Digests of images that earlier runs have loaded.
    system : str or None
        System prompt of all requests.
    max_new_tokens : int
        Longest answer.
    start_with : str
        Beginning of all answers.
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
        start_with: str = "",
        cancel: threading.Event,
    ) -> None:
        self._loader, self._keys, self._collector = loader, keys, collector
        self._source_index = source_index
        self._system, self._max_new_tokens, self._start_with = system, max_new_tokens, start_with
        self._cancel = cancel
        self._requests = RequestBuffer(cancel)
        self._queues = LoadQueues(plan.groups, cancel)
        self._shared = SharedImages(plan.shared_sources(), self._queues.resume)
        if not plan.groups:
            self._requests.close()
        # Fetching waits and decoding works: many threads for the one, as many as CPUs for the other.
        n_loaders = min(max(2, available_cpus()), self._queues.n_local)
        n_fetchers = min(_N_FETCHERS, self._queues.n_remote)
        self._loaders = [self._thread(self._queues.next_local, f"load-{n}") for n in range(n_loaders)]
        self._fetchers = [self._thread(self._queues.next_remote, f"fetch-{n}") for n in range(n_fetchers)]
        self._decoders: list[threading.Thread] = []
        self._starting = threading.Lock()

    def start(self) -> None:
        """Begin to load, with fewer threads where the system starts no more.

        Raises
        ------
        RuntimeError
            The system starts not even one of a kind.
        """
        self._loaders, self._fetchers = _started(self._loaders), _started(self._fetchers)

    def wait(self) -> bool:
        """Wait for the first request; False when there will be none, so that no model need be loaded."""
        return self._requests.wait()

    def get(self, n: int, *, block: bool) -> list[Request] | None:
        """Take up to `n` requests: ``[]`` when none is ready yet, None when no more will come.

        Of large images fewer are taken at a time.
        """
        return self._requests.get(n, block=block)

    def join(self) -> None:
        """Wait until the threads have ended; cancel first, or take all.

        After a cancellation those that wait for a host are left to end by themselves.
        """
        deadline = time.monotonic() + _JOIN_S
        for thread in (*self._loaders, *self._fetchers, *self._decoders):
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()) if self._cancel.is_set() else None)

    # ------------------------------------------------------------------ threads

    def _thread(self, take: Callable[[], tuple[Task, Place] | None], name: str) -> threading.Thread:
        return worker(lambda: self._work(take), name)

    def _work(self, take: Callable[[], tuple[Task, Place] | None]) -> None:
        try:
            while self._work_once(take):
                pass
        except BaseException as error:  # noqa: BLE001  # ours or a callback's: the backend's thread passes it on
            self._queues.stop()
            self._requests.fail(error)
        finally:
            trim_heap()  # of this thread, whose end it is

    def _work_once(self, take: Callable[[], tuple[Task, Place] | None]) -> bool:
        """Do one task; False when there is no more. A thread that waits for the next one holds no images."""
        if (taken := take()) is None:
            return False
        task, place = taken
        try:
            self._advance(task, place)
        finally:
            self._queues.leave_host(place)
        return True

    def _has_decoders(self) -> bool:
        """Start one more thread that waits for decoders' processes, up to one a process."""
        with self._starting:
            if len(self._decoders) < N_WORKERS:
                thread = self._thread(self._queues.next_slow, f"decode-{len(self._decoders)}")
                try:
                    thread.start()
                except RuntimeError:  # the system starts no more: this one waits itself
                    return bool(self._decoders)
                self._decoders.append(thread)
            return True

    # ------------------------------------------------------------------ one group

    def _advance(self, task: Task, place: Place) -> None:
        """Load the images of a group until it is done, or must wait elsewhere."""
        if task.prompts is None:
            task.prompts = self._unanswered(task.group)
        try:
            if task.prompts and not self._load_all(task, place):
                return
        except DecodeCancelled:
            pass  # its rows get the status of rows that were not begun
        except RowError as error:
            for ref in task.prompts:
                self._collector.fail(ref.row, error)
        else:
            self._queues.leave_host(place)  # while the backend is busy, another thread may have it
            self._request(task.prompts, task.images)
        if self._queues.finish_one():
            self._requests.close()

    def _unanswered(self, group: Group) -> Sequence[PromptRef]:
        """Return the prompts that no earlier run has answered, as far as can be told without loading the images."""
        digests = self._source_index.digests(group.sources) if self._source_index is not None else None
        if digests is None:
            return group.prompts
        return [
            ref
            for ref in group.prompts
            if not self._collector.resolve_cached(ref.row, self._keys.key(digests, ref.prompt, ref.sample_index))
        ]

    def _request(self, prompts: Sequence[PromptRef], images: Sequence[LoadedImage]) -> None:
        digests = [image.digest for image in images]
        for ref in prompts:
            key = self._keys.key(digests, ref.prompt, ref.sample_index)
            if self._collector.claim(ref.row, key):
                seed, constraint = self._keys.seed(key), ref.prompt.constraint
                if constraint is not None:
                    constraint = constraint.at(*images[0].size)
                request = Request(
                    ref.row,
                    tuple(images),
                    ref.prompt.text,
                    self._system,
                    seed,
                    self._max_new_tokens,
                    ref.prompt.labels,
                    constraint,
                    ref.prompt.attribution,
                    self._start_with,
                )
                self._requests.put(request)

    # ------------------------------------------------------------------ one image

    def _load_all(self, task: Task, place: Place) -> bool:
        """Load the images that are missing; False where the task waits elsewhere from now on."""
        while len(task.images) < len(task.group.sources):
            source = task.next_source()
            image = self._shared.get(task, source, functools.partial(self._load, task, source, place))
            if image is None:
                return False
            task.images.append(image)
        return True

    def _load(self, task: Task, source: ImageSource, place: Place) -> LoadedImage | None:
        """Load an image now; None where the task waits elsewhere from now on. Any fault on the way is the row's."""
        with source_context(source.label, "fetch" if task.fetched is None else "decode", "Cannot load the image"):
            image = self._load_step(task, source, place)
        if image is not None and self._source_index is not None:
            self._source_index.remember(source, image)
        return image

    def _load_step(self, task: Task, source: ImageSource, place: Place) -> LoadedImage | None:
        if self._loader.hands_over:
            return self._loader.address(source)
        if source.kind in ("pil", "array"):
            return self._decode(source, None, self._loader.decode_cost(source, None))
        if task.fetched is None and not self._fetched(task, source, place):
            return None
        assert task.fetched is not None, "it was fetched just now, or before"
        cost = self._loader.decode_cost(source, task.fetched)
        if not (cost.is_short or place.is_slow) and self._has_decoders():
            self._queues.put_slow(task)
            return None
        fetched, task.fetched = task.fetched, None
        return self._decode(source, fetched, cost)

    def _decode(self, source: ImageSource, fetched: Fetched | None, cost: DecodeCost) -> LoadedImage:
        if not cost.is_free:
            self._requests.wait_for_room(is_large=cost.is_large)
        return self._loader.decode(source, fetched, cost)

    def _fetched(self, task: Task, source: ImageSource, place: Place) -> bool:
        """Fetch a source now; False where the task waits for its host from now on."""
        host = host_of(source)
        if host is not None and place.host != host:
            self._queues.put_for_host(host, task)
            return False
        task.fetch = task.fetch or self._loader.start_fetch(source)
        try:
            task.fetched = task.fetch.try_once()
        except RetryAt as later:
            assert host is not None, "only hosts ask for a pause"
            self._queues.put_for_host(host, task, not_before=later.at)
            return False
        task.fetch = None
        self._queues.leave_host(place)
        return True


def _started(threads: Sequence[threading.Thread]) -> list[threading.Thread]:
    started: list[threading.Thread] = []
    for thread in threads:
        try:
            thread.start()
        except RuntimeError as error:  # the system starts no more
            if not started:
                raise RuntimeError(
                    f"The system starts no more threads ({error}). Raise the limit of processes (ulimit -u, or the "
                    "container's --pids-limit)."
                ) from error
            break
        started.append(thread)
    return started
