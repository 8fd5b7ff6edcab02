"""Find the folder of a model: the embedded one, a local folder, or the hub's cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl_kit.errors import ModelNotFound

if TYPE_CHECKING:
    from qwenvl_kit.options import ModelOptions

_DEMO_MODEL = Path(__file__).parents[1] / "demo" / "model"


def locate(model: ModelOptions) -> Path:
    """Return the folder of a model, without reading it.

    Raises
    ------
    ModelNotFound
        None of the places has it; the message lists them.
    """
    if model.model_name == "demo":
        return _DEMO_MODEL
    folders = (Path(model.model_path) / model.model_name, Path(model.model_name))
    for folder in (f.expanduser() for f in folders):
        if folder.is_dir():
            return folder
    if (Path(model.model_path) / "config.json").is_file():
        return Path(model.model_path)
    return _from_hub(model, folders)


def locate_adapter(model: ModelOptions) -> Path | None:
    """Return the folder of a model's adapter; None where there is none.

    Raises
    ------
    ModelNotFound
        None of the places has it; the message lists them.
    """
    if model.adapter is None:
        return None
    folders = (Path(model.model_path) / model.adapter, Path(model.adapter))
    for folder in (one.expanduser() for one in folders):
        if folder.is_dir():
            return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model.adapter, local_files_only=model.local_files_only))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        looked = "; ".join([*map(str, folders), "the local hub cache"])
        more = "local_files_only=False allows a download" if model.local_files_only else f"The hub's error: {error}"
        raise ModelNotFound(f"adapter={model.adapter!r} was not found in any of: {looked}. {more}.") from error


def locate_configs(model: ModelOptions) -> Path | None:
    """Return the folder with the configs of a model whose weights may be elsewhere; nothing is downloaded.

    Returns
    -------
    Path or None
        None where no place has its configs.
    """
    if model.model_name == "demo":
        return _DEMO_MODEL
    places = (Path(model.model_path) / model.model_name, Path(model.model_name), Path(model.model_path))
    folders = (place.expanduser() for place in places)
    return next((folder for folder in folders if (folder / "config.json").is_file()), None) or _cached(model.model_name)


def _from_hub(model: ModelOptions, folders: tuple[Path, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model.model_name, local_files_only=model.local_files_only))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        looked = [*map(str, folders), f"{model.model_path} (no config.json in it)", "the local hub cache"]
        more = "local_files_only=False allows a download" if model.local_files_only else f"The hub's error: {error}"
        raise ModelNotFound(
            f"model_name={model.model_name!r} was not found in any of: {'; '.join(looked)}. {more}. "
            "model_name='demo' runs the embedded model without a download."
        ) from error


def _cached(name: str) -> Path | None:
    """Return the folder of the local hub cache that has the configs of a model."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(name, file) for file in ("config.json", "preprocessor_config.json")]
    except HFValidationError:  # not a name of the hub
        return None
    paths = [Path(one) for one in found if isinstance(one, str)]
    return paths[0].parent if len(paths) == len(found) else None
