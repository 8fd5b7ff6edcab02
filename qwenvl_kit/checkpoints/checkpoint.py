"""Read the configs of a checkpoint's folder, without reading its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_kit.checkpoints.digest import digest_files, folder_state
from qwenvl_kit.checkpoints.locate import locate, locate_configs
from qwenvl_kit.checkpoints.weight_files import AGAIN, refuse_adapter, refuse_lfs_pointer, weight_files
from qwenvl_kit.errors import CheckpointError
from qwenvl_kit.types import PatchGeometry

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.digest import FolderState
    from qwenvl_kit.options import ModelOptions

FAMILY = "qwen2_5_vl"
_GENERATION = (  # settings of generation that change an answer
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens", "sequence_bias"),
    *("suppress_tokens", "begin_suppress_tokens", "length_penalty", "early_stopping", "num_beams", "num_beam_groups"),
    *("diversity_penalty", "num_return_sequences", "forced_bos_token_id", "forced_eos_token_id", "guidance_scale"),
    *("exponential_decay_length_penalty", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "max_time"),
    *("stop_strings", "watermarking_config", "token_healing", "remove_invalid_values", "renormalize_logits"),
    *("min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "penalty_alpha", "dola_layers", "constraints"),
    *("force_words_ids", "cache_implementation"),
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with a model of the Qwen2.5-VL family, in any of its published layouts.

    Attributes
    ----------
    path : Path
        The folder.
    config, generation : dict
        Contents of config.json and generation_config.json.
    geometry : PatchGeometry
        Patch size and pixel limits of its processor.
    """

    path: Path
    config: dict[str, Any]
    generation: dict[str, Any]
    geometry: PatchGeometry

    @property
    def repetition_penalty(self) -> float:
        """Penalty of the checkpoint's own generation config; 1 is none.

        Raises
        ------
        CheckpointError
            It is not a number above 0.
        """
        asked = self.generation.get("repetition_penalty")
        if asked is None:
            return 1.0
        if isinstance(asked, bool) or not isinstance(asked, int | float) or not asked > 0:
            raise CheckpointError(
                f"{self.path}: repetition_penalty={asked!r} in its generation config is invalid. It must be a number "
                "above 0. Correct generation_config.json."
            )
        return float(asked)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """End tokens of an answer, from the first config that has any; empty if only the tokenizer has them.

        Raises
        ------
        CheckpointError
            A config has something else than token ids.
        """
        text = self.config.get("text_config") or {}
        places = (self.generation, text, self.config)
        found: Any = next((place["eos_token_id"] for place in places if place.get("eos_token_id") is not None), [])
        ids = found if isinstance(found, list) else [found]
        if any(isinstance(one, bool) or not isinstance(one, int) for one in ids):
            raise CheckpointError(
                f"{self.path}: unusable eos_token_id {found!r} in its configs. It must be a token id or a list of "
                "them. Correct generation_config.json."
            )
        return tuple(ids)

    @property
    def context(self) -> int:
        """Maximum number of tokens of prompt and answer together."""
        return _positive(self.path, "max_position_embeddings", self._text("max_position_embeddings"), 32768)

    @property
    def digest(self) -> str:
        """Digest of every file in the folder that decides an answer.

        Of large weight files it covers the size, the header and 64 samples of 64 KiB. That tells any two trained or
        fine-tuned checkpoints apart in milliseconds, but does not prove that no single byte changed.
        """
        return digest_files(self.path, self.state)

    @property
    def state(self) -> FolderState:
        """Name, size and time of each file that decides an answer."""
        return folder_state(self.path)

    def _text(self, name: str) -> Any:
        """Return a field of the text model: at the top level of flat configs, in text_config of nested ones."""
        found = (self.config.get("text_config") or {}).get(name)
        return self.config.get(name) if found is None else found


def find(model: ModelOptions) -> Checkpoint:
    """Find and read a checkpoint.

    Parameters
    ----------
    model : ModelOptions
        ``model_name`` is ``demo``, a folder below ``model_path``, a folder, or a hub name; else ``model_path`` itself
        may be the folder.

    Returns
    -------
    Checkpoint
        Verified to be of the family.

    Raises
    ------
    ModelNotFound
        None of the places has it; the message lists them.
    CheckpointError
        The folder holds no checkpoint of the family.
    """
    return read(locate(model))


