"""The address of a server, and the headers of its requests.

The key is read from the environment for each request, and held by no object.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from qwenvl_kit.errors import ConfigError, printable

_MAX_QUOTED = 300
_MIN_SECRET = 6  # a shorter value, such as "EMPTY" or "x", is a placeholder, and may occur in any text


@dataclass(frozen=True, slots=True)
class Server:
    """A server, and how long one row may take.

    Attributes
    ----------
    base_url : str
        Up to ``/v1``, without a slash at its end.
    api_key_env : str
        Environment variable that holds the key.
    timeout_s : float
        Maximum seconds of a row, retries included.
    """

    base_url: str
    api_key_env: str = "OPENAI_API_KEY"
    timeout_s: float = 600.0

    @property
    def is_https(self) -> bool:
        """Whether TLS protects the connection."""
        return self.base_url.startswith("https://")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.base_url)
        return parts.hostname or "", parts.port or (443 if self.is_https else 80)

    def path(self, name: str) -> str:
        """Return the path of an endpoint, such as ``/v1/models``.

        Examples
        --------
        >>> Server("http://localhost:8000/v1").path("models")
        '/v1/models'
        """
        return f"{urlsplit(self.base_url).path}/{name}"

    def headers(self) -> dict[str, str]:
        """Return the headers of a request, with the key where there is one.

        Raises
        ------
        ConfigError
            The key contains a character that no header may hold; the message does not quote it.
        """
        headers = {"User-Agent": "qwenvl_kit", "Accept": "text/event-stream, application/json"}
        if key := self._key():
            if not (key.isascii() and key.isprintable()):
                raise ConfigError(
                    f"The key in the environment variable {self.api_key_env} contains line breaks or other characters "
                    "that no HTTP header can hold. Set it to the key alone."
                )
            headers["Authorization"] = f"Bearer {key}"
        return headers

    @property
    def has_key(self) -> bool:
        """Whether the environment holds a key."""
        return bool(self._key())

    def quote(self, text: str, length: int = _MAX_QUOTED) -> str:
        """Return a server's own words for a message: on one line, cut, and without the key."""
        key = self._key()
        if len(key) >= _MIN_SECRET:
            text = text.replace(key, "***")
        return printable(text, length)

    def _key(self) -> str:
        return os.environ.get(self.api_key_env, "").strip()
