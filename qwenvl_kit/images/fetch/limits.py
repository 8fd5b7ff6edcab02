"""Limits of a fetch: time, bytes, hosts, schemes and local files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from qwenvl_kit.errors import RowError

if TYPE_CHECKING:
    from qwenvl_kit.options import FetchOptions

MAX_PER_HOST = 16
"""Connections to one host at a time; a further request waits for one of them."""


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Limits on one fetch, hashable; each field is the option of the same name.

    Attributes
    ----------
    headers : tuple of (str, str)
        Sent with each request, except after a redirect to another host.
    extra_schemes : tuple of str
        URL schemes allowed in addition to the built-in ones.
    local_paths : bool or str
        Whether local files are allowed, or the folder that must contain them.
    head_bytes : int or None
        Read this many bytes from the start of each file; None reads all.
    """

    timeout_s: float
    max_image_bytes: int
    allow_private_hosts: bool
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    extra_schemes: tuple[str, ...] = ()
    local_paths: bool | str = True
    head_bytes: int | None = None

    @classmethod
    def of(cls, options: FetchOptions) -> Self:
        """Return the limits that options set."""
        return cls(
            options.timeout_s,
            options.max_image_bytes,
            options.allow_private_hosts,
            tuple((options.headers or {}).items()),
            tuple(options.extra_schemes),
            options.local_paths,
        )

    def of_head(self, n_bytes: int) -> Self:
        """Return the same limits for the first `n_bytes` of each file."""
        return replace(self, head_bytes=n_bytes)

    def part(self, n_bytes: int) -> int:
        """Return how many of a file's bytes are read."""
        return n_bytes if self.head_bytes is None else min(n_bytes, self.head_bytes)

    def check_bytes(self, n_bytes: int) -> None:
        """Raise a RowError for a file of more than `max_image_bytes`."""
        if n_bytes > self.max_image_bytes:
            raise self.too_large(n_bytes)

    def too_large(self, n_bytes: int | None = None) -> RowError:
        """Return the error of a file that is too large; without `n_bytes` its size is unknown."""
        file = "The file" if n_bytes is None else f"The file of {n_bytes} bytes"
        return RowError(
            "fetch", f"{file} exceeds max_image_bytes={self.max_image_bytes}. Raise it if you trust the source."
        )

    def timeout_error(self) -> RowError:
        """Return the error of a fetch that took longer than `timeout_s`."""
        return RowError("fetch", f"Not fetched within timeout_s={self.timeout_s:g}. Raise it if the host is slow.")