def find_configs(model: ModelOptions) -> Checkpoint | None:
    """Read the configs of a model whose weights are elsewhere; nothing is downloaded.

    Returns
    -------
    Checkpoint or None
        None where no place has its configs.

    Raises
    ------
    CheckpointError
        They are broken, or of another family.
    """
    folder = locate_configs(model)
    return None if folder is None else read(folder, weights=None)


def read(folder: Path, *, weights: str | None = "*.safetensors") -> Checkpoint:
    """Read the configs of a checkpoint or an export.

    Parameters
    ----------
    folder : Path
        Folder of a checkpoint, or of an export.
    weights : str or None
        Pattern of its weight files; None where they are elsewhere.

    Raises
    ------
    CheckpointError
        A file is missing or broken, or it is a model of another family.
    """
    if not (folder / "config.json").is_file():
        refuse_adapter(folder)
    config = _json(folder / "config.json")
    if config.get("model_type") != FAMILY:
        refuse_adapter(folder)
        raise CheckpointError(
            f"{folder} holds a model of type {config.get('model_type')!r}. Only {FAMILY!r} (Qwen2.5-VL) is supported. "
            "Pass a model of that family."
        )
    for part in ("text_config", "vision_config"):
        if not isinstance(config.get(part) or {}, dict):
            raise CheckpointError(
                f"{folder / 'config.json'}: {part} must be a mapping; got {config[part]!r}. Copy config.json from the "
                "base model."
            )
    if weights == "*.safetensors":
        weight_files(folder, config)
    elif weights is not None and not any(folder.glob(weights)):
        raise CheckpointError(f"{folder} holds no {weights} files. Export the checkpoint again.")
    generation = folder / "generation_config.json"
    # Without that file transformers takes the settings from config.json.
    settings = _json(generation) if generation.is_file() else {k: config[k] for k in _GENERATION if k in config}
    return Checkpoint(folder, config, settings, _geometry(folder, config))


def _geometry(folder: Path, config: dict[str, Any]) -> PatchGeometry:
    """Read pixel limits: min_pixels and max_pixels in older processor configs, areas under "size" in newer ones."""
    processor = image_processor(folder)
    size = processor.get("size")
    limits = [processor.get(name) for name in ("min_pixels", "max_pixels")]
    if not isinstance(size or {}, dict):
        if None in limits:
            raise CheckpointError(
                f"{folder}: size={size!r} in its image processor's config is invalid. It must be a mapping with "
                "shortest_edge and longest_edge (areas in pixels). Copy preprocessor_config.json from the base model."
            )
        size = {}
    size = size or {}
    vision = config.get("vision_config") or {}
    standard = PatchGeometry()
    patch = _first(processor.get("patch_size"), vision.get("patch_size"))
    merge = _first(processor.get("merge_size"), vision.get("spatial_merge_size"))
    return PatchGeometry(
        patch=_positive(folder, "patch_size", patch, standard.patch),
        merge=_positive(folder, "merge_size", merge, standard.merge),
        min_pixels=_positive(folder, "min_pixels", limits[0] or size.get("shortest_edge"), 56 * 56),
        max_pixels=_positive(folder, "max_pixels", limits[1] or size.get("longest_edge"), 28 * 28 * 1280),
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _positive(folder: Path, name: str, value: Any, standard: int) -> int:
    """Return a count from a config, `standard` if it is null."""
    if value is None:
        return standard
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1 or value != int(value):
        raise CheckpointError(
            f"{folder}: {name}={value!r} in its configs is invalid. It must be a whole number above 0. Correct it."
        )
    return int(value)


def image_processor(folder: Path) -> dict[str, Any]:
    """Return the image processor's config.

    Published checkpoints keep it in a file of its own; transformers 5 saves one file for all processors.
    """
    joint = folder / "processor_config.json"
    if joint.is_file() and (content := _json(joint)).get("image_processor") is not None:
        found = content["image_processor"]
        if not isinstance(found, dict):
            raise CheckpointError(f"{joint}: image_processor must be a mapping; got {found!r}. {AGAIN}.")
        return found
    return _json(folder / "preprocessor_config.json")


def _json(file: Path) -> dict[str, Any]:
    try:
        refuse_lfs_pointer(file)
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file.parent} is not a checkpoint: {file.name} is missing. {AGAIN}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}. {AGAIN}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} must hold a JSON object; it holds a {type(content).__name__}. {AGAIN}.")
    return content
