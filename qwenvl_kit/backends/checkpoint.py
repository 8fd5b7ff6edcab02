"""A config's model names go in, the `Checkpoint` folder they mean comes out, known without reading its weights."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_kit.errors import CheckpointError, ModelNotFound
from qwenvl_kit.records import Geometry

if TYPE_CHECKING:
    from qwenvl_kit.config import Config

FAMILY = "qwen2_5_vl"
_WHOLE_FILE = 64 * 2**20  # smaller weight files are digested whole, larger ones by samples
_BLOCK, _N_BLOCKS = 1 << 16, 64


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that holds a model of the Qwen2.5-VL family, in any of its published layouts.

    Attributes
    ----------
    path : Path
        The folder.
    config, generation : dict
        Contents of config.json and generation_config.json.
    geometry : Geometry
        How its processor cuts pictures.
    """

    path: Path
    config: dict[str, Any]
    generation: dict[str, Any]
    geometry: Geometry

    @property
    def repetition_penalty(self) -> float:
        """What the checkpoint's own generation config asks for; 1 is none."""
        return float(self.generation.get("repetition_penalty") or 1.0)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        found = self.generation.get("eos_token_id", self._text("eos_token_id"))
        return tuple(found) if isinstance(found, list) else (int(found),)

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return int(self._text("max_position_embeddings") or 32768)

    @property
    def digest(self) -> str:
        """Digest of everything in the folder that decides an answer.

        Large weight files count by their size, their header and 64 samples of 64 KiB: enough to tell any two trained
        or fine-tuned checkpoints apart in milliseconds, not to prove that no single byte was changed.
        """
        state = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in _files(self.path))
        return _digest(self.path, state)

    def _text(self, name: str) -> Any:
        """Read a field of the text model: at the top level of flat configs, below text_config in nested ones."""
        return self.config.get("text_config", {}).get(name, self.config.get(name))


def find(config: Config) -> Checkpoint:
    """Find the checkpoint that a config names.

    Parameters
    ----------
    config : Config
        ``model_name`` is ``demo``, a folder below ``model_path``, a folder, or a hub name; else ``model_path`` itself
        may be the folder.

    Returns
    -------
    Checkpoint
        Verified to be of the family.

    Raises
    ------
    ModelNotFound
        Nothing is at any of the places; the message lists them.
    CheckpointError
        What is there is no checkpoint of the family.
    """
    return read(locate(config))


def locate(config: Config) -> Path:
    """The folder that a config's model names mean, whatever is in it.

    Raises
    ------
    ModelNotFound
        Nothing is at any of the places; the message lists them.
    """
    if config.model_name == "demo":
        from qwenvl_kit.demo import model_dir

        return model_dir()
    folders = (Path(config.model_path) / config.model_name, Path(config.model_name))
    for folder in (f.expanduser() for f in folders):
        if folder.is_dir():
            return folder
    if (Path(config.model_path) / "config.json").is_file():
        return Path(config.model_path)
    return _from_hub(config, folders)


def read(folder: Path, *, weights: str = "*.safetensors") -> Checkpoint:
    """Read what a folder says of itself.

    Parameters
    ----------
    folder : Path
        Of a checkpoint, or of an export of one.
    weights : str
        Pattern of the files that hold its weights.

    Raises
    ------
    CheckpointError
        A file is missing or broken, or it is a model of another family.
    """
    config = _json(folder / "config.json")
    if config.get("model_type") != FAMILY:
        raise CheckpointError(
            f"{folder} holds a model of type {config.get('model_type')!r}; this package runs {FAMILY!r} (Qwen2.5-VL)"
        )
    if not any(folder.glob(weights)):
        if any(folder.glob("*.onnx")):
            raise CheckpointError(f"{folder} is an ONNX export; pass backend='onnx' to run it")
        raise CheckpointError(f"{folder} holds no {weights} weights; other formats can run code and are not read")
    generation = folder / "generation_config.json"
    return Checkpoint(folder, config, _json(generation) if generation.is_file() else {}, _geometry(folder, config))


def _geometry(folder: Path, config: dict[str, Any]) -> Geometry:
    """Limits stand as min_pixels/max_pixels in older processor configs, as areas under "size" in newer ones."""
    processor = _image_processor(folder)
    size = processor.get("size") or {}
    vision = config.get("vision_config", {})
    standard = Geometry()
    return Geometry(
        patch=int(processor.get("patch_size", vision.get("patch_size", standard.patch))),
        merge=int(processor.get("merge_size", vision.get("spatial_merge_size", standard.merge))),
        min_pixels=int(processor.get("min_pixels") or size.get("shortest_edge") or 56 * 56),
        max_pixels=int(processor.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280),
    )


def _image_processor(folder: Path) -> dict[str, Any]:
    """Published checkpoints have a file of its own for it, those saved by transformers 5 one for all processors."""
    joint = folder / "processor_config.json"
    if joint.is_file() and "image_processor" in (content := _json(joint)):
        found: dict[str, Any] = content["image_processor"]
        return found
    return _json(folder / "preprocessor_config.json")


def _from_hub(config: Config, folders: tuple[Path, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(config.model_name, local_files_only=config.local_files_only))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        looked = [*map(str, folders), f"{config.model_path} (no config.json in it)", "the local hub cache"]
        more = "local_files_only=False allows a download" if config.local_files_only else f"the hub said: {error}"
        raise ModelNotFound(
            f"model_name={config.model_name!r} was found at none of: {'; '.join(looked)}. {more}; "
            "model_name='demo' runs the embedded model and needs no download"
        ) from error


def _json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file.parent} is no checkpoint: {file.name} is missing") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    return content


def _files(folder: Path) -> list[Path]:
    return sorted(
        f for f in folder.iterdir() if f.is_file() and f.suffix in (".json", ".safetensors", ".jinja", ".txt")
    )


@functools.lru_cache(maxsize=16)
def _digest(folder: Path, state: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, size, _ in state:
        digest.update(f"{name}:{size}:".encode())
        for block in blocks(folder / name, size):
            digest.update(block)
    return digest.hexdigest()


def blocks(file: Path, size: int) -> Iterator[bytes]:
    """What a digest is made of: the whole of a small file, samples of a large one."""
    with file.open("rb") as opened:
        if size <= _WHOLE_FILE:
            while block := opened.read(1 << 20):
                yield block
            return
        for position in range(_N_BLOCKS):  # the first block holds the header, the last one ends the file
            opened.seek(position * (size - _BLOCK) // (_N_BLOCKS - 1))
            yield opened.read(_BLOCK)
