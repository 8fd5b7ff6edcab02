"""Look up which image an address held in an earlier run, so that it need not be fetched again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwenvl_kit.pipeline.collector import Store
    from qwenvl_kit.types import ImageSource, LoadedImage


class SourceIndex:
    """Digests of images by address, kept in a store.

    Parameters
    ----------
    store : Store
        Keeps addresses as digests, since they may hold secrets.
    is_unchanged : callable
        Whether a source still has a version.
    trusts : bool
        An address that was read once holds the same image forever: never check.
    """

    def __init__(self, store: Store, is_unchanged: Callable[[ImageSource, str], bool], *, trusts: bool) -> None:
        self._store, self._is_unchanged, self._trusts = store, is_unchanged, trusts

    def digests(self, sources: Sequence[ImageSource]) -> tuple[str, ...] | None:
        """Return the digests of the images of all sources; None where one is unknown or may have changed."""
        found: list[str] = []
        for source in sources:
            digest = self._digest(source)
            if digest is None:
                return None
            found.append(digest)
        return tuple(found)

    def remember(self, source: ImageSource, image: LoadedImage) -> None:
        """Keep the digest of an image that was read."""
        if image.version is not None or (self._trusts and source.kind in ("url", "remote")):
            self._store.put_source(_name(source), image.version or "", image.digest)

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
