"""An `ImageSource` that names a place goes in, its bytes come out, within limits.

It never looks inside the bytes. http and https go through urllib3 with a policy on addresses, everything else with a
scheme through fsspec.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from qwenvl_kit.errors import MissingExtra, RowError

if TYPE_CHECKING:
    from qwenvl_kit.records import ImageSource

_EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "tos": ("tosfs", "tos")}
# Here the host in an address is a bucket; what serves it is set by who runs this, not by who wrote the address.
_BUCKETS = frozenset({"s3", "s3a", "tos", "gs", "gcs", "oss", "az", "abfs", "hf", "memory"})
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for another endpoint)",
    "tos": "TOS_ACCESS_KEY, TOS_SECRET_KEY, TOS_ENDPOINT and TOS_REGION",
}


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Limits on one fetch: seconds, bytes, and whether private networks are allowed."""

    timeout_s: float
    max_image_bytes: int
    allow_private_hosts: bool


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
    """Read through fsspec, which knows s3, tos, gs, hf and more once their packages are installed."""
    scheme = source.value.partition("://")[0].lower()
    if not limits.allow_private_hosts and scheme not in _BUCKETS:
        raise RowError(
            "fetch",
            f"{source.label}: where {scheme}:// addresses lead cannot be checked, so allow_private_hosts=False refuses "
            "them; pass allow_private_hosts=True if that is meant",
        )
    try:
        fsspec = _remote_library(scheme)
        if scheme not in fsspec.available_protocols():
            raise RowError("fetch", f"{source.label}: nothing here reads {scheme}:// addresses; use https, s3 or tos")
        data = _read_within(fsspec, source, limits)
    except RowError:
        raise
    except MissingExtra as error:
        raise RowError("fetch", str(error)) from error
    except ImportError as error:  # fsspec names the package that the scheme needs
        raise RowError("fetch", f"{source.label} cannot be read: {error}") from error
    except Exception as error:  # each store's client has a hierarchy of its own
        raise RowError("fetch", f"{source.label} cannot be read: {_remote_reason(scheme, error)}") from error
    _check_bytes(len(data), source.label, limits)
    return Fetched(data)


def _read_within(fsspec, source: ImageSource, limits: FetchLimits) -> bytes:  # type: ignore[no-untyped-def]
    """Read on a thread of its own, since the stores' clients retry for minutes; one that is late is left behind."""
    read: list[bytes] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            with fsspec.open(source.value, "rb") as file:
                read.append(file.read(limits.max_image_bytes + 1))
        except Exception as error:  # noqa: BLE001  # each store's client has a hierarchy of its own
            failed.append(error)

    reader = threading.Thread(target=work, name="qwenvl_kit-remote", daemon=True)
    reader.start()
    reader.join(limits.timeout_s)
    if failed:
        raise failed[0]
    if not read:
        raise too_slow(source.label, limits)
    return read[0]


def too_slow(label: str, limits: FetchLimits) -> RowError:
    """The fault of a place that did not answer in time."""
    return RowError(
        "fetch", f"{label} was not fetched within timeout_s={limits.timeout_s:g}; raise it if the host is slow"
    )


def _remote_library(scheme: str):  # type: ignore[no-untyped-def]  # fsspec has no types
    package, extra = _EXTRAS.get(scheme, ("fsspec", "s3"))
    try:
        importlib.import_module(package)
        return importlib.import_module("fsspec")
    except ImportError as error:
        raise MissingExtra(f"reading {scheme}:// addresses", extra) from error


def _remote_reason(scheme: str, error: Exception) -> str:
    """The kind of failure only: clients' messages can hold keys and signed addresses."""
    name = type(error).__name__
    if "credential" in name.lower() or (scheme == "tos" and not os.environ.get("TOS_ACCESS_KEY")):
        wanted = _CREDENTIALS.get("tos" if scheme == "tos" else "s3", "the store's credentials")
        return f"no credentials; set {wanted} in the environment"
    return {"FileNotFoundError": "not found", "PermissionError": "access denied"}.get(name, name)


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
