"""Images that stand in several groups: the first group loads one, the others wait for it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qwenvl_kit.errors import RowError

if TYPE_CHECKING:
    from qwenvl_kit.pipeline.load_queues import Task
    from qwenvl_kit.types import ImageSource, LoadedImage

_MAX_KEPT, _MAX_KEPT_BYTES = 64, 64 * 2**20  # images, and their pixels


@dataclass(slots=True, eq=False)
class _Shared:
    owner: Task
    image: LoadedImage | None = None
    error: RowError | None = None
    waiting: list[Task] = field(default_factory=list)

    def is_loaded(self) -> bool:
        return self.image is not None or self.error is not None


class SharedImages:
    """The latest of the shared images, loaded or being loaded.

    Parameters
    ----------
    keys : collection of str
        Keys of the sources that are shared.
    resume : callable
        Called with the tasks that waited for an image, once it is there or cannot be loaded.
    """

    def __init__(self, keys: Collection[str], resume: Callable[[list[Task]], None]) -> None:
        self._keys, self._resume = keys, resume
        self._lock = threading.Lock()
        self._shared: OrderedDict[str, _Shared] = OrderedDict()

    def get(self, task: Task, source: ImageSource, load: Callable[[], LoadedImage | None]) -> LoadedImage | None:
        """Return an image, loaded now or by another task; None where the task waits, for it or as `load` says.

        Raises
        ------
        RowError
            The image cannot be loaded, by this task or by the one that tried.
        """
        if source.key not in self._keys:
            return load()
        shared = self._join(task, source.key)
        if shared is None:
            return None
        if shared.error is not None:
            raise shared.error
        return shared.image if shared.image is not None else self._load(shared, load)

    def _join(self, task: Task, key: str) -> _Shared | None:
        with self._lock:
            shared = self._shared.get(key)
            if shared is None:
                shared = self._shared[key] = _Shared(task)
                self._forget_oldest()
            self._shared.move_to_end(key)
            if shared.owner is task or shared.is_loaded():
                return shared
            shared.waiting.append(task)
            return None

    def _load(self, shared: _Shared, load: Callable[[], LoadedImage | None]) -> LoadedImage | None:
        try:
            image = load()
        except RowError as error:
            self._resolve(shared, None, error)
            raise
        if image is not None:
            self._resolve(shared, image, None)
        return image

    def _resolve(self, shared: _Shared, image: LoadedImage | None, error: RowError | None) -> None:
        with self._lock:
            shared.image, shared.error = image, error
            waiting, shared.waiting = shared.waiting, []
        self._resume(waiting)

    def _forget_oldest(self) -> None:
        n_bytes = sum(map(_n_bytes, self._shared.values()))
        for key, shared in list(self._shared.items()):
            if len(self._shared) <= _MAX_KEPT and n_bytes <= _MAX_KEPT_BYTES:
                break
            if shared.is_loaded():
                n_bytes -= _n_bytes(shared)
                del self._shared[key]


def _n_bytes(shared: _Shared) -> int:
    return 0 if shared.image is None else shared.image.pixels.nbytes
