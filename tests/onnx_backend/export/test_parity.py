"""Exports answer as their sources do, and a comparison notices when they do not."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from helpers.checkpoints import make_published
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from qwenvl_kit.checkpoints.checkpoint import read
from qwenvl_kit.checkpoints.loading import load_processor
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.export import to_onnx, verify
from qwenvl_kit.onnx_backend.export import parity_reference
from qwenvl_kit.onnx_backend.export.exporter import Quantize
from qwenvl_kit.onnx_backend.export.parity_bars import judge_exact, judge_rounded, rounding_bound
from qwenvl_kit.onnx_backend.export.parity_reference import greedy
from qwenvl_kit.onnx_backend.export.parity_rows import draw_images, make_rows, model_inputs
from qwenvl_kit.onnx_backend.generate import OnnxQwenVL

WANTED_DIFFERENCE = 1e-4  # of logits up to 10; larger ones differ in proportion, as the spacing of float32 does


def are_close(frame: pd.DataFrame) -> bool:
    """Measured: 1.1e-4 on logits of 19, on an AMD EPYC without AVX-512."""
    return bool((frame["max_diff"] <= WANTED_DIFFERENCE * (frame["largest_logit"] / 10).clip(lower=1)).all())


def test_the_embedded_model_gives_the_same_tokens_in_every_batch(demo_onnx: Path, unseen: list[Image.Image]) -> None:
    parity = verify("demo", demo_onnx, unseen, n_tokens=64, batch_sizes=(1, 3, 8))

    assert (parity.frame["agreement"] == 1).all()
    assert parity.frame["ties"].sum() == 0
    assert are_close(parity.frame)
    assert len(parity.frame) == 3 * 24
    assert parity.frame["sizes"].str.contains(",").any(), "rows with several pictures are among the cases"
    assert parity.passed


@pytest.mark.slow
def test_a_published_layout_with_the_published_vocabulary_gives_the_same_tokens(
    tmp_path: Path, unseen: list[Image.Image]
) -> None:
    source = make_published(tmp_path / "source", vocab_size=151_936, hidden=64, layers=3)
    done = to_onnx(source, tmp_path / "onnx", verify_rows=0)

    parity = verify(source, done.path, unseen, n_tokens=64, batch_sizes=(1, 3, 8))

    assert parity.passed, parity.reason
    assert are_close(parity.frame)
    others = (1 - parity.frame["agreement"]) * parity.frame["new_tokens"]
    assert others.sum() == pytest.approx(parity.frame["ties"].sum()), "only ties may differ"


@pytest.mark.slow
def test_more_than_two_gigabytes_of_weights_give_the_same_tokens(tmp_path: Path) -> None:
    source = make_published(
        tmp_path / "source",
        vocab_size=151_936,
        hidden=1024,
        layers=4,
        tied=True,
        text={
            "intermediate_size": 32_768,
            "num_attention_heads": 16,
            "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        },
        vision={"out_hidden_size": 1024},
    )
    done = to_onnx(source, tmp_path / "onnx", verify_rows=0)
    assert (done.path / "weights.bin").stat().st_size > 2 * 2**30

    parity = verify(source, done.path, n_rows=3, n_tokens=6, batch_sizes=(3,))

    assert parity.passed, parity.reason
    assert are_close(parity.frame)


def test_untied_and_tied_output_layers_both_export(tmp_path: Path) -> None:
    for tied in (True, False):
        source = make_published(tmp_path / f"source-{tied}", tied=tied)
        done = to_onnx(source, tmp_path / f"onnx-{tied}", verify_rows=3)
        assert done.parity is not None
        assert done.parity.passed, done.parity.reason


def test_weights_are_stored_once(tmp_path: Path) -> None:
    source = make_published(tmp_path / "source", tied=True, vocab_size=8192)
    done = to_onnx(source, tmp_path / "onnx", verify_rows=0)
    from safetensors import safe_open

    n_weights = 0
    for file in source.glob("*.safetensors"):
        with safe_open(file, framework="np") as opened:
            n_weights += sum(int(np.prod(opened.get_slice(name).get_shape())) for name in opened.keys())  # noqa: SIM118

    assert (done.path / "weights.bin").stat().st_size <= 4 * n_weights + 4096 * 200  # tensors begin on pages
    assert sum(file.stat().st_size for file in done.path.glob("*.onnx")) < 500_000


def test_a_wrong_export_is_told_from_a_right_one(own_onnx: Path, unseen: list[Image.Image]) -> None:
    graph = onnx.load(own_onnx / "decoder.onnx", load_external_data=False)
    attention = next(node for node in graph.graph.node if node.op_type == "GroupQueryAttention")
    attention.attribute.append(onnx.helper.make_attribute("scale", 0.2))
    (own_onnx / "decoder.onnx").write_bytes(graph.SerializeToString())
    _accept_changes(own_onnx)

    parity = verify("demo", own_onnx, unseen[:3], n_tokens=8, batch_sizes=(3,))

    assert not parity.passed
    assert "FAILED" in str(parity)


def test_a_difference_is_a_tie_only_between_like_logits() -> None:
    frame = pd.DataFrame(
        {
            "agreement": [0.5],
            "new_tokens": [2],
            "ties": [1],
            "max_diff": [1e-5],
            "mean_diff": [1e-6],
            "largest_logit": [5.0],
        }
    )
    assert judge_exact(frame, 1e-4)[0]
    assert not judge_exact(frame.assign(ties=0), 1e-4)[0]
    assert not judge_exact(frame.assign(mean_diff=2e-4), 1e-4)[0]
    assert not judge_exact(frame.assign(max_diff=2e-3), 1e-4)[0]


@pytest.mark.parametrize(
    "judge", [lambda frame: judge_exact(frame, 1e-4), lambda frame: judge_rounded(frame, rounding_bound("int8", 4))]
)
def test_logits_that_are_not_finite_never_pass(judge: object) -> None:
    frame = pd.DataFrame(
        {
            "agreement": [1.0],
            "new_tokens": [2],
            "ties": [0],
            "max_diff": [np.nan],
            "mean_diff": [np.nan],
            "relative_error": [np.nan],
            "largest_logit": [5.0],
        }
    )
    assert not judge(frame)[0]  # type: ignore[operator]


@pytest.mark.parametrize("quantize", ["int8", "int4", "w8a8"])
def test_a_rounded_export_of_random_weights_passes_and_one_with_a_fault_does_not(
    tmp_path: Path, quantize: Quantize
) -> None:
    source = make_published(tmp_path / "source", hidden=128)
    done = to_onnx(source, tmp_path / "onnx", quantize=quantize, verify_rows=0)

    assert verify(source, done.path, n_rows=3, n_tokens=8, batch_sizes=(3,)).passed

    graph = onnx.load(done.path / "decoder.onnx", load_external_data=False)
    attention = next(node for node in graph.graph.node if node.op_type == "GroupQueryAttention")
    value = attention.input[2]
    attention.input[2] = attention.input[1]  # keys in the place of values
    assert value != attention.input[2]
    (done.path / "decoder.onnx").write_bytes(graph.SerializeToString())
    _accept_changes(done.path)

    assert not verify(source, done.path, n_rows=3, n_tokens=8, batch_sizes=(3,)).passed


def test_only_one_of_two_models_is_in_memory_while_they_are_compared(
    own_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports: list[weakref.ref[object]] = []
    opened = OnnxQwenVL.from_pretrained

    def watched(*given: Any, **options: Any) -> Any:
        exported = opened(*given, **options)
        exports.append(weakref.ref(exported.model_runner))
        return exported

    def load(*_: object) -> None:
        assert [exported() for exported in exports] == [None], "the export is freed before torch's model is loaded"
        raise StopIteration

    monkeypatch.setattr(OnnxQwenVL, "from_pretrained", watched)
    monkeypatch.setattr(parity_reference, "_load", load)

    with pytest.raises(StopIteration):
        verify("demo", own_onnx, n_rows=1, n_tokens=1)


def test_torchs_answers_are_those_of_the_whole_model_in_float32(tmp_path: Path) -> None:
    source = make_published(tmp_path / "source", tied=True)
    whole = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    processor = load_processor(read(source))
    (row,) = make_rows(processor, draw_images(1))
    inputs = model_inputs(processor, [row])

    with torch.inference_mode():
        made = whole.generate(**inputs, generation_config=greedy(9), output_logits=True, return_dict_in_generate=True)
        tokens = made.sequences[0, inputs["input_ids"].shape[1] :]
        (found,) = parity_reference.references(source, processor, [row], [tokens])

    torch.testing.assert_close(found, torch.cat(made.logits), atol=1e-4, rtol=1e-4)


def test_nothing_to_compare_is_refused(demo_onnx: Path) -> None:
    with pytest.raises(ConfigError, match="n_rows"):
        verify("demo", demo_onnx, n_rows=0)


def _accept_changes(folder: Path) -> None:
    """Write the manifest anew, as an exporter that is wrong but careful would."""
    import json

    from qwenvl_kit.onnx_backend.manifest import MANIFEST, describe_file

    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {name: describe_file(folder / name) for name in manifest["files"]}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_the_former_name_of_images_is_accepted_with_a_warning(demo_onnx: Path, unseen: list[Image.Image]) -> None:
    with pytest.warns(DeprecationWarning, match="images="):
        parity = verify("demo", demo_onnx, pictures=unseen[:1], n_tokens=1, batch_sizes=(1,))

    assert len(parity.frame) == 1
