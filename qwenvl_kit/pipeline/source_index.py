"""What earlier runs saw at an address: sources in, digests of their pictures out, without fetching them again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwenvl_kit.pipeline.collector import Store
    from qwenvl_kit.types import ImageSource, LoadedImage


class SourceIndex:
    """Remembers in a store which picture stood at which address.

    Parameters
    ----------
    store : Store
        Keeps addresses as digests, so that no secret in one is kept.
    is_unchanged : callable
        Asks a place whether it still holds what it held at a version.
    trusts : bool
        Do not ask: an address that was seen once still holds the same.
    """

    def __init__(self, store: Store, is_unchanged: Callable[[ImageSource, str], bool], *, trusts: bool) -> None:
        self._store, self._is_unchanged, self._trusts = store, is_unchanged, trusts

    def digests(self, sources: Sequence[ImageSource]) -> tuple[str, ...] | None:
        """Digests of the pictures at all these places; None as soon as one is not known for sure."""
        found: list[str] = []
        for source in sources:
            digest = self._digest(source)
            if digest is None:
                return None
            found.append(digest)
        return tuple(found)

    def remember(self, source: ImageSource, picture: LoadedImage) -> None:
        """Keep what stood at an address when it was read."""
        if picture.version is not None or (self._trusts and source.kind in ("url", "remote")):
            self._store.put_source(_name(source), picture.version or "", picture.digest)

    def _digest(self, source: ImageSource) -> str | None:
        if source.kind == "bytes":
            return source.key.removeprefix("bytes:")
        known = self._store.get_source(_name(source))
        if known is None:
            return None
        version, digest = known
        return digest if self._trusts or self._is_unchanged(source, version) else None


def _name(source: ImageSource) -> str:
    return hashlib.blake2b(f"{source.kind}:{source.key}".encode(errors="surrogatepass"), digest_size=16).hexdigest()
