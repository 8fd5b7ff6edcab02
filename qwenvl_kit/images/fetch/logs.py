"""Drop log records of HTTP and storage clients, which contain signed URLs, keys and responses."""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections.abc import Iterator

# Root loggers of urllib3, fsspec, the storage clients and their dependencies.
_ROOTS = frozenset(
    (
        *("adal", "adlfs", "aiobotocore", "aiohttp", "aiohttp_retry", "azure", "boto3", "botocore", "fsspec", "gcsfs"),
        *("google", "google_auth_httplib2", "hf_xet", "httpcore", "httpx", "huggingface_hub", "msal", "oss2", "ossfs"),
        *("paramiko", "requests", "requests_oauthlib", "s3fs", "s3transfer", "smbprotocol", "tos", "urllib3"),
    )
)
_is_quiet: contextvars.ContextVar[bool] = contextvars.ContextVar("qwenvl_kit_is_quiet", default=False)
_known: tuple[int, frozenset[str]] = (0, frozenset())


@contextlib.contextmanager
def quiet(*more_roots: str) -> Iterator[None]:
    """Drop the log records of those libraries within the block, also from an event loop's thread that works for it.

    The caller's own use of the same libraries is logged, since the filter checks the context of the call.
    """
    _add_filters(_ROOTS.union(more_roots))
    token = _is_quiet.set(True)
    try:
        yield
    finally:
        _is_quiet.reset(token)


def _add_filters(roots: frozenset[str]) -> None:
    global _known
    loggers = logging.root.manager.loggerDict
    if _known == (len(loggers), roots):  # a filter counts for one logger alone, and modules make new ones when imported
        return
    _known = len(loggers), roots
    for name, logger in list(loggers.items()):
        if name.partition(".")[0] in roots and isinstance(logger, logging.Logger) and _passes not in logger.filters:
            logger.addFilter(_passes)


def _passes(_: logging.LogRecord) -> bool:
    return not _is_quiet.get()
