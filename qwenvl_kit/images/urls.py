"""Names of URLs and paths that are safe to show and to group by."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_SEPARATOR = re.compile(r"([/\\])")


def redact_url(url: str) -> str:
    """Return a URL without user names, passwords, signed queries and fragments, for messages and records.

    Examples
    --------
    >>> redact_url("https://me:secret@example.org/a.png?X-Amz-Signature=abc")
    'https://***@example.org/a.png?…'
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets that are no IPv6 address; without parts, nothing can be redacted in parts
        return f"{url.partition('://')[0]}://…"
    _, at, host = parts.netloc.rpartition("@")
    # A password with "/", "?" or "#" in it ended the host too early, or one slash too many began the path too early.
    if not at and "@" in url and (":" in host or not host):
        return f"{parts.scheme}://…"
    netloc = f"***@{host}" if at else host
    path, semicolon, parameters = parts.path.partition(";")  # parameters may sign the URL, as a query does
    path += ";…" if "=" in parameters else semicolon + parameters
    query = "?…" if parts.query else ""
    return clip(f"{parts.scheme}://{netloc}{path}{query}")


def redact_path(text: str) -> str:
    """Return a path without what would be a secret if it were a URL whose scheme is missing.

    Works without backtracking: the text is untrusted, and may be long.
    """
    path, question_mark, query = "".join(map(_redact_login, _SEPARATOR.split(text))).partition("?")
    return clip(f"{path}?…" if "=" in query else f"{path}{question_mark}{query}")


def host_key(url: str) -> str:
    """Return the scheme, host and port of a URL in one spelling.

    Examples
    --------
    >>> host_key("HTTPS://me:pw@Example.org/a.png"), host_key("s3://bucket/a.png")
    ('https://example.org:443', 's3://bucket')
    """
    scheme = url.partition(":")[0].strip().lower()
    try:
        parts = urlsplit(url.strip())
        name, port = parts.netloc.rpartition("@")[2].lower(), parts.port
    except ValueError:  # fetching raises the error
        return f"{scheme}://"
    default = {"http": 80, "https": 443}.get(scheme)
    if port is not None or default is None:
        return f"{scheme}://{name}"
    return f"{scheme}://{name.removesuffix(':')}:{default}"


def clip(text: str, length: int = 120) -> str:
    """Return at most `length` characters, without unpaired surrogates, which odd file names contain."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _redact_login(part: str) -> str:
    login, _, host = part.rpartition("@")
    return f"***@{host}" if ":" in login else part
