"""A stranger's checkpoint or export reads no file but its own, writes none outside, and loads nothing that can run."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from qwenvl_kit import CheckpointError, Config, MissingExtra
from qwenvl_kit.demo import model_dir
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.export import OnnxQwenVL, to_onnx, verify
from qwenvl_kit.onnx_backend import require as onnx_extra
from qwenvl_kit.onnx_backend.manifest import MANIFEST, Export, describe_file, read_export

KERNEL = "kernels-community/evil-attention"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir(), tmp_path / "model"))


def manifest_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return content


def write_manifest(folder: Path, content: object) -> None:
    (folder / MANIFEST).write_text(json.dumps(content))


def test_a_manifest_names_files_of_its_folder_only(own_onnx: Path, tmp_path: Path) -> None:
    secret = tmp_path / "payload.txt"
    secret.write_text("secret")
    manifest = manifest_of(own_onnx)
    for name in ("../payload.txt", str(secret), "a/../../payload.txt", "..", ".", "", "a\\b", "C:x"):
        write_manifest(own_onnx, {**manifest, "files": {**manifest["files"], name: describe_file(secret)}})
        with pytest.raises(CheckpointError, match="plain name"):
            read_export(own_onnx)


def test_a_link_out_of_an_export_is_refused_and_one_into_the_hubs_blobs_is_not(own_onnx: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.onnx"
    (own_onnx / "vision.onnx").rename(target)
    (own_onnx / "vision.onnx").symlink_to(target)
    with pytest.raises(CheckpointError, match="outside"):
        read_export(own_onnx)

    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    shutil.copytree(own_onnx, snapshot)
    for file in list(snapshot.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(Path("../../blobs") / file.name)
    assert read_export(snapshot).dtype == "float32"


@pytest.mark.parametrize(
    "table",
    [
        {"file": "/etc/passwd", "dtype": "float32", "offset": 0, "shape": [1, 1]},
        {"file": ["weights.bin"], "dtype": "float32", "offset": 0, "shape": [1, 1]},
        {"file": "weights.bin", "dtype": "object", "offset": 0, "shape": [1, 1]},
        {"file": "weights.bin", "dtype": "float32", "offset": -4, "shape": [1, 1]},
        {"file": "weights.bin", "dtype": "float32", "offset": 0, "shape": [10**9, 10**9]},
        {"file": "weights.bin", "dtype": "float32", "offset": 0, "shape": None},
        {"file": "weights.bin"},
        None,
    ],
    ids=str,
)
def test_the_embedding_table_lies_in_a_file_of_the_export(own_onnx: Path, table: object) -> None:
    write_manifest(own_onnx, {**manifest_of(own_onnx), "embeddings": table})

    with pytest.raises(CheckpointError, match="embeddings"):
        read_export(own_onnx)


@pytest.mark.parametrize("content", [[], None, "x", {}, {"format": 1}, {"format": [], "versions": []}], ids=str)
def test_a_manifest_that_is_none_is_refused(own_onnx: Path, content: object) -> None:
    write_manifest(own_onnx, content)

    with pytest.raises(CheckpointError, match=MANIFEST.replace(".", r"\.") + "|format"):
        read_export(own_onnx)


@pytest.mark.parametrize("key", ["dtype", "quantize", "files", "embeddings"])
@pytest.mark.parametrize("value", [[], "x", 3, {"decoder.onnx": 1, "vision.onnx": 2}], ids=str)
def test_a_manifest_without_a_key_or_with_another_type_is_refused(own_onnx: Path, key: str, value: object) -> None:
    manifest = manifest_of(own_onnx)
    for content in ({**manifest, key: value}, {name: one for name, one in manifest.items() if name != key}):
        write_manifest(own_onnx, content)
        with pytest.raises(CheckpointError, match="damaged"):
            read_export(own_onnx)


def test_a_copy_is_written_into_its_folder_only(demo_onnx: Path, tmp_path: Path) -> None:
    model = OnnxQwenVL.from_pretrained(demo_onnx, threads=1)
    copy, outside = tmp_path / "copy", tmp_path / "outside.txt"
    copy.mkdir()
    outside.write_text("as it was")
    (copy / "config.json").symlink_to(outside)
    model.save_pretrained(copy)
    assert outside.read_text() == "as it was"
    assert (copy / "config.json").read_bytes() == (demo_onnx / "config.json").read_bytes()

    manifest = manifest_of(demo_onnx)
    model.export = Export(demo_onnx, {**manifest, "files": {"../outside.txt": {}}})
    with pytest.raises(CheckpointError, match="outside"):
        model.save_pretrained(copy)
    assert outside.read_text() == "as it was"


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was read",)


def test_pickles_beside_a_decoy_are_not_read(folder: Path, demo_onnx: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil()))

    for work in (lambda: verify(folder, demo_onnx), lambda: to_onnx(folder, tmp_path / "out")):
        with pytest.raises(CheckpointError, match="run code"):
            work()


def test_a_kernel_that_a_config_names_is_never_asked_for(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part |= {"attn_implementation": KERNEL, "_attn_implementation": KERNEL, "_attn_implementation_internal": KERNEL}
    (folder / "config.json").write_text(json.dumps(config))

    make_spec(Config(model_name=str(folder))).load().close()
    done = to_onnx(folder, tmp_path / "onnx", verify_rows=0)
    parity = verify(folder, done.path, n_rows=1, n_tokens=2, batch_sizes=(1,), threads=1)

    assert parity.passed


def test_the_folder_that_the_wheel_brings_is_not_taken_for_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "optimum.modeling_base" else there(name, *rest),
    )

    with pytest.raises(MissingExtra, match="onnx"):
        onnx_extra.require_onnx("a test")
