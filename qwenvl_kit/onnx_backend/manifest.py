"""Read the manifest of an ONNX export and check the folder against it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qwenvl_kit.checkpoints.digest import blocks
from qwenvl_kit.checkpoints.weight_files import is_plain_name, is_within
from qwenvl_kit.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST = "qwenvl_export.json"
_GRAPHS = ("decoder.onnx", "vision.onnx")
_DTYPES = ("float32", "float16")
FORMAT = 1  # of the folder; other formats are refused


@dataclass(frozen=True, slots=True)
class Export:
    """An ONNX export of a checkpoint.

    Attributes
    ----------
    path : Path
        The folder.
    manifest : dict
        Its versions, source, dtype, quantisation, embedding table, files and parity.
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
        """Digest of every file in the folder that decides an answer."""
        content = json.dumps({name: file["sha256"] for name, file in self.manifest["files"].items()}, sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def embeddings(self) -> NDArray[np.generic]:
        """Return the embedding table (V, H), memory-mapped."""
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
    """Return whether a folder is an export, finished or not."""
    return (folder / MANIFEST).is_file() or (folder / "decoder.onnx").is_file()


def read_export(folder: Path, *, whole: bool = False) -> Export:
    """Read and check an export.

    Parameters
    ----------
    folder : Path
        Written by `qwenvl_kit.export.to_onnx`.
    whole : bool
        Compare every byte; otherwise the size and samples of large files, which takes milliseconds.

    Raises
    ------
    CheckpointError
        It is not an export, of another format, partial or altered; the message names the file.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is not a finished ONNX export: {MANIFEST} is missing. Run qwenvl-kit export MODEL {folder}."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / MANIFEST} cannot be read: {error}. Export again.") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(
            f"{folder / MANIFEST} must hold a JSON object; it holds a {type(manifest).__name__}. Export again."
        )
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} is an export of format {manifest.get('format')!r}, made by {manifest.get('versions')!r:.200}. "
            f"This version reads format {FORMAT}. Export again."
        )
    if (fault := _fault(manifest)) is not None:
        raise CheckpointError(
            f"{folder / MANIFEST} is damaged or was not written by this package: {fault}. Export again."
        )
    for name, recorded in manifest["files"].items():
        _check_file(folder / name, recorded, whole=whole)
    return Export(folder, manifest)


def describe_file(file: Path) -> dict[str, Any]:
    """Return a file's entry in the manifest: its size, the digest of every byte, and one of samples."""
    sha = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            sha.update(block)
    return {"bytes": file.stat().st_size, "sha256": sha.hexdigest(), "samples": _samples(file)}


def _fault(manifest: dict[str, Any]) -> str | None:
    """Return what `to_onnx` would not have written, or None; a stranger's manifest may name any file of the machine."""
    files, table = manifest.get("files"), manifest.get("embeddings")
    if manifest.get("dtype") not in _DTYPES:
        return f"dtype is {manifest.get('dtype')!r}"
    if manifest.get("quantize", "missing") not in (None, "int8", "int4", "w8a8"):
        return f"quantize is {manifest.get('quantize', 'missing')!r}"
    if not isinstance(files, dict) or not set(_GRAPHS) <= set(files):
        return f"files must be a mapping that holds {' and '.join(_GRAPHS)}"
    for name, recorded in files.items():
        if not is_plain_name(name):
            return f"{name!r} is not the plain name of a file in the folder"
        if not isinstance(recorded, dict) or not isinstance(recorded.get("bytes"), int):
            return f"the size of {name} is missing"
        if not all(isinstance(recorded.get(digest), str) for digest in ("sha256", "samples")):
            return f"a digest of {name} is missing"
    if not isinstance(table, dict) or table.get("file") not in list(files) or table.get("dtype") not in _DTYPES:
        return "embeddings must name a file of the export and its dtype"
    shape, offset = table.get("shape"), table.get("offset")
    counts = [offset, *(shape if isinstance(shape, list) else [])]
    if len(counts) != 3 or any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in counts):
        return f"embeddings must have an offset and a shape of two numbers; got {offset!r} and {shape!r}"
    end = counts[0] + counts[1] * counts[2] * np.dtype(table["dtype"]).itemsize
    if end > files[table["file"]]["bytes"]:
        return f"embeddings end at byte {end} of {table['file']}, beyond its end"
    return None


def _check_file(file: Path, recorded: dict[str, Any], *, whole: bool) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file.parent} is a partial export: {file.name} is missing. Export again.")
    if not is_within(file, file.parent):
        raise CheckpointError(
            f"{file} is a link to a file outside of the export. Copy the file itself into the folder, or export again."
        )
    size = file.stat().st_size
    if size != recorded["bytes"]:
        raise CheckpointError(
            f"{file.parent} is partial or altered: {file.name} has {size} bytes, {recorded['bytes']} were written. "
            "Export again."
        )
    found = describe_file(file) if whole else {"samples": _samples(file)}
    if any(found[name] != recorded[name] for name in found):
        raise CheckpointError(f"{file.parent} was altered: {file.name} is not what was written. Export again.")


def _samples(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for block in blocks(file, file.stat().st_size):
        digest.update(block)
    return digest.hexdigest()
