"""Constrained answers are valid or cut, whatever the logits; free rows beside them stay as they are."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.checkpoints import make_published
from helpers.fake_model_runner import resolved_of
from helpers.schemas import SCHEMAS
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLParserLimits
from PIL import Image
from transformers import AutoTokenizer

from qwenvl_kit import Config, ConfigError, MissingExtra
from qwenvl_kit.checkpoints.checkpoint import read
from qwenvl_kit.demo import draw, model_dir, sample_scenes
from qwenvl_kit.executors import execute
from qwenvl_kit.executors.daft_worker import Worker
from qwenvl_kit.executors.serialization import WorkItem
from qwenvl_kit.inference.constraints import Grammars, check_constraint, grammars_of
from qwenvl_kit.inference.sampler import Sampler
from qwenvl_kit.inference.sequence import Sequence
from qwenvl_kit.types import Constraint, LoadedImage, Prompt, Request, Result

COUNT = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "colours": {"type": "array", "items": {"enum": ["red", "blau", "绿"]}, "maxItems": 3},
        "note": {"type": "string", "maxLength": 5},
    },
    "required": ["count", "colours", "note"],
    "additionalProperties": False,
}
JSON = Constraint("json", json.dumps(COUNT))
CONSTRAINTS = (JSON, Constraint("regex", "[a-c]{2,3}"), Constraint("choices", '["yes", "no"]'), None)
EXACT: dict[str, Any] = {"dtype": "float32", "use_flash_attention_2": False, "progress": False}


@functools.cache
def demo_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(model_dir())


@functools.cache
def grammars(n_missing: int = 0) -> Grammars:
    """Over the demo's tokenizer, for a model that has `n_missing` tokens fewer than it."""
    size = len(demo_tokenizer()) - n_missing
    return Grammars(demo_tokenizer(), vocab_size=size, eos_ids=eos_ids(), name="demo")


def eos_ids() -> tuple[int, ...]:
    return read(model_dir()).eos_token_ids


def sequence(constraint: Constraint | None, *, row: int = 0, n_most: int = 60) -> Sequence:
    image = LoadedImage(np.zeros((56, 56, 3), np.uint8), "", (56, 56))
    request = Request(row, (image,), "", None, row, n_most, constraint=constraint)
    return Sequence(request, [1, 2, 2, 2, 2, 3], torch.tensor([[1, 4, 4]]), image_id=2, merge=2)


def answer(sequences: list[Sequence], *, seed: int, vocab_size: int, **options: Any) -> list[str]:
    """Let random logits answer; each row's do not depend on the others."""
    draws = {id(one): torch.Generator().manual_seed(seed + one.request.row) for one in sequences}
    sampler = Sampler(resolved_of(**options), eos_ids(), grammars)
    running = sequences
    while running := [one for one in running if not one.is_finished]:
        logits = torch.stack([torch.randn(vocab_size, generator=draws[id(one)]) for one in running])
        for one, token in zip(running, sampler.sample(logits * 4, running).ids, strict=True):
            one.append_token(token, eos_ids(), stop_repetition=False)
    return [demo_tokenizer().decode(one.output_ids, skip_special_tokens=True) for one in sequences]


def run(model: str | Path, cells: list[Any], prompts: list[Prompt], **options: Any) -> list[Result]:
    config = Config(**{"model_name": str(model), "max_caption_length": 60, **EXACT, **options})
    done = execute(cells, prompts, config)
    assert done.failure is None
    return done.results


def check(result: Result, constraint: Constraint | None) -> None:
    assert result.status == "ok", result.error
    if result.finish_reason == "stop" and constraint == JSON:
        jsonschema.validate(json.loads(result.text or ""), COUNT)
    elif result.finish_reason == "stop" and constraint is not None:
        assert result.text is not None
        assert result.text in ("yes", "no") if constraint.kind == "choices" else set(result.text) <= set("abc")


