"""Memory of weights and of keys and values, computed without loading and compared with what is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.checkpoints import make_published
from transformers import Qwen2_5_VLForConditionalGeneration

from qwenvl_kit import Config
from qwenvl_kit.checkpoints.checkpoint import find, read
from qwenvl_kit.checkpoints.footprint import kv_bytes_per_token, weight_bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_bytes_of_weights_and_of_a_token_are_those_of_the_loaded_model(
    tmp_path: Path, dtype: str, tied: bool
) -> None:
    folder = make_published(tmp_path / "model", tied=tied)
    checkpoint = read(folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
    parameters = {parameter.data_ptr(): parameter.nbytes for parameter in model.parameters()}
    with torch.inference_mode():
        cache = model.model.language_model(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values

    assert weight_bytes(checkpoint, dtype) == sum(parameters.values())
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert 3 * kv_bytes_per_token(checkpoint.config, dtype) == held


def test_nested_configs_say_the_same_as_flat_ones() -> None:
    demo = find(Config(model_name="demo"))
    assert "text_config" in demo.config

    assert kv_bytes_per_token(demo.config, "float32") == kv_bytes_per_token(demo.config["text_config"], "float32")
    assert 1e6 < weight_bytes(demo, "bfloat16") / 2 < 4e6
