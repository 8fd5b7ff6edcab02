"""An export is whole or not there; an older one stays until a newer one is finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.checkpoints import make_published
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import qwenvl_kit.onnx_backend.export.exporter as writing
from qwenvl_kit.errors import CheckpointError, ConfigError, ExportFailed
from qwenvl_kit.export import to_onnx
from qwenvl_kit.onnx_backend.export.parity import Parity
from qwenvl_kit.onnx_backend.export.weights import round_to_int8
from qwenvl_kit.onnx_backend.manifest import MANIFEST, read_export


def test_the_manifest_describes_the_export(demo_onnx: Path) -> None:
    manifest = json.loads((demo_onnx / MANIFEST).read_text())

    assert manifest["source"]["name"] == "model"
    assert {"qwenvl_kit", "torch", "transformers", "optimum", "onnx", "onnxruntime"} <= set(manifest["versions"])
    assert {"vision.onnx", "decoder.onnx", "weights.bin", "tokenizer.json", "generation_config.json"} <= set(
        manifest["files"]
    )
    assert str(demo_onnx) not in json.dumps(manifest), "no path of this machine"


def test_parity_stands_in_the_manifest(tmp_path: Path) -> None:
    done = to_onnx("demo", tmp_path / "onnx", verify_rows=3)

    assert json.loads((done.path / MANIFEST).read_text())["parity"]["passed"] is True


@pytest.mark.parametrize("quantize", ["int8", "int4", "w8a8"])
def test_most_of_a_quantised_decoder_is_quantised_and_the_rest_is_named(tmp_path: Path, quantize: str) -> None:
    source = make_published(tmp_path / "source")
    done = to_onnx(source, tmp_path / "onnx", quantize=quantize, verify_rows=0)
    from qwenvl_kit.onnx_backend.export.weights import Tensors

    tensors = Tensors(sorted(source.glob("*.safetensors")))
    decoder = [name for name in tensors.names() if not name.startswith("vision.") and "embed_tokens" not in name]
    size = {name: tensors.get(name).nbytes for name in decoder}
    quantized = set(done.manifest["quantized"])
    assert sum(size[name] for name in quantized) >= 0.8 * sum(size.values())
    assert set(decoder) <= quantized | set(done.manifest["left_alone"])


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False),
    )
)
def test_integers_are_worth_the_nearest_to_what_they_stand_for(matrix: np.ndarray) -> None:
    codes, scales = round_to_int8(matrix)

    assert codes.dtype == np.int8
    assert codes.min() >= -127
    error = np.abs(codes.astype(np.float64) * scales[:, None] - matrix)
    assert (error <= 0.501 * scales[:, None]).all()


def test_an_export_replaces_an_older_one(own_onnx: Path) -> None:
    before = (own_onnx / MANIFEST).read_text()

    to_onnx("demo", own_onnx, quantize="int8", verify_rows=0)

    assert (own_onnx / MANIFEST).read_text() != before
    assert [file.name for file in own_onnx.parent.iterdir()] == [own_onnx.name], "nothing else is left"


def test_a_failed_parity_leaves_the_older_export(own_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (own_onnx / MANIFEST).read_text()

    def unlike(*_: object, **__: object) -> Parity:
        import pandas as pd

        frame = pd.DataFrame(
            {"batch_size": [1], "row": [0], "max_diff": [9.0], "mean_diff": [1.0], "agreement": [0.0], "ties": [0]}
        )
        return Parity(frame, passed=False, reason="another answer")

    monkeypatch.setattr(writing, "verify", unlike)
    with pytest.raises(ExportFailed, match="another answer"):
        to_onnx("demo", own_onnx)

    assert (own_onnx / MANIFEST).read_text() == before
    assert [file.name for file in own_onnx.parent.iterdir()] == [own_onnx.name]


def test_a_disk_that_fills_up_leaves_the_older_export(own_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (own_onnx / MANIFEST).read_text()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.WeightsWriter, "store", full)
    with pytest.raises(ExportFailed, match="No space left"):
        to_onnx("demo", own_onnx)

    assert (own_onnx / MANIFEST).read_text() == before
    assert [file.name for file in own_onnx.parent.iterdir()] == [own_onnx.name]


def test_a_disk_that_is_too_small_is_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ExportFailed, match="Free some space"):
        to_onnx("demo", tmp_path / "onnx")

    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="Choose another"):
        to_onnx("demo", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype"),
        ({"quantize": "int2"}, "quantize"),
        ({"quantize": "w8a8", "dtype": "float16"}, "float32"),
        ({"verify_rows": -1}, "verify_rows"),
    ],
)
def test_wrong_arguments_are_refused_at_once(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        to_onnx("demo", tmp_path / "onnx", **arguments)  # type: ignore[arg-type]


def test_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(CheckpointError, match="llava"):
        to_onnx(tmp_path, tmp_path / "onnx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"rope_scaling": {"type": "yarn", "rope_type": "yarn", "factor": 4.0, "mrope_section": [2, 3, 3]}}, "yarn"),
        ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 8}, "sliding_window"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}}, "mrope_section"),
    ],
)
def test_what_the_graphs_cannot_do_is_refused_not_ignored(
    tmp_path: Path, text: dict[str, object], message: str
) -> None:
    source = make_published(tmp_path / "source", text=text)
    with pytest.raises(CheckpointError, match=message):
        to_onnx(source, tmp_path / "onnx")

    assert not (tmp_path / "onnx").exists()


def test_a_checkpoint_without_all_its_weights_is_refused(tmp_path: Path) -> None:
    source = make_published(tmp_path / "source")
    next(iter(source.glob("*.safetensors"))).unlink()
    with pytest.raises(CheckpointError, match="1 of 2 files"):
        to_onnx(source, tmp_path / "onnx")


def test_every_missing_or_altered_file_is_named(demo_onnx: Path, tmp_path: Path) -> None:
    for name in json.loads((demo_onnx / MANIFEST).read_text())["files"]:
        folder = Path(shutil.copytree(demo_onnx, tmp_path / f"without-{name}"))
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=rf"{name} is missing"):
            read_export(folder)
        shutil.copyfile(demo_onnx / name, folder / name)
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name} is not what was written"):
            read_export(folder)
        (folder / name).write_bytes(content[:-1])
        with pytest.raises(CheckpointError, match=rf"{name} has \d+ bytes"):
            read_export(folder)


def test_an_unfinished_export_is_refused(own_onnx: Path) -> None:
    (own_onnx / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="not a finished ONNX export"):
        read_export(own_onnx)


def test_an_export_of_another_version_is_refused(own_onnx: Path) -> None:
    manifest = json.loads((own_onnx / MANIFEST).read_text())
    (own_onnx / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        read_export(own_onnx)
