"""Read images that the cell itself contains: bytes, base64 text and data: URIs."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import unquote, unquote_to_bytes

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.fetch.fetched import Fetched
from qwenvl_kit.images.fetch.limits import FetchLimits

_STANDARD_ALPHABET = str.maketrans("-_", "+/")


def read_bytes(data: bytes, limits: FetchLimits) -> Fetched:
    """Return bytes of at most ``limits.max_image_bytes``."""
    limits.check_bytes(len(data))
    return Fetched(data)


def read_base64(text: str, limits: FetchLimits) -> Fetched:
    """Decode base64 in any form: data: prefix, white space, URL-safe alphabet, missing padding.

    Raises
    ------
    RowError
        The text is not base64, or its bytes exceed the limit; of the stage ``fetch``.
    """
    text = text.strip()
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma:
            raise RowError("fetch", "The data: URI has no comma before its data. Write data:image/png;base64,….")
        if not header.lower().rstrip().endswith("base64"):
            return read_bytes(unquote_to_bytes(text.encode(errors="surrogatepass")), limits)
        text = unquote(text)
    compact = "".join(text.split()).rstrip("=").translate(_STANDARD_ALPHABET)
    limits.check_bytes(len(compact) * 3 // 4)
    try:
        return Fetched(base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True))
    except (binascii.Error, ValueError) as error:
        raise RowError("fetch", f"Not valid base64: {error}. Pass image_src_type='image_url' for a URL.") from error
