"""Objects in TOS, through the official SDK.

Where TOS is and who asks is taken from the environment at the first read, kept with the client alone, and told to
nobody.
"""

from __future__ import annotations

import functools
import logging
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.fetch.idle import register_closer
from qwenvl_kit.images.fetch.retry import TransientError

MAX_RETRIES = 3
_MAX_CONNECTIONS = 16  # to one bucket
_CHUNK = 1 << 16
_clients: weakref.WeakSet[Any] = weakref.WeakSet()
# What users of TOS have set: the SDK's own names, those of the data-lake service, those of the platform's tools.
_KEYS = (
    ("TOS_ACCESS_KEY", "TOS_SECRET_KEY", "TOS_SECURITY_TOKEN"),
    ("TOS_ACCESS_KEY_ID", "TOS_SECRET_ACCESS_KEY", "TOS_SESSION_TOKEN"),
    ("VOLCENGINE_ACCESS_KEY", "VOLCENGINE_SECRET_KEY", "VOLCENGINE_SESSION_TOKEN"),
    ("VOLC_ACCESSKEY", "VOLC_SECRETKEY", "VOLC_SESSIONTOKEN"),
)
_ENDPOINTS = ("TOS_ENDPOINT", "TOS_ENDPOINT_URL")
_REGIONS = ("TOS_REGION", "VOLCENGINE_REGION", "VOLC_REGION")
_WANTED = "set TOS_ACCESS_KEY, TOS_SECRET_KEY and TOS_REGION (and TOS_ENDPOINT for another endpoint) in the environment"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where TOS is, and who asks; without keys, nobody does, which public buckets answer."""

    endpoint: str
    region: str
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    security_token: str | None = field(default=None, repr=False)

    @property
    def is_custom_domain(self) -> bool:
        """Whether the endpoint stands for one bucket, and its name is left out of the host.

        TOS's own endpoints begin with ``tos-``: https://www.volcengine.com/docs/6349/107356
        """
        return not _host(self.endpoint).startswith("tos-")


def open_object(address: str, label: str, _deadline: float) -> TosObject:
    """Open an object.

    Raises
    ------
    RowError
        It is not there, may not be read, or the environment does not say where TOS is; of the stage ``fetch``.
    """
    import requests
    import tos

    settings = settings_of(os.environ, label)
    bucket, _, key = address.partition("://")[2].partition("/")
    if not bucket or not key:
        raise RowError("fetch", f"{label} names no object; the form is tos://bucket/path/of/the/object")
    client = _client(settings, os.getpid())
    try:
        return TosObject(client.get_object(bucket, key), label, settings)
    except tos.exceptions.TosServerError as error:
        raise RowError("fetch", f"{label} cannot be read: {_reason(error, settings)}") from None
    except (tos.exceptions.TosClientError, requests.RequestException) as error:
        raise _failure(error, label, settings) from None  # its message has signatures


class TosObject:
    """An object of TOS that is open for reading."""

    def __init__(self, output: Any, label: str, settings: Settings) -> None:
        self._output, self._label, self._settings = output, label, settings
        self.size: int | None = output.content_length

    def read(self, n_bytes: int) -> bytes:
        """Return at most so many bytes, none at the end."""
        import requests
        import tos

        try:
            data: bytes = self._output.read(min(n_bytes, _CHUNK))
        except (tos.exceptions.TosClientError, requests.RequestException) as error:
            raise _failure(error, self._label, self._settings) from None
        return data

    def close(self) -> None:
        """Close the connection where the object was not read to its end."""
        self._output.content.resp.close()


@register_closer
def close_idle_connections() -> None:
    """Close the connections that clients keep for a next request."""
    for client in list(_clients):
        client.session.close()


def settings_of(environment: Mapping[str, str], label: str) -> Settings:
    """What an environment says of TOS.

    Examples
    --------
    >>> settings_of({"TOS_REGION": "cn-beijing"}, "tos://bucket/a.png").endpoint
    'https://tos-cn-beijing.volces.com'

    Raises
    ------
    RowError
        It says too little.
    """
    endpoint, region = _first(environment, _ENDPOINTS), _first(environment, _REGIONS)
    keys = next(([environment.get(name, "") for name in names] for names in _KEYS if environment.get(names[0])), None)
    access_key, secret_key, security_token = keys or ("", "", "")
    if not (endpoint or region) or (access_key and not secret_key):
        raise RowError("fetch", f"{label} cannot be read: no credentials; {_WANTED}")
    if _host(endpoint).startswith("tos-s3-"):
        raise RowError(
            "fetch",
            f"{label} cannot be read: TOS_ENDPOINT={_bare(endpoint)} is the one for S3's protocol; set it to "
            f"{_bare(endpoint).replace('tos-s3-', 'tos-')}",
        )
    region = region or _region(endpoint)
    if access_key and not region:
        raise RowError("fetch", f"{label} cannot be read: no region; set TOS_REGION in the environment")
    endpoint = _bare(endpoint) if endpoint else f"https://tos-{region}.volces.com"
    return Settings(endpoint, region, access_key, secret_key, security_token or None)


@functools.lru_cache(maxsize=8)
def _client(settings: Settings, process: int) -> Any:
    """Return one client, and with it one pool of connections, for all reads of a process under the same settings.

    A forked child makes its own: requests of both processes over one connection get each other's answers.
    """
    import tos

    # Below this level the SDK writes requests' signatures, and whatever a server echoes, into the log.
    logging.getLogger("tos").setLevel(logging.WARNING)
    client = tos.TosClientV2(
        ak=settings.access_key,
        sk=settings.secret_key,
        security_token=settings.security_token,
        endpoint=settings.endpoint,
        region=settings.region,
        is_custom_domain=settings.is_custom_domain,
        max_connections=_MAX_CONNECTIONS,
        max_retry_count=MAX_RETRIES,
        dns_cache_time=0,  # it would replace the resolver of the whole process
        enable_crc=False,  # of uploads; the length of what is read is checked
    )
    _clients.add(client)
    return client


def _failure(error: Any, label: str, settings: Settings) -> RowError:
    """Return the fault of an answer that did not come, or not whole.

    The SDK tries again until an answer begins; one that breaks off is ours to ask for again.
    """
    cause = getattr(error, "cause", None) or error
    what = f"{settings.endpoint} cannot be reached or its answer is not whole ({type(cause).__name__})"
    return (TransientError if _broke_off(error) else RowError)("fetch", f"{label} cannot be read: {what}")


def _broke_off(error: Exception) -> bool:
    return not hasattr(error, "cause") or "content-length" in str(getattr(error, "message", ""))


def _reason(error: Any, settings: Settings) -> str:
    status, code = error.status_code, str(error.code or "")
    told = f" ({code})" if code.isalnum() else ""
    if status in (401, 403):
        return f"access denied{told}" if settings.access_key else f"access denied without credentials; {_WANTED}"
    return f"not found{told}" if status == 404 else f"status {status}{told}"


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environment[name].strip() for name in names if environment.get(name)), "")


def _bare(endpoint: str) -> str:
    """The endpoint with its scheme, without a login that somebody put into it."""
    scheme, found, rest = endpoint.rpartition("://")
    return f"{scheme if found else 'https'}://{rest.rpartition('@')[2].rstrip('/')}"


def _host(endpoint: str) -> str:
    return (urlsplit(_bare(endpoint)).hostname or "") if endpoint else ""


def _region(endpoint: str) -> str:
    first = _host(endpoint).partition(".")[0]
    return first.removeprefix("tos-") if first.startswith("tos-") else ""
