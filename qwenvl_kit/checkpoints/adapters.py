"""Adapt a checkpoint's configs to the form that transformers' loaders accept.

Some published and trained checkpoints hold nulls where another config has the value, or a class name of an early
release. Corrected files are written into a temporary folder, beside copies of the other small files. A checkpoint
without such faults is used in place.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_kit.checkpoints.checkpoint import image_processor

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.checkpoint import Checkpoint

SMALL_FILES = (".json", ".jinja", ".txt", ".model")
_NULLS = ("text_config", "vision_config", "quantization_config")  # of config.json, as if they were not there
_INDEX_ENDING = ".index.json"
# The name that the class had before it was published; https://github.com/QwenLM/Qwen3-VL/issues/1015 shows the error.
_OLD_CLASSES = {"Qwen2_5_VLImageProcessor": "Qwen2VLImageProcessor"}
# Other values are null in checkpoints that run, such as crop_size.
_NEEDED = (
    *("image_processor_type", "patch_size", "merge_size", "temporal_patch_size", "size"),
    *("image_mean", "image_std", "rescale_factor", "resample"),
)


@contextlib.contextmanager
def loadable(checkpoint: Checkpoint) -> Iterator[Path]:
    """Yield a folder that transformers' config, processor and tokenizer classes can load."""
    corrected = _corrected(checkpoint)
    if not corrected:
        yield checkpoint.path
        return
    with tempfile.TemporaryDirectory(prefix="qwenvl_kit-configs-") as made:
        for file in checkpoint.path.iterdir():
            is_needed = file.suffix in SMALL_FILES and not file.name.endswith(_INDEX_ENDING)
            if is_needed and file.name not in corrected and file.is_file():
                shutil.copyfile(file, Path(made) / file.name)
        for name, content in corrected.items():
            (Path(made) / name).write_text(json.dumps(content), encoding="utf-8")
        yield Path(made)


def _corrected(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Return the contents of the files that need a correction, by name."""
    found: dict[str, dict[str, Any]] = {}
    nulls = [name for name in _NULLS if name in checkpoint.config and checkpoint.config[name] is None]
    if nulls:
        found["config.json"] = {name: value for name, value in checkpoint.config.items() if name not in nulls}
    own = image_processor(checkpoint.path)
    processor = _corrected_processor(own, checkpoint)
    if processor != own:
        name, content = _place(checkpoint.path, processor)
        found[name] = content
    return found


def _corrected_processor(own: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the image processor's config without nulls, or `own` if transformers accepts it."""
    has_nulls = any(name in own and own[name] is None for name in _NEEDED)
    size = own.get("size", {})
    is_sized = isinstance(size, dict) and None not in size.values()
    named = own.get("image_processor_type")
    if not has_nulls and is_sized and named not in _OLD_CLASSES:
        return own
    geometry, vision = checkpoint.geometry, checkpoint.config.get("vision_config") or {}
    processor = {name: value for name, value in own.items() if value is not None}
    if named is not None:
        processor["image_processor_type"] = _OLD_CLASSES.get(named, named)
    if not is_sized or "size" not in processor:
        processor["size"] = {"shortest_edge": geometry.min_pixels, "longest_edge": geometry.max_pixels}
    processor.setdefault("patch_size", geometry.patch)
    processor.setdefault("merge_size", geometry.merge)
    if (frames := vision.get("temporal_patch_size")) is not None:
        processor.setdefault("temporal_patch_size", frames)
    return processor


def _place(folder: Path, processor: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return name and content of the file with the image processor, with `processor` in its place."""
    joint = folder / "processor_config.json"
    if joint.is_file():
        content = json.loads(joint.read_text(encoding="utf-8"))
        if content.get("image_processor") is not None:
            return joint.name, {**content, "image_processor": processor}
    return "preprocessor_config.json", processor
