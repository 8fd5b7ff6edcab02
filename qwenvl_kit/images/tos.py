"""An address in TOS goes in, the object's bytes come out, through the official SDK.

Where TOS is and who asks is taken from the environment at the first read, kept with the client alone, and told to
nobody. It knows nothing of limits on time.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from qwenvl_kit.errors import RowError

MAX_RETRIES = 3
_CHUNK = 1 << 16
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


def read(address: str, label: str, n_most: int) -> bytes:
    """Read an object, at most one byte more than `n_most`.

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
    for n_retries in range(MAX_RETRIES + 1):
        try:
            return _body(_client(settings).get_object(bucket, key), n_most)
        except tos.exceptions.TosServerError as error:
            raise RowError("fetch", f"{label} cannot be read: {_reason(error, settings)}") from None
        except (tos.exceptions.TosClientError, requests.RequestException) as error:
            # The SDK tries again until an answer begins; one that breaks off is ours to ask for again.
            if n_retries == MAX_RETRIES or not _broke_off(error):
                cause = getattr(error, "cause", None) or error
                what = f"{settings.endpoint} cannot be reached or its answer is not whole ({type(cause).__name__})"
                raise RowError("fetch", f"{label} cannot be read: {what}") from None  # its message has signatures
            time.sleep(0.1 * 2**n_retries)
    raise AssertionError("the last round returns or raises")


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
def _client(settings: Settings) -> Any:
    """One client, and with it one pool of connections, for all reads under the same settings."""
    import tos

    # Below this level the SDK writes requests' signatures, and whatever a server echoes, into the log.
    logging.getLogger("tos").setLevel(logging.WARNING)
    return tos.TosClientV2(
        ak=settings.access_key,
        sk=settings.secret_key,
        security_token=settings.security_token,
        endpoint=settings.endpoint,
        region=settings.region,
        is_custom_domain=settings.is_custom_domain,
        max_retry_count=MAX_RETRIES,
        dns_cache_time=0,  # it would replace the resolver of the whole process
        enable_crc=False,  # of uploads; the length of what is read is checked
    )


def _body(output: Any, n_most: int) -> bytes:
    body = bytearray()
    while len(body) <= n_most and (chunk := output.read(_CHUNK)):
        body += chunk
    if len(body) > n_most:
        output.content.resp.close()
    return bytes(body)


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
