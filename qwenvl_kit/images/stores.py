"""An address in a store of objects goes in, its bytes come out, within limits.

tos:// goes through TOS's own SDK, everything else with a scheme through fsspec. The clients find their credentials
themselves and keep their connections from one picture to the next; what they say of a failure is not repeated, since
it may hold keys and signed addresses.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qwenvl_kit.errors import MissingExtra, RowError
from qwenvl_kit.images.fetch import too_slow

if TYPE_CHECKING:
    from qwenvl_kit.images.fetch import FetchLimits

# Packages that a scheme needs, and the extra that brings them; hf:// needs what the models need.
_NEEDS = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "gcs": ("gcsfs", "gs"),
    "tos": ("tos", "tos"),
}
# Here the host in an address is a bucket; what serves it is set by who runs this, not by who wrote the address.
_BUCKETS = frozenset({"s3", "s3a", "tos", "gs", "gcs", "oss", "az", "abfs", "hf", "memory"})
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for another endpoint; "
    "FSSPEC_S3_ANON=true for public buckets)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS (FSSPEC_GS_TOKEN=anon for public buckets)",
    "hf": "HF_TOKEN",
}
_KNOWN = {"FileNotFoundError": "not found", "PermissionError": "access denied"}


def read(address: str, label: str, limits: FetchLimits) -> bytes:
    """Read an object, at most one byte more than the limit.

    Parameters
    ----------
    address : str
        With any scheme but http, https and file.
    label : str
        Its name for messages, free of secrets.
    limits : FetchLimits
        Time, bytes and hosts allowed.

    Raises
    ------
    RowError
        It cannot be had within the limits, of the stage ``fetch``.
    """
    scheme = address.partition("://")[0].lower()
    if not limits.allow_private_hosts and (scheme not in _BUCKETS or "::" in address):
        raise RowError(
            "fetch",
            f"{label}: where {scheme}:// addresses lead cannot be checked, so allow_private_hosts=False refuses "
            "them; pass allow_private_hosts=True if that is meant",
        )
    try:
        reader = _reader(scheme, label)
        return _within(lambda: reader(address, label, limits.max_image_bytes), label, limits)
    except RowError:
        raise
    except MissingExtra as error:
        raise RowError("fetch", str(error)) from error
    except ImportError as error:  # fsspec names the package that the scheme needs
        raise RowError("fetch", f"{label} cannot be read: {error}") from error
    except Exception as error:  # each store's client has a hierarchy of its own
        raise RowError("fetch", f"{label} cannot be read: {_reason(scheme, error)}") from error


def _reader(scheme: str, label: str) -> Callable[[str, str, int], bytes]:
    package, extra = _NEEDS.get(scheme, ("fsspec", "s3"))
    try:
        importlib.import_module(package)
        if scheme == "tos":
            from qwenvl_kit.images import tos

            return tos.read
        fsspec = importlib.import_module("fsspec")
    except ImportError as error:
        raise MissingExtra(f"reading {scheme}:// addresses", extra) from error
    if scheme not in fsspec.available_protocols():
        raise RowError("fetch", f"{label}: nothing here reads {scheme}:// addresses; use https, s3 or tos")
    return _read_fsspec


def _read_fsspec(address: str, label: str, n_most: int) -> bytes:
    """One request where the store can do with one; fsspec keeps its clients."""
    import fsspec

    files, path = fsspec.core.url_to_fs(address)
    data: bytes = files.cat_file(path, end=n_most + 1)
    return data


def _within(work: Callable[[], bytes], label: str, limits: FetchLimits) -> bytes:
    """Work on a thread of its own, since the stores' clients retry for minutes; one that is late is left behind."""
    done: list[bytes] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            done.append(work())
        except Exception as error:  # noqa: BLE001  # each store's client has a hierarchy of its own
            failed.append(error)

    reader = threading.Thread(target=run, name="qwenvl_kit-store", daemon=True)
    reader.start()
    reader.join(limits.timeout_s)
    if failed:
        raise failed[0]
    if not done:
        raise too_slow(label, limits)
    return done[0]


def _reason(scheme: str, error: Any) -> str:
    """The kind of failure only."""
    name = type(error).__name__
    if "credential" in name.lower():
        family = {"s3a": "s3", "gcs": "gs"}.get(scheme, scheme)
        return f"no credentials; set {_CREDENTIALS.get(family, 'those of the store')} in the environment"
    return _KNOWN.get(name, name)
