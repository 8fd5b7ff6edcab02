"""An `ImageSource` that names a place goes in, its bytes come out, within limits.

It never looks inside the bytes. http and https go through `qwenvl_kit.images.web`, stores of objects through
`qwenvl_kit.images.stores`.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from qwenvl_kit.errors import RowError

if TYPE_CHECKING:
    from qwenvl_kit.config import Config
    from qwenvl_kit.records import ImageSource


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Limits on one fetch, as the options of `Config` of the same names say them.

    Attributes
    ----------
    headers : tuple of (str, str)
        Sent with each request, but not on to another host.
    extra_schemes : tuple of str
        Schemes allowed beyond those that always are.
    local_paths : bool or str
        Whether local files may be named, or the folder that they must lie in.
    """

    timeout_s: float
    max_image_bytes: int
    allow_private_hosts: bool
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    extra_schemes: tuple[str, ...] = ()
    local_paths: bool | str = True

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return the limits that a config asks for."""
        return cls(
            config.timeout_s,
            config.max_image_bytes,
            config.allow_private_hosts,
            tuple((config.headers or {}).items()),
            tuple(config.extra_schemes),
            config.local_paths,
        )


@dataclass(frozen=True, slots=True)
class Fetched:
    """Encoded bytes, and the mark by which their place tells later whether they are still the same.

    Attributes
    ----------
    data : bytes
        The file as it is.
    mark : str or None
        A file's time and size, or an address's ETag or date; None where there is none.
    """

    data: bytes
    mark: str | None = None


def fetch(source: ImageSource, limits: FetchLimits) -> Fetched:
    """Read the encoded bytes of a picture.

    Parameters
    ----------
    source : ImageSource
        Of the kind ``url``, ``path``, ``remote``, ``base64`` or ``bytes``.
    limits : FetchLimits
        Time, bytes and hosts allowed.

    Returns
    -------
    Fetched
        The bytes and their mark.

    Raises
    ------
    RowError
        It cannot be had within the limits, of the stage ``fetch``.
    """
    readers = {
        "url": _fetch_url,
        "path": _fetch_path,
        "remote": _fetch_remote,
        "base64": _fetch_base64,
        "bytes": _fetch_bytes,
    }
    return readers[source.kind](source, limits)


class RetryAt(Exception):
    at: float = 0.0


class Fetch:
    def __init__(self, source: ImageSource, limits: FetchLimits) -> None:
        self._source, self._limits = source, limits
        self.host = host_of(source)

    def try_once(self) -> Fetched:
        return fetch(self._source, self._limits)


def host_of(source: ImageSource) -> str | None:
    if source.kind not in ("url", "remote"):
        return None
    parts = urlsplit(source.value)
    return f"{parts.scheme}://{parts.netloc}"


def is_unchanged(source: ImageSource, mark: str, limits: FetchLimits) -> bool:
    """Ask the place of a picture whether it still holds what it held under `mark`; False where it cannot tell."""
    try:
        if source.kind == "path":
            return _mark(os.stat(_local_path(source.value))) == mark
        if source.kind == "url":
            from qwenvl_kit.images import web

            return web.is_unchanged(source.value, source.label, mark, limits)
    except (OSError, ValueError, RowError):
        pass  # fetching will tell what is wrong
    return False


def _fetch_bytes(source: ImageSource, limits: FetchLimits) -> Fetched:
    data: bytes = source.value
    _check_bytes(len(data), source.label, limits)
    return Fetched(data)


def _fetch_base64(source: ImageSource, limits: FetchLimits) -> Fetched:
    """Read base64 in all its dresses: data: prefix, white space, url-safe alphabet, missing padding."""
    text: str = source.value.strip()
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma:
            raise RowError("fetch", f"{source.label} starts with 'data:' but has no comma before its data")
        if not header.lower().rstrip().endswith("base64"):
            data = unquote_to_bytes(text.encode(errors="surrogatepass"))
            _check_bytes(len(data), source.label, limits)
            return Fetched(data)
        text = unquote(text)
    compact = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    _check_bytes(len(compact) * 3 // 4, source.label, limits)
    try:
        return Fetched(base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True))
    except (binascii.Error, ValueError) as error:
        raise RowError("fetch", f"{source.label} is not valid base64: {error}") from error


def _fetch_path(source: ImageSource, limits: FetchLimits) -> Fetched:
    try:
        path = _local_path(source.value)
        if not os.path.isfile(path):  # a directory, or a pipe that would block for ever
            what = "is no regular file" if os.path.exists(path) else "does not exist"
            raise RowError("fetch", f"{source.label} {what}; relative paths start from {os.getcwd()}")
        with open(path, "rb") as file:
            state = os.fstat(file.fileno())
            _check_bytes(state.st_size, source.label, limits)
            return Fetched(file.read(limits.max_image_bytes), _mark(state))
    except (OSError, ValueError) as error:
        raise RowError("fetch", f"{source.label} cannot be read: {getattr(error, 'strerror', error)}") from error


def _local_path(address: str) -> str:
    path = url2pathname(urlsplit(address).path) if address[:7].lower() == "file://" else address
    return os.path.expanduser(path)


def _mark(state: os.stat_result) -> str:
    return f"file:{state.st_mtime_ns}:{state.st_size}"


def _fetch_remote(source: ImageSource, limits: FetchLimits) -> Fetched:
    from qwenvl_kit.images import stores  # fsspec and the stores' clients are imported where one is first read

    data = stores.read(source.value, source.label, limits)
    _check_bytes(len(data), source.label, limits)
    return Fetched(data)


def too_slow(label: str, limits: FetchLimits) -> RowError:
    """The fault of a place that did not answer in time."""
    return RowError(
        "fetch", f"{label} was not fetched within timeout_s={limits.timeout_s:g}; raise it if the host is slow"
    )


def _fetch_url(source: ImageSource, limits: FetchLimits) -> Fetched:
    from qwenvl_kit.images import web  # urllib3 is imported where an address is first read

    return Fetched(*web.get(source.value, source.label, limits))


def _check_bytes(n_bytes: int, label: str, limits: FetchLimits) -> None:
    if n_bytes > limits.max_image_bytes:
        raise RowError(
            "fetch",
            f"{label} has {n_bytes} bytes, more than max_image_bytes={limits.max_image_bytes}; "
            "raise it if you trust it",
        )