@settings(max_examples=60)
@given(schemas=st.lists(SCHEMAS, min_size=1, max_size=4), seed=st.integers(0, 999), sampled=st.booleans())
def test_answers_of_random_logits_are_valid_or_cut_for_any_schema(
    schemas: list[dict[str, Any]], seed: int, sampled: bool
) -> None:
    sequences = [sequence(Constraint("json", json.dumps(one)), row=at) for at, one in enumerate(schemas)]
    options: dict[str, Any] = {"do_sample": True, "top_k": 3} if sampled else {"repetition_penalty": 1.5}

    texts = answer(sequences, seed=seed, vocab_size=1500, **options)

    for one, text, schema in zip(sequences, texts, schemas, strict=True):
        assert one.error is None
        if one.finish_reason == "stop":
            jsonschema.validate(json.loads(text), schema)


def test_a_row_is_constrained_alike_alone_and_beside_others() -> None:
    rows = [(at, CONSTRAINTS[at % 4]) for at in range(12)]
    together = answer([sequence(one, row=at) for at, one in rows], seed=3, vocab_size=1500)

    assert together == [answer([sequence(one, row=at)], seed=3, vocab_size=1500)[0] for at, one in rows]


def test_free_rows_beside_constrained_ones_keep_their_logits() -> None:
    logits, free = torch.randn(3, 1500), sequence(None)
    before = logits.clone()

    Sampler(resolved_of(), eos_ids(), grammars).choose(logits, [sequence(JSON), free, sequence(JSON)])

    assert torch.equal(logits[1], before[1])
    assert logits[0].isneginf().any()


@pytest.mark.parametrize("text", ["\uf900", "e\u0301", "\u212b", "\u2126x"], ids=ascii)
def test_texts_that_a_tokenizer_would_normalize_are_said_as_the_schema_has_them(text: str) -> None:
    one = sequence(Constraint("json", json.dumps({"enum": [text]})))

    (said,) = answer([one], seed=0, vocab_size=1500)

    assert (one.error, json.loads(said)) == (None, text)


def test_an_answer_that_can_only_end_needs_no_end_token() -> None:
    one = sequence(Constraint("regex", "[0-9]"), n_most=1)
    answer([one], seed=0, vocab_size=1500)

    assert (one.finish_reason, len(one.output_ids)) == ("stop", 1)


def test_a_preempted_answer_goes_on_from_its_tokens() -> None:
    whole, cut = sequence(JSON), sequence(JSON)
    answer([whole], seed=5, vocab_size=1500)
    cut.output_ids = list(whole.output_ids[:4])
    sampler, draws = Sampler(resolved_of(), eos_ids(), grammars), torch.Generator().manual_seed(5)
    rows = [torch.randn(1, 1500, generator=draws) * 4 for _ in whole.output_ids]

    assert sampler.sample(rows[4], [cut]).ids == [whole.output_ids[4]]


@pytest.mark.parametrize("n_missing", [0, 30, 500])
def test_tokens_that_the_model_lacks_are_never_needed_silently(n_missing: int) -> None:
    size = len(demo_tokenizer()) - n_missing
    one = sequence(Constraint("regex", "[a-z ]{3,20}"))
    sampler = Sampler(resolved_of(), (), lambda: grammars(n_missing))
    for _ in range(10):
        (token,) = sampler.sample(torch.randn(1, size), [one]).ids
        one.append_token(token, (), stop_repetition=False)
        if one.is_finished:
            break

    assert one.error is not None or all(token < size for token in one.output_ids)
    assert one.error is None or "no token of the model" in str(one.error)


