"""Find a checkpoint's weight files and read their headers: names, dtypes and shapes of tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from qwenvl_kit.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_LFS = b"version https://git-lfs.github.com/spec/"  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
_MOST_HEADER = 100 * 2**20  # bytes; what the safetensors library accepts
_OF_SHARDS = re.compile(r"model-\d+-of-\d+\.safetensors")
_OF_RANKS = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")  # torch.distributed's own checkpoints
# Published checkpoints keep their authors' tensor names; transformers 5 saves its own module names.
_PREFIXES = (
    (re.compile(r"^model\.language_model\."), "text."),
    (re.compile(r"^(model\.)?visual\."), "vision."),
    (re.compile(r"^model\."), "text."),
)
AGAIN = "Copy the folder again, or download it again with local_files_only=False"


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Dtype and shape of a tensor in a weight file."""

    dtype: str
    shape: tuple[int, ...]


def weight_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """Return the files that transformers reads weights from.

    Parameters
    ----------
    folder : Path
        Of a checkpoint.
    config : mapping
        Contents of its config.json.

    Raises
    ------
    CheckpointError
        Weights are missing, or belong to an adapter.
    """
    refuse_adapter(folder)
    if any(_OF_RANKS.fullmatch(file.name) for file in folder.iterdir()):
        raise CheckpointError(
            f"{folder} holds a distributed checkpoint (shard-…-model-….safetensors), which is not supported. Save the "
            "model with save_pretrained."
        )
    if (named := config.get("transformers_weights")) is not None:
        return _named(folder, named)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return _shards(folder, INDEX)
    raise CheckpointError(_why_none(folder))


def read_headers(files: list[Path]) -> dict[str, TensorHeader]:
    """Return name, dtype and shape of every tensor, from the files' headers alone.

    Raises
    ------
    CheckpointError
        A file is a git-lfs pointer, truncated or not a safetensors file.
    """
    found: dict[str, TensorHeader] = {}
    for file in files:
        found |= _read_header(file)
    return found


def refuse_adapter(folder: Path) -> None:
    """Raise if a folder holds a LoRA adapter, alone or beside whole weights.

    Raises
    ------
    CheckpointError
        Names the adapter's file and how to merge it.
    """
    name = next((name for name in _ADAPTER_FILES if (folder / name).exists()), None)
    if name is None:
        return
    merge = "Merge it into its base model (merge_and_unload of the peft package) and save that with save_pretrained"
    base = _base_of(folder) or "the base model"
    whole = (folder / SINGLE).is_file() or (folder / INDEX).is_file()
    if whole:
        raise CheckpointError(
            f"{folder} holds whole weights and a LoRA adapter beside them ({name}); only one of them can run. {merge}, "
            "or move the adapter's files to another folder."
        )
    raise CheckpointError(
        f"{folder} holds a LoRA adapter ({name}), not a whole checkpoint. Pass adapter={str(folder)!r}, and "
        f"model_name={base!r}. For other backends than torch, merge or export it first."
    )


