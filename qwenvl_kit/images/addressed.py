"""Hand the address of an image over in place of its pixels; a data URL holds the file itself."""

from __future__ import annotations

import hashlib
import socket
from urllib.parse import urlsplit

import numpy as np

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.fetch.addresses import is_metadata, is_public
from qwenvl_kit.images.fetch.limits import FetchLimits
from qwenvl_kit.types import ImageSource, LoadedImage

_NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


def by_address(source: ImageSource, limits: FetchLimits) -> LoadedImage:
    """Return an image without pixels, whose digest is that of its URL; nothing is fetched.

    Raises
    ------
    RowError
        The cell is no http, https or data URL, or its host is an IP address that `limits` block, of the stage
        ``fetch``.

    Examples
    --------
    >>> from qwenvl_kit.images import classify
    >>> (source,) = classify("https://example.org/a.png")
    >>> by_address(source, FetchLimits(30, 1, True)).address
    'https://example.org/a.png'
    """
    url = str(source.value)
    if source.kind == "url":
        _check_host(url, limits)
    elif source.kind != "base64" or not url.startswith("data:image/"):
        raise RowError(
            "fetch", "image_mode='url' sends http, https and data URLs only. Pass image_mode='data' to send pixels."
        )
    digest = hashlib.blake2b(f"address:{url}".encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return LoadedImage(_NO_PIXELS, digest, (0, 0), source.label, address=url)


def _check_host(url: str, limits: FetchLimits) -> None:
    """Refuse what the URL itself shows; a name is resolved by the server, under its own rules."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError as error:
        raise RowError("fetch", "The URL is not valid.") from error
    if not host:
        raise RowError("fetch", "The URL has no host.")
    found = _numeric(host)
    is_private = host == "localhost" or not all(map(is_public, found))
    if any(map(is_metadata, found)) or (is_private and not limits.allow_private_hosts):
        raise RowError("fetch", f"The address of host {host} is blocked. Give the URL of a public host.")


def _numeric(host: str) -> list[str]:
    """Return the addresses of a host that is written as a number, also as ``0x7f.1``; none for a name."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []
    return [str(entry[4][0]) for entry in found]
