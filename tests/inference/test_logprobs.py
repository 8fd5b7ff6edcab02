"""Log-probabilities of an answer's tokens: the model's own, in any batch, from the store too, only where asked for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.fake_model_runner import PlainProcessor, requests_of, resolved_of
from PIL import Image

import qwenvl_kit
from qwenvl_kit.demo import model_dir
from qwenvl_kit.inference.sampler import Sampler

OPTIONS: dict[str, Any] = {
    "model_name": "demo",
    "dtype": "float32",
    "use_flash_attention_2": False,
    "progress": False,
    "max_caption_length": 12,
}
PROMPT = "Describe the image in a sentence."


def sequences_of(n: int) -> list[Any]:
    return [PlainProcessor().encode(request) for request in requests_of([(row, row % 5, 30) for row in range(n)])]


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "temperature": 3.0, "top_k": 5}], ids=["greedy", "sampling"]
)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_they_are_the_models_own_before_penalty_and_warping(penalty: float, options: dict[str, Any]) -> None:
    resolved = replace(resolved_of(**options, logprobs=3), repetition_penalty=penalty)
    plain = replace(resolved, logprobs=None)
    logits = torch.randn(5, 300) * 3

    sampled = Sampler(resolved).sample(logits.clone(), sequences_of(5))

    assert sampled.ids == Sampler(plain).sample(logits.clone(), sequences_of(5)).ids
    assert Sampler(plain).sample(logits.clone(), sequences_of(5)).logprobs is None
    exact = logits.double().log_softmax(dim=-1)
    assert sampled.logprobs is not None
    for row, (own, *likeliest) in enumerate(sampled.logprobs):
        assert own[0] == sampled.ids[row]
        assert own[1] == pytest.approx(exact[row, own[0]].item(), abs=1e-5)
        values, ids = exact[row].topk(3)
        assert [token for token, _ in likeliest] == ids.tolist()
        assert [value for _, value in likeliest] == pytest.approx(values.tolist(), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_they_do_not_depend_on_the_batch_and_sum_up(
    batch_size: int, pictures: list[Image.Image], tmp_path: Path
) -> None:
    images, store = pd.Series(pictures[:5]), tmp_path / "answers.sqlite"
    together = images.vl.run(**OPTIONS, batch_size=5, logprobs=2)
    run = images.vl.run(**OPTIONS, batch_size=batch_size, logprobs=2, store=store)
    again = images.vl.run(**OPTIONS, batch_size=batch_size, logprobs=2, store=store)
    plain = images.vl.run(**OPTIONS, batch_size=batch_size, store=store)
    qwenvl_kit.unload()

    for at in range(5):
        assert run["logprob_sum"].iloc[at] == pytest.approx(together["logprob_sum"].iloc[at], abs=1e-4)
        tokens = run["logprobs"].iloc[at]
        ends = run["finish_reason"].iloc[at] == "stop"
        assert len(tokens) == run["new_tokens"].iloc[at] + ends
        assert "".join(one["token"] for one in tokens) == run["text"].iloc[at]
        assert run["logprob_sum"].iloc[at] == pytest.approx(math.fsum(one["logprob"] for one in tokens))
        assert run["logprob_mean"].iloc[at] == pytest.approx(run["logprob_sum"].iloc[at] / len(tokens))
        for one in tokens:
            assert len(one["likeliest"]) == 2
            assert one["likeliest"][0]["logprob"] >= one["logprob"] - 1e-6
    run.to_parquet(tmp_path / "answers.parquet")
    assert again["cached"].all()
    pd.testing.assert_series_equal(again["logprob_sum"], run["logprob_sum"])
    assert again["logprobs"].tolist() == run["logprobs"].tolist()
    assert not plain["cached"].any(), "keys of answers without them are those of earlier versions"
    assert "logprob_sum" not in plain


def test_failed_rows_have_none(pictures: list[Image.Image]) -> None:
    with pytest.warns(qwenvl_kit.RowErrorWarning):
        run = pd.Series([pictures[0], "missing.jpg", None]).vl.run(**OPTIONS, logprobs=0)

    assert run["logprob_sum"].isna().tolist() == [False, True, True]
    assert [one is None for one in run["logprobs"]] == [False, True, True]
    assert run["logprobs"].iloc[0][0]["likeliest"] == []


@torch.inference_mode()
def places_of(folder: Path, pictures: list[Image.Image], search: dict[str, Any]) -> list[list[list[float]]]:
    """Each token's log-probability and the two largest, from a forward of transformers over prompt and answer."""
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
    text = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    found: list[list[list[float]]] = []
    for picture in pictures:
        asked = processor(text=[text], images=[picture], return_tensors="pt")
        n_prompt = asked["input_ids"].shape[1]
        ids = model.generate(**asked, **search, do_sample=False)
        kinds = asked["mm_token_type_ids"]
        kinds = torch.cat([kinds, kinds.new_zeros(1, ids.shape[1] - n_prompt)], dim=1)
        whole = {**asked, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
        logprobs = model(**whole).logits[0, n_prompt - 1 : -1].double().log_softmax(-1)
        own = logprobs.gather(1, ids[:, n_prompt:].T)
        found.append(torch.cat([own, logprobs.topk(2).values], dim=1).tolist())
    return found


@pytest.mark.parametrize(("n_tokens", "penalty"), [(5, 1.5), (40, 1.0)])
def test_those_of_beams_are_the_best_ones_from_a_plain_forward_before_any_penalty(
    n_tokens: int, penalty: float, published: Path, pictures: list[Image.Image]
) -> None:
    sizes = [(112, 112), (168, 84), (84, 168), (168, 56), (56, 168)]  # which neither side resizes
    some = [one.resize(size) for one, size in zip(pictures[:5], sizes, strict=True)]
    search: dict[str, Any] = {"num_beams": 3, "repetition_penalty": penalty}
    ends: set[str] = set()
    for folder in (published, model_dir()):
        wanted = places_of(folder, some, {**search, "max_new_tokens": n_tokens})
        for batch_size in (1, 5):
            options = {**OPTIONS, **search, "model_name": str(folder), "max_caption_length": n_tokens}
            run = pd.Series(some).vl.run(prompt=PROMPT, batch_size=batch_size, logprobs=2, **options)
            for at, places in enumerate(wanted):
                tokens = run["logprobs"].iloc[at]
                got = [[one["logprob"], *(other["logprob"] for other in one["likeliest"])] for one in tokens]
                assert torch.tensor(got).sub(torch.tensor(places)).abs().max() < 1e-4
                assert run["logprob_sum"].iloc[at] == pytest.approx(math.fsum(one for one, *_ in places), abs=1e-4)
                text = "".join(one["token"] for one in tokens)
                assert text == run["text"].iloc[at] or "\ufffd" in text  # parts of characters
            ends |= set(run["finish_reason"])
            qwenvl_kit.unload()
    assert ("length" if n_tokens == 5 else "stop") in ends, "answers that are cut, and answers that end"