def _base_of(folder: Path) -> str | None:
    """Return the base model that an adapter's config names."""
    try:
        base = json.loads((folder / _ADAPTER_FILES[0]).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return str(base) if base else None


def uniform_name(name: str) -> str:
    """Return the name of a tensor or module that all layouts share: ``text.…``, ``vision.…`` or ``lm_head.…``.

    Examples
    --------
    >>> [uniform_name(name) for name in ("model.visual.merger", "visual.merger", "model.norm.weight", "lm_head.weight")]
    ['vision.merger', 'vision.merger', 'text.norm.weight', 'lm_head.weight']
    """
    for pattern, prefix in _PREFIXES:
        if pattern.match(name):
            return pattern.sub(prefix, name)
    return name


def refuse_lfs_pointer(file: Path) -> None:
    """Raise if a file is a git-lfs pointer, in place of a file that was not fetched.

    Raises
    ------
    CheckpointError
        Names the file and the command that fetches it.
    """
    with file.open("rb") as opened:
        head = opened.read(len(_LFS))
    if head == _LFS:
        raise CheckpointError(
            f"{file} is a git-lfs pointer; the file itself was never fetched. Run 'git lfs pull' in {file.parent}."
        )


def is_plain_name(name: object) -> bool:
    """Return whether a name is a plain file name on every system.

    Examples
    --------
    >>> [is_plain_name(name) for name in ("a.bin", "../a.bin", "/a.bin", "b/a.bin", "C:a.bin", "..", "")]
    [True, False, False, False, False, False, False]
    """
    if not isinstance(name, str) or name in ("", ".", "..") or "\0" in name or ":" in name:
        return False
    return PurePosixPath(name).name == name and PureWindowsPath(name).name == name


def is_within(file: Path, folder: Path) -> bool:
    """Return whether a file, links followed, is in a folder, or in the blobs of the hub cache that holds the folder."""
    target, home = file.resolve(), folder.resolve()
    if home.parent.name == "snapshots" and target.is_relative_to(home.parent.parent / "blobs"):
        return True
    return target.is_relative_to(home)


def _named(folder: Path, name: object) -> list[Path]:
    """Return the weight files that a config.json names."""
    if not is_plain_name(name) or not str(name).endswith((".safetensors", ".safetensors.index.json")):
        raise CheckpointError(
            f"{folder / 'config.json'} names its weights as {name!r}. It must be the plain name of a .safetensors file "
            "in the folder. Correct transformers_weights."
        )
    if str(name).endswith(".json"):
        return _shards(folder, str(name))
    if not (folder / str(name)).is_file():
        raise CheckpointError(f"{folder} is not a whole checkpoint: {name} is missing. {AGAIN}.")
    return [folder / str(name)]


def _shards(folder: Path, index: str) -> list[Path]:
    """Return the files that an index names, all of which exist."""
    file = folder / index
    refuse_lfs_pointer(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} cannot be read as an index of weights ({type(error).__name__}: {error}). {AGAIN}."
        ) from error
    if wrong := [name for name in names if not is_plain_name(name) or not name.endswith(".safetensors")]:
        raise CheckpointError(
            f"{file} names {wrong[0]!r}. Only plain names of .safetensors files in the folder are allowed. Correct it."
        )
    if not names:
        raise CheckpointError(f"{file} names no weight files. {AGAIN}.")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder} is an unfinished copy or download: {len(missing)} of {len(names)} files in {index} are missing, "
            f"such as {missing[0]}. {AGAIN}."
        )
    return [folder / name for name in names]


def _why_none(folder: Path) -> str:
    """Return the error message for a folder without weights."""
    if any(folder.glob("*.onnx")):
        return f"{folder} is an ONNX export. Pass backend='onnx' to run it."
    if any(_OF_SHARDS.fullmatch(file.name) for file in folder.iterdir()):
        return f"{folder} is an unfinished copy or download: {INDEX}, which names the shards, is missing. {AGAIN}."
    if any(file.suffix in (".bin", ".pt", ".pth", ".ckpt") for file in folder.iterdir()):
        return (
            f"{folder} holds no *.safetensors weights. Other formats can run code and are not read. Save the model "
            "with save_pretrained(…, safe_serialization=True)."
        )
    return f"{folder} holds no {SINGLE} and no {INDEX}: its weights are missing. {AGAIN}."


def _read_header(file: Path) -> dict[str, TensorHeader]:
    """Return the tensors of a file: eight bytes of length, a JSON header, the numbers.

    https://github.com/huggingface/safetensors#format
    """
    refuse_lfs_pointer(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(size - 8, _MOST_HEADER):
                raise ValueError("its header is longer than the file")
            content = json.loads(opened.read(length))
        content.pop("__metadata__", None)
        found = {
            name: TensorHeader(str(one["dtype"]), tuple(int(side) for side in one["shape"]))
            for name, one in content.items()
        }
        end = max((int(one["data_offsets"][1]) for one in content.values()), default=0)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{file} is cut short or not a safetensors file: {error}. {AGAIN}.") from error
    if size != 8 + length + end:
        raise CheckpointError(
            f"{file} is cut short or damaged: it has {size} bytes; its header requires {8 + length + end}. {AGAIN}."
        )
    return found
