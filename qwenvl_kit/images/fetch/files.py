"""Files of this machine, as far as a stranger's text may name them."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.fetch.dispatch import Fetched, check_bytes, lease

if TYPE_CHECKING:
    from qwenvl_kit.images.fetch.dispatch import FetchLimits

# Their "regular files" tell what the kernel knows, block for ever or have no end: /proc/self/environ, /proc/kmsg.
_KERNELS = ("/proc", "/sys", "/dev")
_IN_MEMORY = "/dev/shm"  # an ordinary file system, where data sets are put for speed
_OTHER_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/")


def read(address: str, label: str, limits: FetchLimits) -> Fetched:
    """Read a file.

    Parameters
    ----------
    address : str
        A path, or a file: address.
    label : str
        Its name for messages, free of secrets.
    limits : FetchLimits
        Bytes allowed, and which files may be named.

    Raises
    ------
    RowError
        It is no regular file, is not allowed, too large, or cannot be read; of the stage ``fetch``.
    """
    try:
        path = _resolve(address, label, limits)
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):  # a directory, or a pipe that would block for ever
            raise RowError("fetch", f"{label} is no regular file; relative paths start from {os.getcwd()}")
        with open(path, "rb", opener=_open) as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):  # it was replaced in between
                raise RowError("fetch", f"{label} is no regular file")
            check_bytes(state.st_size, label, limits)
            held, _ = lease(state.st_size, label)
            data = file.read(state.st_size + 1)
            if len(data) > state.st_size:  # it grows
                data += file.read(limits.max_image_bytes + 1 - len(data))
                check_bytes(len(data), label, limits)
            return Fetched(data, _version(state), held)
    except FileNotFoundError as error:
        raise RowError("fetch", f"{label} does not exist; {_hint(address)}") from error
    except (OSError, ValueError) as error:
        raise RowError("fetch", f"{label} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def version_of(address: str, label: str, limits: FetchLimits) -> str:
    """Return the version that `read` would give now, without reading.

    Raises
    ------
    RowError, OSError, ValueError
        There is none.
    """
    return _version(os.stat(_resolve(address, label, limits)))


def _resolve(address: str, label: str, limits: FetchLimits) -> str:
    """Return the real path, without symbolic links, of a file that may be named."""
    if limits.local_paths is False:
        raise RowError(
            "fetch",
            f"{label} names a local file, which local_paths=False refuses; pass local_paths=True, or the folder that "
            "holds the pictures",
        )
    path = os.path.abspath(_local_path(address, label))
    real = os.path.realpath(path)
    for kernels in _KERNELS:
        if any(_is_below(one, kernels) and not _is_below(one, _IN_MEMORY) for one in (path, real)):
            raise RowError("fetch", f"{label} lies in {kernels}, where no pictures are; files there are not read")
    if isinstance(limits.local_paths, str):
        folder = os.path.realpath(os.path.expanduser(limits.local_paths))
        if not _is_below(real, folder):
            raise RowError(
                "fetch",
                f"{label} lies outside of local_paths={limits.local_paths!r}; pass the folder that holds all pictures, "
                "or local_paths=True",
            )
    return real


def _local_path(address: str, label: str) -> str:
    if address[:5].lower() != "file:":
        return os.path.expanduser(address)
    parts = urlsplit(address)
    if parts.netloc and parts.netloc.lower() != "localhost":
        raise RowError(
            "fetch",
            f"{label} names a file of another host; write file:///path, with three slashes, for a file of this machine",
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


def _hint(address: str) -> str:
    """Say what a text that names no file may have been meant for."""
    found = _OTHER_SCHEME.match(address)
    scheme = found.group(1).lower() if found else ""
    if address[:1] in "'\"‘’“”`" and len(address) > 1:
        return "it is in quotes: remove them"
    if scheme in ("http", "https", "s3", "gs", "tos", "hf"):
        return f"an address has two slashes: {scheme}://"
    if scheme == "dbfs":
        return "dbfs:/path is Databricks' own spelling: write /dbfs/path, where its files are mounted"
    if scheme and scheme != "file":
        return f"{scheme}: is no scheme that is read; write a path, or an address such as https://host/path"
    if address.startswith("//"):
        return "if it is an address, its scheme is missing: write https: before it"
    if address.lower().startswith("www."):
        return "if it is an address, its scheme is missing: write https:// before it"
    return f"relative paths start from {os.getcwd()}"
