"""Finding a checkpoint, and telling one from another, without reading its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qwenvl_kit import CheckpointError, Config, ModelNotFound
from qwenvl_kit.checkpoints import digest
from qwenvl_kit.checkpoints.checkpoint import find, read


@pytest.fixture(autouse=True)
def _no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty-hub-cache"))


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "models" / "Qwen" / "tiny"))


def test_a_name_below_model_path_is_found_first(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen").mkdir()

    assert find(Config(model_path=str(tmp_path / "models"), model_name="Qwen/tiny")).path == folder


def test_a_folder_given_as_the_name_is_found(folder: Path) -> None:
    assert find(Config(model_name=str(folder))).path == folder


def test_a_model_path_that_is_itself_a_checkpoint_is_found(folder: Path) -> None:
    assert find(Config(model_path=str(folder))).path == folder


def test_a_model_that_is_nowhere_lists_every_place_and_offers_the_demo(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as caught:
        find(Config(model_path=str(tmp_path), model_name="Qwen/absent"))

    for place in (str(tmp_path / "Qwen" / "absent"), "no config.json in it", "hub cache", "demo", "local_files_only"):
        assert place in str(caught.value)


def test_another_family_is_refused_by_name(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))

    with pytest.raises(CheckpointError, match=r"llava.*qwen2_5_vl"):
        read(folder)


@pytest.mark.parametrize("missing", ["config.json", "preprocessor_config.json"])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()

    with pytest.raises(CheckpointError, match=missing):
        read(folder)


def test_weights_that_can_run_code_are_refused(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))

    with pytest.raises(CheckpointError, match="safetensors"):
        read(folder)


def test_pixel_limits_are_read_from_old_and_new_layouts(folder: Path) -> None:
    old = read(folder).geometry
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    limits = {"shortest_edge": processor.pop("min_pixels"), "longest_edge": processor.pop("max_pixels")}
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": {**processor, "size": limits}}))

    assert read(folder).geometry == old
    assert (old.min_pixels, old.max_pixels, old.factor) == (3136, 40_000, 28)


def test_the_digest_follows_the_content_and_not_the_name(folder: Path, tmp_path: Path) -> None:
    before = read(folder).digest
    moved = folder.rename(tmp_path / "elsewhere")
    assert read(moved).digest == before

    weights = next(moved.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert read(moved).digest != before


def test_large_weights_are_told_apart_by_samples(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "WHOLE_FILE_BYTES", 1000)
    monkeypatch.setattr(digest, "BLOCK_BYTES", 64)
    before = read(folder).digest
    weights = next(folder.glob("*.safetensors"))
    data = weights.read_bytes()
    half = len(data) // 2
    weights.write_bytes(data[:half] + bytes(byte ^ 1 for byte in data[half:]))

    assert read(folder).digest != before


def test_end_tokens_and_context_are_read_from_flat_and_nested_configs(published: Path) -> None:
    from qwenvl_kit.demo import model_dir

    flat, nested = read(published), read(model_dir())

    assert len(flat.eos_token_ids) == 2
    assert flat.context == 4096
    assert (
        nested.context
        == json.loads((model_dir() / "config.json").read_text())["text_config"]["max_position_embeddings"]
    )