def test_where_the_checkpoints_own_processors_forbid_all_that_is_allowed_the_constraint_wins() -> None:
    (letter,) = demo_tokenizer()("a", add_special_tokens=False)["input_ids"]
    resolved = dataclasses.replace(resolved_of(), generation=(("suppress_tokens", [letter]),))

    sampled = Sampler(resolved, eos_ids(), grammars).sample(torch.randn(1, 1500), [sequence(Constraint("regex", "a"))])

    assert sampled.ids == [letter]


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (Constraint("json", '{"type": "strin"}'), "Invalid type: strin"),
        (Constraint("json", '{"not": {"type": "string"}}'), "Unimplemented"),
        (Constraint("regex", "(?=a)b"), "look-around"),
        (Constraint("regex", "(a"), "regex"),
    ],
)
def test_what_llguidance_refuses_is_an_error_at_once(constraint: Constraint, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_constraint(constraint)


def test_a_grammar_that_grows_beyond_limits_is_that_rows_error() -> None:
    small = Grammars(demo_tokenizer(), vocab_size=1500, eos_ids=eos_ids(), name="demo")
    small._limits = LLParserLimits(max_lexer_states=50, verbose_errors=False)
    broken, good, free = (
        sequence(Constraint("regex", "(.*a.{12}){10}")),
        sequence(Constraint("regex", "b{90}")),
        sequence(None),
    )
    sampler, draws = Sampler(resolved_of(), eos_ids(), lambda: small), torch.Generator().manual_seed(0)
    for _ in range(50):
        running = [one for one in (broken, good, free) if not one.is_finished]
        for one, token in zip(
            running, sampler.sample(torch.randn(len(running), 1500, generator=draws), running).ids, strict=True
        ):
            one.append_token(token, (), stop_repetition=False)

    assert good.error is None
    assert free.error is None
    assert "cannot follow its constraint: lexer error: too many states" in str(broken.error)


def test_a_tokenizer_that_llguidance_cannot_read_is_named() -> None:
    class Slow:
        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    with pytest.raises(ConfigError, match="odd: llguidance cannot read its tokenizer"):
        Grammars(Slow(), vocab_size=10, eos_ids=(1,), name="odd")


def test_a_missing_llguidance_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(MissingExtra, match=r"pip install 'qwenvl_kit\[schema\]'"):
        check_constraint(JSON)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_free_answers_stay_the_same_beside_constrained_ones(
    pictures: list[Image.Image], published: Path, batch_size: int
) -> None:
    cells = [picture for picture in pictures[:6] for _ in CONSTRAINTS]
    prompts = [Prompt("What?", constraint=one) for _ in pictures[:6] for one in CONSTRAINTS]
    alone = run(published, cells[3::4], prompts[3::4])

    results = run(published, cells, prompts, batch_size=batch_size)

    assert [one.text for one in results[3::4]] == [one.text for one in alone]
    for result, prompt in zip(results, prompts, strict=True):
        check(result, prompt.constraint)


@pytest.mark.parametrize("vocab_size", [1342, 1343, 1503])
def test_a_model_may_have_more_tokens_than_its_tokenizer(
    tmp_path: Path, pictures: list[Image.Image], vocab_size: int
) -> None:
    folder = make_published(tmp_path / "model", vocab_size=vocab_size)

    results = run(folder, list(pictures[:4]), [Prompt("What?", constraint=one) for one in CONSTRAINTS])

    for result, constraint in zip(results, CONSTRAINTS, strict=True):
        check(result, constraint)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"backend": "echo"}, "cannot be constrained"), ({"num_beams": 3}, "Beam search does not support constrained")],
)
def test_what_cannot_be_constrained_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        execute([None], [Prompt("What?", constraint=JSON)], Config(model_name="demo", progress=False, **options))


def test_grammars_are_made_once_for_a_checkpoint() -> None:
    assert grammars_of(read(model_dir())) is grammars_of(read(model_dir()))


def test_constraints_travel_to_workers() -> None:
    prompts = tuple(Prompt("What?", constraint=one) for one in CONSTRAINTS)
    (picture,) = (Image.fromarray(draw(scene)) for scene in sample_scenes(1, seed=2))
    item = WorkItem(picture, prompts).pack()

    (there,) = Worker(Config(model_name="demo", max_caption_length=60, **EXACT)).answer([item])

    assert WorkItem.unpack(item).prompts == prompts
    here = run("demo", [picture] * len(prompts), list(prompts))
    assert [one["text"] for one in there["results"]] == [one.text for one in here]
    assert there["failure"] is None


def test_constrained_answers_are_stored_and_found_again(tmp_path: Path, pictures: list[Image.Image]) -> None:
    cells, prompts = list(pictures[:4]), [Prompt("What?", constraint=one) for one in CONSTRAINTS]
    first = run("demo", cells, prompts, store=str(tmp_path / "s.db"))
    again = run("demo", cells, prompts, store=str(tmp_path / "s.db"))

    assert [one.text for one in again] == [one.text for one in first]
    assert all(one.cached for one in again)
    assert not any(one.cached for one in run("demo", cells, [Prompt("What?")] * 4, store=str(tmp_path / "s.db"))[:3])
    assert pd.Series([one.text for one in first]).notna().all()
