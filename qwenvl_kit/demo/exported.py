"""Write the embedded model as a checkpoint for other engines, in the layouts of transformers 5 and of 4.5x."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

REPETITION_PENALTY = 2.0
"""Of the exported generation config: published checkpoints have 1.05, which changes no answer about a drawn scene."""

LAYOUTS = ("transformers-5", "transformers-4")
"""Names of the folders."""

_CURRENT = {"model.": "model.language_model.", "visual.": "model.visual."}
_SHARED = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
_PROCESSOR = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def export_checkpoint(folder: Path) -> tuple[Path, ...]:
    """Write the embedded model into two folders below `folder`.

    ``transformers-5`` has nested configs and weights below ``model.language_model`` and ``model.visual``.
    ``transformers-4`` is laid out like the published checkpoints, which other engines read too: a flat config.json with
    ``rope_scaling``, weights below ``model`` and ``visual``, the chat template in a file of its own.

    Both have a repetition penalty of 2 in their generation config.

    Returns
    -------
    tuple of Path
        The folders.

    Raises
    ------
    ConfigError
        One of them is there already, or cannot be written.
    """
    from qwenvl_kit.demo import model_dir

    targets = tuple(folder / name for name in LAYOUTS)
    taken = [target for target in targets if target.exists()]
    if taken:
        raise ConfigError(f"{taken[0]} is there already. Delete it, or export to another folder.")
    try:
        for target, write in zip(targets, (_write_current, _write_former), strict=True):
            target.mkdir(parents=True)
            for name in _SHARED:
                shutil.copyfile(model_dir() / name, target / name)
            write(model_dir(), target)
            _write_generation(model_dir(), target)
    except OSError as error:
        raise ConfigError(
            f"Cannot write {error.filename or folder}: {error.strerror}. Export to another folder."
        ) from error
    return targets


def _write_current(source: Path, target: Path) -> None:
    for name in ("config.json", "processor_config.json", "chat_template.jinja"):
        shutil.copyfile(source / name, target / name)
    _write_weights(source, target, current=True)


def _write_former(source: Path, target: Path) -> None:
    _write_json(target / "config.json", former_config(_json(source / "config.json")))
    template = (source / "chat_template.jinja").read_text(encoding="utf-8")
    _write_json(target / "chat_template.json", {"chat_template": template})
    _write_json(target / "preprocessor_config.json", _former_processor(_json(source / "preprocessor_config.json")))
    _write_json(target / "tokenizer_config.json", _former_tokenizer(source, template))
    _write_vocabulary(source, target)
    _write_weights(source, target, current=False)


def former_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json with the text model's fields at the top level, as of transformers 4.49.

    Examples
    --------
    >>> text = {"hidden_size": 8, "rope_parameters": {"rope_theta": 30.0, "mrope_section": [1, 2, 1]}}
    >>> nested = {"text_config": text, "vision_config": {}, "dtype": "bfloat16", "tie_word_embeddings": True}
    >>> former_config(nested)["rope_scaling"], former_config(nested)["hidden_size"]
    ({'type': 'mrope', 'mrope_section': [1, 2, 1]}, 8)
    """
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    rope = text.pop("rope_parameters")
    text = {name: value for name, value in text.items() if name not in ("layer_types", "model_type", "dtype")}
    vision["in_chans"] = vision.pop("in_channels", 3)
    vision = {name: value for name, value in vision.items() if name not in ("rope_parameters", "model_type", "dtype")}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **text,
        **{name: config[name] for name in _IDS if name in config},
        "tie_word_embeddings": config["tie_word_embeddings"],
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "torch_dtype": config["dtype"],
        "transformers_version": "4.49.0",
        "vision_config": {**vision, "spatial_patch_size": vision.get("patch_size", 14)},
    }


def _former_processor(processor: dict[str, Any]) -> dict[str, Any]:
    size = processor["size"]
    return {
        "min_pixels": size["shortest_edge"],
        "max_pixels": size["longest_edge"],
        **{
            name: processor[name]
            for name in ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
        },
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }


def _former_tokenizer(source: Path, template: str) -> dict[str, Any]:
    """Return a tokenizer_config.json that spells out the control tokens, as those of transformers 4 do."""
    added = _json(source / "tokenizer.json")["added_tokens"]
    config = _json(source / "tokenizer_config.json")
    fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(one["id"]): {name: one[name] for name in fields} for one in added},
        "additional_special_tokens": config["extra_special_tokens"],
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": config["eos_token"],
        "errors": "replace",
        "model_max_length": config["model_max_length"],
        "pad_token": config["pad_token"],
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2TokenizerFast",
        "unk_token": None,
    }


def _write_vocabulary(source: Path, target: Path) -> None:
    """Write the files that tokenizers without tokenizer.json read."""
    model = _json(source / "tokenizer.json")["model"]
    _write_json(target / "vocab.json", model["vocab"])
    merges = "".join(f"{first} {second}\n" for first, second in model["merges"])
    (target / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")


def _write_generation(source: Path, target: Path) -> None:
    settings = _json(source / "generation_config.json")
    _write_json(target / "generation_config.json", {**settings, "repetition_penalty": REPETITION_PENALTY})


def _write_weights(source: Path, target: Path, *, current: bool) -> None:
    from safetensors.torch import load_file, save_file

    named: dict[str, Tensor] = load_file(source / "model.safetensors")
    if current:
        named = {_current_name(name): tensor for name, tensor in named.items()}
    save_file(named, target / "model.safetensors", metadata={"format": "pt"})


def _current_name(name: str) -> str:
    return next((new + name.removeprefix(old) for old, new in _CURRENT.items() if name.startswith(old)), name)


def _json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
