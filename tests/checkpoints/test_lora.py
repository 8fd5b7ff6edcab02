"""A LoRA adapter is folded into the weights as peft merges it, and one that cannot be is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.adapters import MODULES, make_adapter, merged
from helpers.checkpoints import card_loop
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from qwenvl_kit.checkpoints.lora import FoldedWeights, read_lora
from qwenvl_kit.demo import model_dir
from qwenvl_kit.errors import CheckpointError, ConfigError, ModelNotFound
from qwenvl_kit.export import to_onnx

EXACT = {"dtype": "float32", "use_flash_attention_2": False, "progress": False, "max_caption_length": 16}
PROMPT = "What is it?"
PLAIN = dict.fromkeys(MODULES, 8.0)


@pytest.mark.parametrize("name", ["published", "demo"])
def test_tokens_are_those_of_transformers_with_merged_weights(
    name: str, published: Path, pictures: list[Image.Image], tmp_path: Path
) -> None:
    base = published if name == "published" else model_dir()
    adapter = make_adapter(tmp_path / "adapter", base)
    reference = merged(base, adapter, tmp_path / "merged", alphas=PLAIN)
    cells = pd.Series(pictures[:4])

    found = cells.vl.run(model_name=str(base), adapter=str(adapter), prompt=PROMPT, **EXACT)
    plain = cells.vl.run(model_name=str(base), prompt=PROMPT, **EXACT)

    assert found["text"].tolist() == card_loop(reference, pictures[:4], [PROMPT] * 4, max_new_tokens=16)
    assert found["text"].tolist() != plain["text"].tolist(), "the adapter changes answers"
    effective = found.attrs["effective"]
    assert effective["fingerprint"] != plain.attrs["effective"]["fingerprint"]
    assert found.attrs["asked"]["adapter"] == str(adapter)
    assert f"The LoRA adapter {adapter} is folded into 4 weights." in effective["notes"]


def test_an_export_has_the_adapter_folded_in_and_passes_its_comparison(
    published: Path, pictures: list[Image.Image], tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "adapter", published)
    done = to_onnx(published, tmp_path / "export", adapter=str(adapter), verify_rows=2)
    cells = pd.Series(pictures[:4])

    exported = cells.vl.caption(backend="onnx", model_name=str(done.path), prompt=PROMPT, **EXACT)

    assert done.parity is not None
    assert done.parity.passed
    assert done.manifest["source"]["adapter"]["name"] == "adapter"
    wanted = cells.vl.caption(model_name=str(published), adapter=str(adapter), prompt=PROMPT, **EXACT)
    assert exported.tolist() == wanted.tolist()
    with pytest.raises(ConfigError, match="runs exported weights"):
        cells.vl.caption(backend="onnx", model_name=str(done.path), adapter=str(adapter), **EXACT)


def test_scales_follow_patterns_and_the_square_root_of_the_rank(tmp_path: Path) -> None:
    q, down, qkv, merger = MODULES
    adapter = make_adapter(
        tmp_path / "adapter",
        model_dir(),
        ranks={down: 2, qkv: 6},
        rank_pattern={"down_proj": 2, r"visual\.blocks\.\d+\.attn\.qkv": 6},
        alpha_pattern={"qkv": 3},
        use_rslora=True,
    )
    reference = merged(model_dir(), adapter, tmp_path / "merged", alphas={q: 8, down: 8, qkv: 3, merger: 8}, root=True)
    weights = FoldedWeights(read_lora(adapter))

    with (
        safe_open(model_dir() / "model.safetensors", "pt") as base,
        safe_open(reference / "model.safetensors", "pt") as wanted,
    ):
        names = list(base.keys())
        changed = [name for name in names if weights.changes(name)]
        for name in names:
            torch.testing.assert_close(
                weights.fold(name, base.get_tensor(name)).float(), wanted.get_tensor(name), rtol=0, atol=1e-6
            )
    assert len(changed) == 4


def test_saved_modules_take_the_place_of_weights_and_embeddings_are_transposed(tmp_path: Path) -> None:
    with safe_open(model_dir() / "model.safetensors", "pt") as base:
        norm, table = (base.get_tensor(name).float() for name in ("model.norm.weight", "model.embed_tokens.weight"))
    adapter = make_adapter(tmp_path, model_dir(), modules=(), saved={"model.language_model.norm": norm * 2})
    a, b = torch.randn(4, len(table)), torch.randn(table.shape[1], 4)
    prefix = "base_model.model.model.language_model.embed_tokens.lora_embedding_"
    tensors = {"base_model.model.model.language_model.norm.weight": norm * 2, f"{prefix}A": a, f"{prefix}B": b}
    save_file(tensors, adapter / "adapter_model.safetensors")

    weights = FoldedWeights(read_lora(adapter))

    assert torch.equal(weights.fold("model.norm.weight", norm), norm * 2)
    torch.testing.assert_close(weights.fold("model.embed_tokens.weight", table), table + 2 * (b @ a).T)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'. Only LORA"),
        ({"use_dora": True}, "is DoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"bias": "all"}, "trains biases"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"layer_replication": [[0, 2]]}, "not plain LoRA"),
        ({"r": 8}, "says rank 8"),
        ({"lora_alpha": "8"}, "is no number"),
        ({"rank_pattern": {"(": 3}}, "unusable pattern"),
    ],
    ids=str,
)
def test_another_kind_of_adapter_is_refused_by_name(config: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=told.replace("(", r"\(")):
        read_lora(make_adapter(tmp_path, model_dir(), modules=MODULES[:1], **config))


@pytest.mark.parametrize("change", ["config", "weights", "json", "pair", "other"])
def test_a_broken_folder_is_refused(change: str, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path, model_dir(), modules=MODULES[:1])
    if change == "config":
        (adapter / "adapter_config.json").unlink()
    elif change == "weights":
        (adapter / "adapter_model.safetensors").unlink()
    elif change == "json":
        (adapter / "adapter_config.json").write_text("[]")
    else:
        name = "lora_A.weight" if change == "pair" else "lora_magnitude_vector"
        save_file({f"base_model.model.{MODULES[0]}.{name}": torch.zeros(4, 4)}, adapter / "adapter_model.safetensors")

    with pytest.raises(CheckpointError, match=str(adapter)):
        read_lora(adapter)


def test_what_does_not_fit_is_told_before_weights_are_read(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenvl_kit.torch_backend.backend.load_model", lambda *_: pytest.fail("loaded"))
    adapter = make_adapter(tmp_path / "adapter", model_dir())
    cells = pd.Series([Image.new("RGB", (56, 56))])

    with pytest.raises(CheckpointError, match="own base model as model_name"):
        cells.vl.caption(model_name=str(published), adapter=str(adapter), **EXACT)
    with pytest.raises(ConfigError, match="does not support device_map"):
        cells.vl.caption(model_name="demo", adapter=str(adapter), device_map="cpu", **EXACT)
    with pytest.raises(ModelNotFound, match="adapter='no/such'"):
        cells.vl.caption(model_name="demo", adapter="no/such", **EXACT)


def test_an_adapter_given_as_the_model_says_what_to_write(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path, model_dir(), modules=MODULES[:1])

    with pytest.raises(CheckpointError) as caught:
        pd.Series([Image.new("RGB", (56, 56))]).vl.caption(model_name=str(adapter), **EXACT)

    assert f"Pass adapter={str(adapter)!r}, and model_name='base'" in str(caught.value)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
