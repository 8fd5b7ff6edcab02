"""The folder of an ONNX export goes in, an `Export` that can be trusted comes out, or a refusal that names the file.

What the graphs compute is not known here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qwenvl_kit.backends.checkpoint import blocks
from qwenvl_kit.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST = "qwenvl_export.json"
FORMAT = 1  # of the folder; a reader of another one cannot know what the files mean


@dataclass(frozen=True, slots=True)
class Export:
    """An ONNX export of a checkpoint.

    Attributes
    ----------
    path : Path
        The folder.
    manifest : dict
        What it says of itself: versions, source, dtype, quantisation, embedding table, files, parity.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def dtype(self) -> str:
        """Type of activations and of weights that are not quantised."""
        return str(self.manifest["dtype"])

    @property
    def quantize(self) -> str | None:
        """``int8``, ``int4``, ``w8a8`` or None."""
        found: str | None = self.manifest["quantize"]
        return found

    @property
    def digest(self) -> str:
        """Digest of everything in the folder that decides an answer."""
        content = json.dumps({name: file["sha256"] for name, file in self.manifest["files"].items()}, sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def embeddings(self) -> NDArray[np.generic]:
        """The embedding table (V, H), mapped from its file and not read."""
        table = self.manifest["embeddings"]
        mapped: NDArray[np.generic] = np.memmap(
            self.path / table["file"],
            dtype=table["dtype"],
            mode="c",
            offset=table["offset"],
            shape=tuple(table["shape"]),
        )
        return mapped


def is_export(folder: Path) -> bool:
    """Whether a folder is, or was meant to be, an export."""
    return (folder / MANIFEST).is_file() or (folder / "decoder.onnx").is_file()


def read_export(folder: Path, *, whole: bool = False) -> Export:
    """Read and check an export.

    Parameters
    ----------
    folder : Path
        Written by `qwenvl_kit.export.to_onnx`.
    whole : bool
        Compare every byte; otherwise large files by their size and samples of them, which takes milliseconds.

    Raises
    ------
    CheckpointError
        It is no export, one of another version, partial or altered; the message names the file.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is no finished ONNX export: {MANIFEST} is missing; make one with qwenvl-kit export MODEL "
            f"{folder}"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / MANIFEST} cannot be read: {error}; export again") from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} is an export of format {manifest.get('format')!r}, made by qwenvl_kit "
            f"{manifest.get('versions', {}).get('qwenvl_kit')}; this version reads format {FORMAT}; export again"
        )
    for name, said in manifest["files"].items():
        _check_file(folder / name, said, whole=whole)
    return Export(folder, manifest)


def describe_file(file: Path) -> dict[str, Any]:
    """What the manifest says of a file: its size, the digest of every byte, and one of samples."""
    sha = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            sha.update(block)
    return {"bytes": file.stat().st_size, "sha256": sha.hexdigest(), "samples": _samples(file)}


def _check_file(file: Path, said: dict[str, Any], *, whole: bool) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file.parent} is a partial export: {file.name} is missing; export again")
    size = file.stat().st_size
    if size != said["bytes"]:
        raise CheckpointError(
            f"{file.parent} is partial or altered: {file.name} has {size} bytes, {said['bytes']} were written; export "
            "again"
        )
    found = describe_file(file) if whole else {"samples": _samples(file)}
    if any(found[name] != said[name] for name in found):
        raise CheckpointError(f"{file.parent} was altered: {file.name} is not what was written; export again")


def _samples(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for block in blocks(file, file.stat().st_size):
        digest.update(block)
    return digest.hexdigest()
