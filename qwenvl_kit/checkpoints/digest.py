"""Digest the files of a folder: small ones whole, large ones by samples."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

FolderState = tuple[tuple[str, int, int], ...]  # name, size and time of each file
WHOLE_FILE_BYTES = 64 * 2**20  # larger files are digested by samples
BLOCK_BYTES, N_BLOCKS = 1 << 16, 64
_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt")


def folder_state(folder: Path) -> FolderState:
    """Return name, size and time of each file of a folder that decides an answer."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in _SUFFIXES)
    states = ((file.name, file.stat()) for file in files)
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


@functools.lru_cache(maxsize=16)
def digest_files(folder: Path, state: FolderState) -> str:
    """Return the digest of the files of a state; their times only tell when to compute it anew."""
    digest = hashlib.blake2b(digest_size=16)
    for name, size, _ in state:
        digest.update(f"{name}:{size}:".encode())
        for block in blocks(folder / name, size):
            digest.update(block)
    return digest.hexdigest()


def blocks(file: Path, size: int) -> Iterator[bytes]:
    """Yield what a digest is made of: the whole of a small file, samples of a large one."""
    with file.open("rb") as opened:
        if size <= WHOLE_FILE_BYTES:
            while block := opened.read(1 << 20):
                yield block
            return
        for position in range(N_BLOCKS):  # the first block holds the header, the last one ends the file
            opened.seek(position * (size - BLOCK_BYTES) // (N_BLOCKS - 1))
            yield opened.read(BLOCK_BYTES)
