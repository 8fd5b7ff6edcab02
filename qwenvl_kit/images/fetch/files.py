"""Read local files, within what untrusted text may name."""

from __future__ import annotations

import os
import re
import stat
from io import BufferedReader
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.fetch.fetched import Fetched, lease

if TYPE_CHECKING:
    from qwenvl_kit.images.fetch.limits import FetchLimits

# Their "regular files" contain secrets of the kernel, block for ever or have no end: /proc/self/environ, /proc/kmsg.
_KERNELS = ("/proc", "/sys", "/dev")
_IN_MEMORY = "/dev/shm"  # an ordinary file system, where data sets are put for speed
_OTHER_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/")


def read(name: str, limits: FetchLimits) -> Fetched:
    """Read a file.

    Parameters
    ----------
    name : str
        A path, or a file: URL.
    limits : FetchLimits
        Bytes and folders allowed.

    Raises
    ------
    RowError
        It is not a regular file, not allowed, too large, or cannot be read; of the stage ``fetch``.
    """
    try:
        path = _resolve(name, limits)
        if not stat.S_ISREG(os.stat(path).st_mode):  # a directory, or a pipe that would block for ever
            raise RowError("fetch", f"Not a regular file. Relative paths start from {os.getcwd()}.")
        with open(path, "rb", opener=_open) as file:
            return _read(file, limits)
    except FileNotFoundError as error:
        raise RowError("fetch", f"The file does not exist. {_hint(name)}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RowError("fetch", f"Cannot read the image: {reason}.") from error


def version_of(name: str, limits: FetchLimits) -> str:
    """Return the version of a file now, without reading it.

    Raises
    ------
    RowError, OSError, ValueError
        The file does not exist, or is not allowed.
    """
    return _version(os.stat(_resolve(name, limits)))


def _read(file: BufferedReader, limits: FetchLimits) -> Fetched:
    state = os.fstat(file.fileno())
    if not stat.S_ISREG(state.st_mode):  # it was replaced in between
        raise RowError("fetch", "Not a regular file.")
    limits.check_bytes(state.st_size)
    held, _ = lease(limits.part(state.st_size))
    data = file.read(limits.part(state.st_size + 1))
    if len(data) > state.st_size and limits.head_bytes is None:  # it grows
        data += file.read(limits.max_image_bytes + 1 - len(data))
        limits.check_bytes(len(data))
    return Fetched(data, _version(state), held)


def _resolve(name: str, limits: FetchLimits) -> str:
    """Return the real path, without symbolic links, of a file that is allowed."""
    if limits.local_paths is False:
        raise RowError(
            "fetch",
            "local_paths=False blocks local files. Pass local_paths=True, or the folder that contains the images.",
        )
    path = os.path.abspath(local_path(name))
    real = os.path.realpath(path)
    for folder in _KERNELS:
        if any(_is_below(one, folder) and not _is_below(one, _IN_MEMORY) for one in (path, real)):
            raise RowError("fetch", f"Files in {folder} are not read, since they are the kernel's.")
    if isinstance(limits.local_paths, str):
        folder = os.path.realpath(os.path.expanduser(limits.local_paths))
        if not _is_below(real, folder):
            raise RowError(
                "fetch",
                f"The file is outside of local_paths={limits.local_paths!r}. Pass the folder that contains all images, "
                "or local_paths=True.",
            )
    return real


def local_path(name: str) -> str:
    """Return the path of a path or a file: URL, with ``~`` resolved.

    Raises
    ------
    RowError
        The URL names a file of another host, of the stage ``fetch``.
    """
    if name[:5].lower() != "file:":
        return os.path.expanduser(name)
    parts = urlsplit(name)
    if parts.netloc and parts.netloc.lower() != "localhost":
        raise RowError(
            "fetch",
            "The URL names a file of another host. Write file:///path, with three slashes, for a file of this machine.",
        )
    return url2pathname(parts.path)


def _is_below(path: str, folder: str) -> bool:
    try:
        return os.path.commonpath((path, folder)) == folder
    except ValueError:  # on Windows, another drive
        return False


def _open(path: str, flags: int) -> int:
    """Open without waiting, also where a pipe has taken the file's place."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def _version(state: os.stat_result) -> str:
    return f"file:{state.st_mtime_ns}:{state.st_size}"


def _hint(name: str) -> str:
    """Return a sentence on what a text that names no file may mean."""
    found = _OTHER_SCHEME.match(name)
    scheme = found.group(1).lower() if found else ""
    if name[:1] in "'\"‘’“”`" and len(name) > 1:
        return "Remove the quotes around it."
    if scheme in ("http", "https", "s3", "gs", "tos", "hf"):
        return f"A URL has two slashes: {scheme}://."
    if scheme == "dbfs":
        return "dbfs:/path is Databricks' own spelling. Write /dbfs/path, where its files are mounted."
    if scheme and scheme != "file":
        return f"{scheme}: is not a scheme that is read. Write a path, or a URL such as https://host/path."
    if name.startswith("//"):
        return "If it is a URL, its scheme is missing: write https: before it."
    if name.lower().startswith("www."):
        return "If it is a URL, its scheme is missing: write https:// before it."
    return f"Relative paths start from {os.getcwd()}."
