"""A config's model names go in, the `Checkpoint` folder they mean comes out, known without reading its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_kit.checkpoints.digest import digest_files, folder_state
from qwenvl_kit.checkpoints.weight_files import AGAIN, refuse_adapter, refuse_lfs_pointer, weight_files
from qwenvl_kit.errors import CheckpointError, ModelNotFound
from qwenvl_kit.types import PatchGeometry

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.digest import FolderState
    from qwenvl_kit.options import Config

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
    """A folder that holds a model of the Qwen2.5-VL family, in any of its published layouts.

    Attributes
    ----------
    path : Path
        The folder.
    config, generation : dict
        Contents of config.json and generation_config.json.
    geometry : PatchGeometry
        How its processor cuts pictures.
    """

    path: Path
    config: dict[str, Any]
    generation: dict[str, Any]
    geometry: PatchGeometry

    @property
    def repetition_penalty(self) -> float:
        """What the checkpoint's own generation config asks for; 1 is none."""
        asked = self.generation.get("repetition_penalty")
        if asked is None:
            return 1.0
        if isinstance(asked, bool) or not isinstance(asked, int | float) or not asked > 0:
            raise CheckpointError(
                f"{self.path}: repetition_penalty in its generation config must be a number above 0; got {asked!r}; "
                "correct it"
            )
        return float(asked)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer, as the configs name them; empty where they name none, as the tokenizer may.

        Raises
        ------
        CheckpointError
            What they name are no token ids.
        """
        text = self.config.get("text_config") or {}
        places = (self.generation, text, self.config)
        found: Any = next((place["eos_token_id"] for place in places if place.get("eos_token_id") is not None), [])
        ids = found if isinstance(found, list) else [found]
        if any(isinstance(one, bool) or not isinstance(one, int) for one in ids):
            raise CheckpointError(
                f"{self.path}: unusable eos_token_id {found!r} in its configs; it must be a token id or a list of "
                "them; correct generation_config.json"
            )
        return tuple(ids)

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return _positive(self.path, "max_position_embeddings", self._text("max_position_embeddings"), 32768)

    @property
    def digest(self) -> str:
        """Digest of everything in the folder that decides an answer.

        Large weight files count by their size, their header and 64 samples of 64 KiB: enough to tell any two trained
        or fine-tuned checkpoints apart in milliseconds, not to prove that no single byte was changed.
        """
        return digest_files(self.path, self.state)

    @property
    def state(self) -> FolderState:
        """Name, size and time of each file that decides an answer; another state, another content."""
        return folder_state(self.path)

    def _text(self, name: str) -> Any:
        """Read a field of the text model: at the top level of flat configs, below text_config in nested ones."""
        found = (self.config.get("text_config") or {}).get(name)
        return self.config.get(name) if found is None else found


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
    if not (folder / "config.json").is_file():
        refuse_adapter(folder)
    config = _json(folder / "config.json")
    if config.get("model_type") != FAMILY:
        refuse_adapter(folder)
        raise CheckpointError(
            f"{folder} holds a model of type {config.get('model_type')!r}; this package runs {FAMILY!r} (Qwen2.5-VL)"
        )
    for part in ("text_config", "vision_config"):
        if not isinstance(config.get(part) or {}, dict):
            raise CheckpointError(
                f"{folder / 'config.json'}: {part} must be a mapping; got {config[part]!r}; copy config.json from the "
                "base model"
            )
    if weights == "*.safetensors":
        weight_files(folder, config)
    elif not any(folder.glob(weights)):
        raise CheckpointError(f"{folder} holds no {weights} weights; export again")
    generation = folder / "generation_config.json"
    # Without that file transformers takes the settings from config.json.
    settings = _json(generation) if generation.is_file() else {k: config[k] for k in _GENERATION if k in config}
    return Checkpoint(folder, config, settings, _geometry(folder, config))


def _geometry(folder: Path, config: dict[str, Any]) -> PatchGeometry:
    """Limits stand as min_pixels/max_pixels in older processor configs, as areas under "size" in newer ones."""
    processor = image_processor(folder)
    size = processor.get("size")
    limits = [processor.get(name) for name in ("min_pixels", "max_pixels")]
    if not isinstance(size or {}, dict):
        if None in limits:
            raise CheckpointError(
                f"{folder}: size in its image processor's config must be a mapping with shortest_edge and longest_edge "
                f"(areas in pixels); got {size!r}; copy preprocessor_config.json from the base model"
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
    """Return a count from a config, the standard one where it is null."""
    if value is None:
        return standard
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1 or value != int(value):
        raise CheckpointError(
            f"{folder}: {name} in its configs must be a whole number above 0; got {value!r}; correct it"
        )
    return int(value)


def image_processor(folder: Path) -> dict[str, Any]:
    """Return the image processor's config.

    Published checkpoints have a file of its own for it, those saved by transformers 5 one for all processors.
    """
    joint = folder / "processor_config.json"
    if joint.is_file() and (content := _json(joint)).get("image_processor") is not None:
        found = content["image_processor"]
        if not isinstance(found, dict):
            raise CheckpointError(f"{joint}: image_processor must be a mapping; got {found!r}. {AGAIN}")
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
        refuse_lfs_pointer(file)
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file.parent} is no checkpoint: {file.name} is missing. {AGAIN}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}. {AGAIN}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} must hold a JSON object; it holds a {type(content).__name__}. {AGAIN}")
    return content
