"""Labels have the likelihood that transformers gives them, on every backend and in any batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import qwenvl_kit
from qwenvl_kit.demo import model_dir
from qwenvl_kit.errors import ConfigError, RowErrorWarning
from qwenvl_kit.export import to_onnx
from qwenvl_kit.inference.token_trie import TokenTrie
from qwenvl_kit.torch_backend.model_runner import TorchModelRunner

EXACT: dict[str, Any] = {"dtype": "float32", "use_flash_attention_2": False, "progress": False}
LABELS = ["A red circle.", "A red circle on the left", "No.", "图中有两个物体。", "two", "🦉 owl <|im_end|>"]
PROMPT = "What is in the picture?"
# The owl, which no one trained, lies near -280. There one unit in the last place of every layer's output, put into a
# forward in double precision, moves it by up to 1.8e-4.
LEAST_CLOSE, CLOSE_FROM_100_ON = 1e-4, 1e-6


@pytest.fixture(params=["published", "demo"])
def checkpoint(request: pytest.FixtureRequest, published: Path) -> Path:
    return published if request.param == "published" else model_dir()


@torch.inference_mode()
def reference(folder: Path, pictures: list[Image.Image], labels: list[str]) -> list[list[float]]:
    """The sum over a label's tokens and the end of the turn, from one forward of transformers for each."""
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    ended = model.generation_config.eos_token_id
    end = ended[0] if isinstance(ended, list) else ended
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
    text = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    scores: list[list[float]] = []
    for picture in pictures:
        asked = processor(text=[text], images=[picture], return_tensors="pt")
        n_prompt = asked["input_ids"].shape[1]
        scores.append([])
        for label in labels:
            ids = processor.tokenizer(label, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            answer = torch.tensor([[*ids, end]])
            inputs = {**asked, "input_ids": torch.cat([asked["input_ids"], answer], dim=1)}
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            types = inputs["mm_token_type_ids"]
            inputs["mm_token_type_ids"] = torch.cat([types, types.new_zeros(answer.shape)], dim=1)
            logprobs = model(**inputs).logits[0, n_prompt - 1 : -1].log_softmax(-1).double()
            scores[-1].append(float(logprobs.gather(1, answer.T).sum()))
    return scores


def scores_of(pictures: list[Image.Image], **options: Any) -> list[list[float]]:
    pd.Series(pictures).vl.classify(LABELS, prompt=PROMPT, **{**EXACT, **options})
    frame = qwenvl_kit.last_run()
    assert frame is not None
    return [list(some) for some in frame["label_logprobs"]]


def test_scores_are_those_of_a_plain_forward_alone_and_in_batches_on_torch_and_onnx(
    checkpoint: Path, pictures: list[Image.Image], tmp_path: Path
) -> None:
    sizes = [(112, 112), (168, 84), (84, 168), (168, 56), (56, 168)]  # which neither side resizes
    some = [one.resize(size) for one, size in zip(pictures[:5], sizes, strict=True)]
    wanted = reference(checkpoint, some, LABELS)
    exported = to_onnx(checkpoint, tmp_path / "exported", verify_rows=0).path

    bounds = np.maximum(LEAST_CLOSE, CLOSE_FROM_100_ON * np.abs(wanted))

    for batch_size in (1, 4, 16):
        torch_scores = scores_of(some, model_name=str(checkpoint), batch_size=batch_size)
        onnx_scores = scores_of(some, backend="onnx", model_name=str(exported), batch_size=batch_size)
        for scores in (torch_scores, onnx_scores):
            np.testing.assert_array_less(np.abs(np.subtract(scores, wanted)), bounds)
    assert qwenvl_kit.last_run()["label_tokens"].iloc[0][2] > 1  # type: ignore[index]


def test_more_labels_than_fit_a_pass_have_the_scores_that_they_have_alone(
    pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = scores_of(pictures[:2], model_name="demo")
    monkeypatch.setattr("qwenvl_kit.inference.label_scoring._MAX_TOKENS", 1)
    np.testing.assert_allclose(scores_of(pictures[:2], model_name="demo"), wanted, atol=1e-4, rtol=0)


def test_a_hundred_labels_take_one_look_and_one_reading_of_the_prompt(
    pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, prompts, passes = [], [], []
    encode, prefill, score = (getattr(TorchModelRunner, name) for name in ("encode_images", "prefill", "score"))
    monkeypatch.setattr(
        TorchModelRunner, "encode_images", lambda self, *given: looks.append(len(given[1])) or encode(self, *given)
    )
    monkeypatch.setattr(
        TorchModelRunner, "prefill", lambda self, chunks: prompts.append(len(chunks)) or prefill(self, chunks)
    )
    monkeypatch.setattr(TorchModelRunner, "score", lambda self, *given: passes.append(1) or score(self, *given))

    qwenvl_kit.unload()  # which may have seen the picture
    found = pd.Series(pictures[:1]).vl.classify([f"label {n}" for n in range(100)], model_name="demo", **EXACT)

    assert (sum(looks), sum(prompts)) == (1, 1)
    assert len(passes) <= 2
    assert found["label"].iloc[0].startswith("label ")


def test_the_demo_model_knows_what_is_there_and_says_how_sure_it_is() -> None:
    from qwenvl_kit.demo import draw, sample_scenes
    from qwenvl_kit.demo.scenes import questions

    rng = np.random.default_rng(0)
    asked = [
        (draw(scene), one.prompt, one.answer)
        for scene in sample_scenes(30, seed=5)
        for one in questions(scene, rng, "en")
        if one.kind == "is_there"
    ]
    frame = pd.DataFrame(asked, columns=["image", "question", "answer"])
    found = frame.vl.ask("image", "question", options=["Yes.", "No."], model_name="demo", **EXACT)

    assert (found["label"] == frame["answer"]).mean() > 0.9
    assert found["probability"].between(0.5, 1).all()
    same = frame.vl.classify("image", ["Yes.", "No."], prompts="question", all=True, model_name="demo", **EXACT)
    pd.testing.assert_frame_equal(same[["label", "probability"]], found)
    np.testing.assert_allclose(same[["Yes.", "No."]].sum(axis=1), 1)


def test_labels_per_row_missing_ones_and_missing_images(pictures: list[Image.Image]) -> None:
    frame = pd.DataFrame(
        {"image": [*pictures[:3], None], "tags": [["Yes.", "No."], None, ["one", "two", "three"], ["Yes.", "No."]]},
        index=list("abcd"),
    )
    with pytest.warns(RowErrorWarning, match="The row has no labels"):
        found = frame.vl.classify("image", "tags", all=True, model_name="demo", **EXACT)

    assert found.index.tolist() == list("abcd")
    assert found["label"].isna().tolist() == [False, True, False, True]
    assert found.columns.tolist() == ["label", "probability", "Yes.", "No.", "one", "two", "three"]
    assert found.loc["a", ["one", "two"]].isna().all()
    assert found.loc["c", "label"] in ("one", "two", "three")


def test_a_blank_prior_and_length_change_the_comparison_as_they_say(pictures: list[Image.Image]) -> None:
    asked: dict[str, Any] = {"prompt": "Is there a circle?", "model_name": "demo", **EXACT}
    cells, labels = pd.Series(pictures[:3]), ["Yes.", "No, there is none."]
    plain = cells.vl.classify(labels, all=True, **asked)
    frame = qwenvl_kit.last_run()
    assert frame is not None
    scores, tokens = np.array(frame["label_logprobs"].tolist()), np.array(frame["label_tokens"].tolist())
    sizes = list(zip(frame["height"], frame["width"], strict=True))
    by_length = cells.vl.classify(labels, all=True, normalize="length", **asked)
    against_blank = cells.vl.classify(labels, all=True, prior="blank", **asked)
    blanks = pd.Series([np.full((height, width, 3), 127, np.uint8) for height, width in sizes])
    blanks.vl.classify(labels, **asked)
    blank_frame = qwenvl_kit.last_run()
    assert blank_frame is not None
    blank = np.array(blank_frame["label_logprobs"].tolist())

    def shares(some: Any) -> Any:
        powers = np.exp(some)
        return powers / powers.sum(axis=1, keepdims=True)

    np.testing.assert_allclose(plain[labels], shares(scores), atol=1e-6)
    np.testing.assert_allclose(by_length[labels], shares(scores / tokens), atol=1e-6)
    np.testing.assert_allclose(against_blank[labels], shares(scores - blank), atol=1e-6)
    assert against_blank.attrs["classify"] == {"normalize": "sum", "prior": "blank"}


def test_scores_are_kept_in_a_store_for_the_same_labels_only(pictures: list[Image.Image], tmp_path: Path) -> None:
    asked: dict[str, Any] = {"prompt": PROMPT, "model_name": "demo", "store": str(tmp_path / "kept.db"), **EXACT}
    cells = pd.Series(pictures[:2])
    first = cells.vl.classify(["Yes.", "No."], all=True, **asked)
    again = cells.vl.classify(["Yes.", "No."], all=True, **asked)
    assert qwenvl_kit.last_run()["cached"].all()  # type: ignore[index]
    pd.testing.assert_frame_equal(first, again)

    cells.vl.classify(["Yes.", "Never."], **asked)
    assert not qwenvl_kit.last_run()["cached"].any()  # type: ignore[index]
    answers = cells.vl.ask(PROMPT, **{name: value for name, value in asked.items() if name != "prompt"})
    assert not set(answers) & {"Yes.", "No."}


def test_labels_with_equal_tokens_are_that_rows_error(pictures: list[Image.Image]) -> None:
    labels = [["caf\u00e9", "cafe\u0301"], ["one", "two"]]  # composed and decomposed
    with pytest.warns(RowErrorWarning, match=r"has the tokens of 'caf.*Leave it out"):
        found = pd.Series(pictures[:2]).vl.classify(labels, model_name="demo", **EXACT)
    assert found["label"].isna().tolist() == [True, False]


def test_a_label_beyond_the_context_is_that_rows_error(pictures: list[Image.Image]) -> None:
    labels = [["no", "word " * 40_000], ["one", "two"]]
    with pytest.warns(RowErrorWarning, match=r"has \d+ tokens and the prompt \d+; the model's context is"):
        found = pd.Series(pictures[:2]).vl.classify(labels, prompt=PROMPT, model_name="demo", **EXACT)
    assert found["label"].isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([], {}, "Pass at least two"),
        (["yes"], {}, "Pass at least two"),
        (["yes", "yes"], {}, "'yes' twice"),
        (["yes", " "], {}, "contain ' '"),
        (["yes", 3], {}, "entries for 1 rows"),
        ([["yes", 3]], {}, "labels of row 0 contain 3"),
        ([["a", "b"], ["a", "b"]], {}, "2 entries for 1 rows"),
        (3, {}, "labels must be a list of texts"),
        ("yes", {}, "labels must be a list of texts"),
        (["label", "other"], {"all": True}, "also a column of the result"),
        (["yes", "no"], {"normalize": "max"}, "normalize must be 'sum' or 'length'"),
        (["yes", "no"], {"prior": "grey"}, "prior must be 'blank' or None"),
        (["yes", "no"], {"do_sample": True}, "do_sample=True changes generated answers only"),
        (["yes", "no"], {"num_beams": 4}, "num_beams=4 changes generated answers only"),
        (["yes", "no"], {"backend": "echo"}, "no model to score labels"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_loads(
    labels: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pd.Series(["missing.png"]).vl.classify(labels, model_name="nowhere", **options)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=6), min_size=1, max_size=12))
def test_a_trie_reads_every_token_after_exactly_those_before_it(continuations: list[list[int]]) -> None:
    trie = TokenTrie(continuations)
    paths = {tuple(ids[:n]) for ids in continuations for n in range(1, len(ids))}

    assert len(trie.tokens) == len(paths)
    seen = [trie.tokens[row].tolist() for row in trie.sees]
    assert {tuple(one) for one in seen} == paths
    assert trie.depths.tolist() == [len(one) - 1 for one in seen]
    wanted = [(tuple(ids[:n]), ids[n]) for ids in continuations for n in range(1, len(ids))]
    found = [
        (tuple(seen[node]), target) for node, target in zip(trie.nodes.tolist(), trie.targets.tolist(), strict=True)
    ]
    assert found == wanted
    assert [len(one) for one in trie.split(trie.targets)] == [len(ids) - 1 for ids in continuations]
