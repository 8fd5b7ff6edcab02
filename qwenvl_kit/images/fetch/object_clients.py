"""Open objects through the client of their scheme: TOS's SDK, s3fs, or another file system of fsspec."""

from __future__ import annotations

import importlib
import io
import time
from collections.abc import Callable
from typing import Any, Protocol

from qwenvl_kit.errors import MissingExtra, RowError

SCHEMES = ("http", "https", "file", "s3", "s3a", "gs", "gcs", "tos", "hf", "data")
"""Schemes that are always allowed; the first three and the last need no object storage."""

# Packages that a scheme needs, and the extra that brings them; hf:// needs what the models need.
_NEEDS = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "gcs": ("gcsfs", "gs"),
    "tos": ("tos", "tos"),
}
_READ_AHEAD = 1 << 16  # bytes, where a client must read ahead


class OpenObject(Protocol):
    """An object that is open for reading."""

    size: int | None
    """Its bytes, None where they are not known before all are read."""

    def read(self, n_bytes: int) -> bytes:
        """Return at most `n_bytes`, none at the end."""

    def close(self) -> None:
        """Release or close its connection."""


Opener = Callable[[str, float], OpenObject]
"""From a URL and a deadline of ``time.monotonic()`` to an open object."""


def find_opener(scheme: str) -> Opener:
    """Return the function that opens URLs of a scheme.

    Raises
    ------
    MissingExtra
        The scheme's package is not installed.
    RowError
        No file system reads the scheme.
    """
    package, extra = _NEEDS.get(scheme, ("fsspec", "s3"))
    try:
        importlib.import_module(package)
        if scheme == "tos":
            from qwenvl_kit.images.fetch import tos

            return tos.open_object
        fsspec = importlib.import_module("fsspec")
    except ImportError as error:
        raise MissingExtra(f"reading {scheme}:// URLs", extra) from error
    if scheme not in fsspec.available_protocols():
        raise RowError("fetch", f"No file system reads {scheme}:// URLs. Use https, s3 or tos.")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:  # fsspec names the package that the scheme needs
        raise RowError("fetch", f"{scheme}:// URLs need another package: {error}") from error
    return _open_s3 if scheme in ("s3", "s3a") else _open_fsspec


def _open_s3(url: str, deadline: float) -> OpenObject:
    """Open with one request, whose response is read as it arrives; fsspec's own files request the size first."""
    import fsspec

    return _S3Object(fsspec.filesystem("s3", **_options("s3", url)), url, deadline)


class _S3Object:
    """An object of S3, read from the response to one request; what is late is cancelled."""

    def __init__(self, files: Any, url: str, deadline: float) -> None:
        self._files, self._deadline = files, deadline
        bucket, key, version = files.split_path(files._strip_protocol(url))
        if not key:
            raise FileNotFoundError(url)
        options = {**getattr(files, "req_kw", {}), **({"VersionId": version} if version else {})}
        response = self._sync(files._call_s3, "get_object", Bucket=bucket, Key=key, **options)
        self.size: int | None = response.get("ContentLength")
        self._body = response["Body"]

    def read(self, n_bytes: int) -> bytes:
        data: bytes = self._sync(self._read, n_bytes)
        return data

    def close(self) -> None:
        self._files.loop.call_soon_threadsafe(self._body.close)

    async def _read(self, n_bytes: int) -> bytes:
        body = io.BytesIO()
        while body.tell() < n_bytes and (chunk := await self._body.read(n_bytes - body.tell())):
            body.write(chunk)
        return body.getvalue()

    def _sync(self, function: Any, *arguments: Any, **options: Any) -> Any:
        from fsspec.asyn import sync

        left = max(0.001, self._deadline - time.monotonic())
        return sync(self._files.loop, function, *arguments, timeout=left, **options)


def _open_fsspec(url: str, deadline: float) -> OpenObject:
    import fsspec

    scheme = url.partition("://")[0].lower()
    files = fsspec.filesystem(scheme, **_options(scheme, url))
    # 0 makes the hub's files come as a stream, in one request; others are requested piece by piece.
    options = {"block_size": 0} if scheme == "hf" else {"block_size": _READ_AHEAD}
    return _FsspecFile(files.open(files._strip_protocol(url), "rb", **options))


def _options(scheme: str, url: str) -> dict[str, Any]:
    """Return the options of a file system in a URL; of the built-in schemes, `version_aware` alone.

    The endpoint and the credentials are set by who runs this.
    """
    import fsspec

    found: dict[str, Any] = fsspec.get_filesystem_class(scheme)._get_kwargs_from_urls(url) or {}
    return {name: value for name, value in found.items() if name == "version_aware" or scheme not in SCHEMES}


class _FsspecFile:
    """A file that fsspec opened."""

    def __init__(self, file: Any) -> None:
        self._file = file
        size = getattr(file, "size", None)
        self.size = size if isinstance(size, int) else None

    def read(self, n_bytes: int) -> bytes:
        data: bytes = self._file.read(n_bytes)
        return data

    def close(self) -> None:
        self._file.close()
