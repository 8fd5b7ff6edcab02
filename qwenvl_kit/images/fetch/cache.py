"""Keep fetched files on disk, so that several runs over the same cells fetch each of them once."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from qwenvl_kit.images.fetch.fetched import Fetched, lease

if TYPE_CHECKING:
    from qwenvl_kit.images.fetch.limits import FetchLimits
    from qwenvl_kit.types import ImageSource

_LEFT_FREE = 1 << 30  # bytes of the disk that are not taken


class FetchCache:
    """Fetched files in a temporary folder, which the end of the ``with`` block deletes.

    On disk, since the files of a column may be larger than memory. On a disk that is full, or cannot be written, no
    file is kept, and each is fetched again.

    Examples
    --------
    >>> from qwenvl_kit.images.fetch.limits import FetchLimits
    >>> from qwenvl_kit.images.classify import classify
    >>> limits, (source,) = FetchLimits(5.0, 1000, False), classify("https://example.org/a.png")
    >>> with FetchCache() as cache:
    ...     cache.put(source, limits, Fetched(b"..."))
    ...     cache.get(source, limits).data
    b'...'
    """

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, FetchLimits], tuple[str, str | None]] = {}
        self._n_files = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._kept.clear()
            if self._folder is not None:
                self._folder.cleanup()

    def get(self, source: ImageSource, limits: FetchLimits) -> Fetched | None:
        """Return the file that was fetched under the same limits, None where there is none.

        Raises
        ------
        RowError
            No memory was free for it, of the stage ``fetch``.
        """
        kept = self._kept.get((source.key, limits))
        if kept is None:
            return None
        path, version = kept
        try:
            with open(path, "rb") as file:
                held, _ = lease(os.fstat(file.fileno()).st_size)
                data = file.read()
        except OSError:  # another program deleted it
            return None
        limits.check_bytes(len(data))
        return Fetched(data, version, held)

    def put(self, source: ImageSource, limits: FetchLimits, fetched: Fetched) -> None:
        """Keep a fetched file, where the disk has room."""
        try:
            path = self._new_path(len(fetched.data))
            if path is None:
                return
            with open(path, "xb") as file:
                file.write(fetched.data)
        except OSError:
            return
        self._kept[source.key, limits] = (path, fetched.version)

    def _new_path(self, n_bytes: int) -> str | None:
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="qwenvl_kit-", ignore_cleanup_errors=True)
            if shutil.disk_usage(self._folder.name).free - n_bytes < _LEFT_FREE:
                return None
            self._n_files += 1
            return os.path.join(self._folder.name, str(self._n_files))
