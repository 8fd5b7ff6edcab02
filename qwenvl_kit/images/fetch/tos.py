"""Read objects of TOS, through the official SDK.

Endpoint and credentials come from the environment at the first read. Only the client keeps them.
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
    """Endpoint and credentials of TOS; without keys, requests are anonymous, as public buckets allow."""

    endpoint: str
    region: str
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    security_token: str | None = field(default=None, repr=False)

    @property
    def is_custom_domain(self) -> bool:
        """Whether the endpoint is of one bucket, so that the bucket's name is left out of the host.

        TOS's own endpoints begin with ``tos-``: https://www.volcengine.com/docs/6349/107356
        """
        return not _host(self.endpoint).startswith("tos-")


def open_object(url: str, _deadline: float) -> TosObject:
    """Open an object.

    Raises
    ------
    RowError
        It is not found, access is denied, or the environment has no endpoint; of the stage ``fetch``.
    """
    import requests
    import tos

    settings = settings_of(os.environ)
    bucket, _, key = url.partition("://")[2].partition("/")
    if not bucket or not key:
        raise RowError("fetch", "The URL names no object. Write tos://bucket/path/of/the/object.")
    client = _client(settings, os.getpid())
    try:
        return TosObject(client.get_object(bucket, key), settings)
    except tos.exceptions.TosServerError as error:
        raise RowError("fetch", f"Cannot read the image: {_reason(error, settings)}.") from None
    except (tos.exceptions.TosClientError, requests.RequestException) as error:
        raise _failure(error, settings) from None  # its message has signatures


class TosObject:
    """An object of TOS that is open for reading."""

    def __init__(self, output: Any, settings: Settings) -> None:
        self._output, self._settings = output, settings
        self.size: int | None = output.content_length

    def read(self, n_bytes: int) -> bytes:
        """Return at most `n_bytes`, none at the end."""
        import requests
        import tos

        try:
            data: bytes = self._output.read(min(n_bytes, _CHUNK))
        except (tos.exceptions.TosClientError, requests.RequestException) as error:
            raise _failure(error, self._settings) from None
        return data

    def close(self) -> None:
        """Close the connection where a part of the object is unread."""
        self._output.content.resp.close()


@register_closer
def close_idle_connections() -> None:
    """Close the connections that clients keep for a next request."""
    for client in list(_clients):
        client.session.close()


def settings_of(environment: Mapping[str, str]) -> Settings:
    """Return the settings of TOS in an environment.

    Examples
    --------
    >>> settings_of({"TOS_REGION": "cn-beijing"}).endpoint
    'https://tos-cn-beijing.volces.com'

    Raises
    ------
    RowError
        The endpoint, the region or a key is missing.
    """
    endpoint, region = _first(environment, _ENDPOINTS), _first(environment, _REGIONS)
    keys = next(([environment.get(name, "") for name in names] for names in _KEYS if environment.get(names[0])), None)
    access_key, secret_key, security_token = keys or ("", "", "")
    if not (endpoint or region) or (access_key and not secret_key):
        raise RowError("fetch", f"Cannot read the image: no credentials; {_WANTED}.")
    if _host(endpoint).startswith("tos-s3-"):
        raise RowError(
            "fetch",
            f"TOS_ENDPOINT={_bare(endpoint)} is the endpoint of S3's protocol. Set it to "
            f"{_bare(endpoint).replace('tos-s3-', 'tos-')}.",
        )
    region = region or _region(endpoint)
    if access_key and not region:
        raise RowError("fetch", "Cannot read the image: no region; set TOS_REGION in the environment.")
    endpoint = _bare(endpoint) if endpoint else f"https://tos-{region}.volces.com"
    return Settings(endpoint, region, access_key, secret_key, security_token or None)


@functools.lru_cache(maxsize=8)
def _client(settings: Settings, process: int) -> Any:
    """Return one client, and with it one pool of connections, for all reads of a process under the same settings.

    A forked child makes its own: requests of both processes over one connection get each other's responses.
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


def _failure(error: Any, settings: Settings) -> RowError:
    """Return the error of a response that is missing or incomplete.

    The SDK retries until a response begins; one that breaks off is ours to retry.
    """
    cause = getattr(error, "cause", None) or error
    what = f"{settings.endpoint} cannot be reached or its response is not whole ({type(cause).__name__})"
    return (TransientError if _broke_off(error) else RowError)("fetch", f"Cannot read the image: {what}.")


def _broke_off(error: Exception) -> bool:
    return not hasattr(error, "cause") or "content-length" in str(getattr(error, "message", ""))


def _reason(error: Any, settings: Settings) -> str:
    status, code = error.status_code, str(error.code or "")
    shown = f" ({code})" if code.isalnum() else ""
    if status in (401, 403):
        return f"access denied{shown}" if settings.access_key else f"access denied without credentials; {_WANTED}"
    return f"not found{shown}" if status == 404 else f"status {status}{shown}"


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environment[name].strip() for name in names if environment.get(name)), "")


def _bare(endpoint: str) -> str:
    """Return the endpoint with its scheme and without a login."""
    scheme, found, rest = endpoint.rpartition("://")
    return f"{scheme if found else 'https'}://{rest.rpartition('@')[2].rstrip('/')}"


def _host(endpoint: str) -> str:
    return (urlsplit(_bare(endpoint)).hostname or "") if endpoint else ""


def _region(endpoint: str) -> str:
    first = _host(endpoint).partition(".")[0]
    return first.removeprefix("tos-") if first.startswith("tos-") else ""
