"""The runtime class by itself: transformers' generate with all its options, on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2_5_VLForConditionalGeneration,
    StoppingCriteria,
    StoppingCriteriaList,
)

from qwenvl_kit.demo import model_dir
from qwenvl_kit.errors import CheckpointError
from qwenvl_kit.export import OnnxQwenVL, to_onnx
from qwenvl_kit.inference.model_runner import PrefillChunk

_PROMPTS = ("Describe the picture.", "图里有什么？", "What is in the middle, and which colour has it?")


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> OnnxQwenVL:
    folder = to_onnx("demo", tmp_path_factory.mktemp("exports") / "demo", verify_rows=0).path
    model = OnnxQwenVL.from_pretrained(folder)
    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id, pad_token_id=0)
    return model


@pytest.fixture(scope="module")
def torch_model(onnx_model: OnnxQwenVL) -> Any:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(model_dir(), dtype=torch.float32).eval()
    model.generation_config = onnx_model.generation_config
    return model


@pytest.fixture(scope="module")
def inputs(onnx_model: OnnxQwenVL, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
    """Three rows of unlike lengths, left-padded; the last one shows two pictures."""
    processor = onnx_model.processor
    counts = (1, 1, 2)
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}] * count + [{"type": "text", "text": prompt}]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for count, prompt in zip(counts, _PROMPTS, strict=True)
    ]
    made = processor(text=texts, images=pictures[: sum(counts)], padding=True, padding_side="left", return_tensors="pt")
    assert (made["attention_mask"] == 0).any(), "padding is among the cases"
    return dict(made)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": False, "num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
        {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
        {"do_sample": True, "temperature": 0.9, "top_k": 20, "top_p": 0.95},
        {"do_sample": True, "num_return_sequences": 2, "min_p": 0.05},
        {"do_sample": False, "min_new_tokens": 20, "bad_words_ids": [[5], [6]]},
    ],
    ids=str,
)
def test_generate_equals_torch(
    onnx_model: OnnxQwenVL, torch_model: Any, inputs: dict[str, torch.Tensor], options: dict[str, Any]
) -> None:
    outputs = []
    for model in (torch_model, onnx_model):
        torch.manual_seed(0)
        outputs.append(model.generate(**inputs, max_new_tokens=32, **options))

    assert outputs[0].tolist() == outputs[1].tolist()


def test_custom_processors_and_criteria_apply(onnx_model: OnnxQwenVL, inputs: dict[str, torch.Tensor]) -> None:
    class Only(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            forced = torch.full_like(scores, -torch.inf)
            forced[:, 7] = 0
            return forced

    class AfterFive(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= length + 5)

    length = inputs["input_ids"].shape[1]
    outputs = onnx_model.generate(
        **inputs,
        max_new_tokens=32,
        do_sample=False,
        logits_processor=LogitsProcessorList([Only()]),
        stopping_criteria=StoppingCriteriaList([AfterFive()]),
    )
    assert outputs[:, length:].tolist() == [[7] * 5] * 3


def test_a_text_without_a_picture_is_answered_as_by_torch(onnx_model: OnnxQwenVL, torch_model: Any) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}

    assert onnx_model.generate(**asked).tolist() == torch_model.generate(**asked).tolist()


def test_prompt_pass_and_step_are_functions_of_their_own(onnx_model: OnnxQwenVL, torch_model: Any) -> None:
    ids = torch.tensor([5, 6, 7, 8, 9])
    positions = torch.arange(5).expand(3, -1)
    runner = onnx_model.model_runner
    runner.resize_cache(2, 8)

    whole = runner.prefill([PrefillChunk(0, ids, positions)])
    runner.prefill([PrefillChunk(1, ids[:3], positions[:, :3])])
    in_parts = runner.prefill([PrefillChunk(1, ids[3:], positions[:, 3:], cached_len=3)])
    stepped = runner.decode(torch.tensor([10, 10]), torch.tensor([5, 5]), torch.tensor([5, 5]), 6)

    wanted = torch_model(input_ids=torch.cat([ids, torch.tensor([10])])[None]).logits[0]
    torch.testing.assert_close(whole[0], wanted[4], atol=1e-4, rtol=0)
    torch.testing.assert_close(in_parts[0], wanted[4], atol=1e-4, rtol=0)
    torch.testing.assert_close(stepped, wanted[5].expand(2, -1), atol=1e-4, rtol=0)


def test_long_prompts_are_read_in_parts_of_bounded_memory(
    onnx_model: OnnxQwenVL, torch_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qwenvl_kit.onnx_backend.model_runner as stepping

    monkeypatch.setattr(stepping, "ATTENTION_BYTES", 1)  # parts of 16 tokens
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 900, (length,), generator=generator) for length in (50, 7, 33)]
    onnx_model.model_runner.resize_cache(3, 64)
    read = onnx_model.model_runner.prefill(
        [PrefillChunk(slot, ids, torch.arange(len(ids)).expand(3, -1)) for slot, ids in enumerate(rows)]
    )

    for logits, ids in zip(read, rows, strict=True):
        torch.testing.assert_close(logits, torch_model(input_ids=ids[None]).logits[0, -1], atol=1e-4, rtol=0)


def test_a_saved_copy_is_the_same_model(
    onnx_model: OnnxQwenVL, inputs: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    onnx_model.save_pretrained(tmp_path / "copy")
    copy = OnnxQwenVL.from_pretrained(tmp_path / "copy", threads=1)
    copy.generation_config = onnx_model.generation_config

    assert (
        copy.generate(**inputs, max_new_tokens=8).tolist() == onnx_model.generate(**inputs, max_new_tokens=8).tolist()
    )


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a finished ONNX export"):
        OnnxQwenVL.from_pretrained(tmp_path)
