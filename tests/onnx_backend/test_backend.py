"""The ONNX backend answers as torch does, alone and in any batch, and refuses unsupported options."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

import qwenvl_kit
from qwenvl_kit.errors import CheckpointError, ConfigError, MissingExtra, OptionWarning
from qwenvl_kit.export import OnnxQwenVL, to_onnx
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.inference.model_runner import PrefillChunk
from qwenvl_kit.onnx_backend.int8_support import products_are_exact
from qwenvl_kit.onnx_backend.manifest import read_export
from qwenvl_kit.onnx_backend.model_runner import OnnxModelRunner

TORCH = {"model_name": "demo", "dtype": "float32", "use_flash_attention_2": False, "progress": False}


@pytest.fixture(scope="session")
def exported_published(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with the published layout and its repetition penalty, exported."""
    return to_onnx(published, tmp_path_factory.mktemp("exports") / "published", verify_rows=0).path


def _onnx(folder: Path, **options: object) -> dict[str, object]:
    return {"backend": "onnx", "model_name": str(folder), "progress": False, "use_flash_attention_2": False, **options}


@pytest.mark.parametrize("batch_size", [1, 5])
def test_constrained_answers_are_those_of_torch(exported: Path, pictures: list[Image.Image], batch_size: int) -> None:
    cells = pd.Series(pictures[:5], dtype=object)
    schema = {
        "count": {"enum": [1, 2, 3]},
        "colours": {"type": "array", "items": {"enum": ["red", "蓝"]}, "maxItems": 2},
    }
    wanted = cells.vl.extract(schema, **TORCH)

    found = cells.vl.extract(schema, **_onnx(exported, batch_size=batch_size))

    pd.testing.assert_frame_equal(found, wanted)
    assert found["status"].tolist() == ["ok"] * 5


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_answers_are_those_of_torch_in_any_batch(exported: Path, pictures: list[Image.Image], batch_size: int) -> None:
    cells = pd.Series([*pictures, *pictures[:4]], dtype=object)
    wanted = cells.vl.run(**TORCH)
    found = cells.vl.run(**_onnx(exported, batch_size=batch_size))

    for column in ("text", "finish_reason", "prompt_tokens", "new_tokens", "height", "width"):
        assert found[column].tolist() == wanted[column].tolist(), column


def test_an_answer_that_is_begun_goes_on_as_on_torch(exported: Path, pictures: list[Image.Image]) -> None:
    cells = pd.Series(pictures[:4], dtype=object)
    wanted = cells.vl.caption(**TORCH, start_with="There are")
    found = cells.vl.caption(**_onnx(exported, start_with="There are"))

    assert found.tolist() == wanted.tolist()
    assert wanted.str.startswith("There are").all()


def test_log_probabilities_are_those_of_torch(exported: Path, pictures: list[Image.Image]) -> None:
    cells = pd.Series(pictures[:4], dtype=object)
    wanted = cells.vl.run(**TORCH, logprobs=1)
    found = cells.vl.run(**_onnx(exported, logprobs=1))

    assert (found["logprob_sum"] - wanted["logprob_sum"]).abs().max() < 1e-3
    assert (found["logprob_mean"] - wanted["logprob_mean"]).abs().max() < 1e-4


def test_more_rows_generate_by_default_and_as_many_as_memory_allows(
    exported: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = pd.Series(pictures, dtype=object)
    alone = cells.vl.caption(**_onnx(exported, rows_in_flight=1)).tolist()
    runners: list[OnnxModelRunner] = []
    resize_cache = OnnxModelRunner.resize_cache

    def resized(runner: OnnxModelRunner, n_slots: int, capacity: int) -> None:
        runners[:] = [runner]
        resize_cache(runner, n_slots, capacity)

    def left() -> int:
        return limit - sum(tensor.nbytes for runner in runners for layer in runner._caches for tensor in layer)

    monkeypatch.setattr(OnnxModelRunner, "resize_cache", resized)
    monkeypatch.setattr("qwenvl_kit.inference.cache_memory.available_memory", left)
    notes: list[str] = []
    for limit in (2**30, 2 * 3 * 320 * 5120):  # noqa: B007  # `left` reads it; half is for other uses
        run = cells.vl.run(**_onnx(exported))
        assert run["text"].tolist() == alone
        notes += [note for note in run.attrs["effective"]["notes"] if "in flight" in note]

    assert notes == ["16 rows in flight (25 MiB of keys and values).", "3 rows in flight (5 MiB of keys and values)."]


def test_a_published_layout_with_its_penalty_answers_as_torch_does(
    published: Path, exported_published: Path, pictures: list[Image.Image]
) -> None:
    cells = pd.Series(pictures[:12], dtype=object)
    torch_options = {**TORCH, "model_name": str(published), "max_caption_length": 48}
    wanted = cells.vl.run(**torch_options)
    found = cells.vl.run(**_onnx(exported_published, max_caption_length=48))

    assert found["text"].tolist() == wanted["text"].tolist()
    assert found.attrs["effective"]["repetition_penalty"] == 1.05


def test_seeded_samples_do_not_depend_on_the_batch(exported: Path, pictures: list[Image.Image]) -> None:
    cells = pd.Series(pictures[:6], dtype=object)
    asked = {"do_sample": True, "temperature": 4.0, "seed": 4, "prompt": "Describe the picture."}
    together = cells.vl.caption(**_onnx(exported, **asked, batch_size=6))

    assert together.tolist() == cells[::-1].vl.caption(**_onnx(exported, **asked, batch_size=1))[::-1].tolist()
    assert together.tolist() != cells.vl.caption(**_onnx(exported, **{**asked, "seed": 5})).tolist()


@pytest.mark.parametrize("most", [1, 100])
def test_answers_do_not_depend_on_how_much_goes_in_one_pass(
    exported: Path, pictures: list[Image.Image], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = pd.Series(pictures, dtype=object)
    wanted = cells.vl.caption(**_onnx(exported, batch_size=8))
    monkeypatch.setattr("qwenvl_kit.onnx_backend.model_runner.max_prefill_tokens", lambda _: most)
    monkeypatch.setattr("qwenvl_kit.onnx_backend.vision_encoder.max_image_patches", lambda _: most)

    assert cells.vl.caption(**_onnx(exported, batch_size=8)).tolist() == wanted.tolist()


def test_rests_of_unlike_length_behind_unlike_pasts_fit_their_slots(exported: Path) -> None:
    runner = OnnxModelRunner(read_export(exported))
    ids = torch.arange(100) % 50 + 5
    whole = [PrefillChunk(slot, ids, torch.arange(100).expand(3, -1)) for slot in range(3)]
    runner.resize_cache(3, 110)
    wanted = runner.prefill(whole)

    rests = [
        PrefillChunk(slot, ids[past:], torch.arange(past, 100).expand(3, -1), past)
        for slot, past in enumerate((90, 9, 99))
    ]
    found = runner.prefill(rests)  # padded to the longest, the first would need 181 places

    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_several_pictures_and_several_questions_answer_as_torch_does(
    exported: Path, pictures: list[Image.Image]
) -> None:
    cells = pd.Series([pictures[:2], [pictures[3]], pictures[4:7]], dtype=object)
    questions = {"count": "How many objects are there?", "where": "What is in the middle?"}

    found, wanted = cells.vl.ask(questions, **_onnx(exported)), cells.vl.ask(questions, **TORCH)
    pd.testing.assert_frame_equal(found, wanted)


def test_the_record_has_what_runs(exported: Path, pictures: list[Image.Image]) -> None:
    frame = pd.Series(pictures[:1], dtype=object).vl.run(**_onnx(exported, threads=1))
    ran = frame.attrs["effective"]

    assert ran["dtype"] == "float32"
    assert ran["attention"] == "GroupQueryAttention"
    assert ran["provider"] == "CPUExecutionProvider"
    assert ran["threads"] == 1
    assert any("dtype" in note for note in ran["notes"]), "the default asked for bfloat16"


def test_a_quantised_export_is_recorded_and_has_keys_of_its_own(
    exported: Path, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    small = to_onnx("demo", tmp_path / "int8", quantize="int8", verify_rows=0).path
    cells = pd.Series(pictures[:2], dtype=object)
    ran = [cells.vl.run(**_onnx(folder)).attrs["effective"] for folder in (exported, small)]

    assert [one["quantization"] for one in ran] == [None, "int8"]
    assert ran[0]["fingerprint"] != ran[1]["fingerprint"]


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_onnx("demo", tmp_path_factory.mktemp("integers") / "w8a8", quantize="w8a8", verify_rows=0).path


def test_integer_activations_of_a_row_do_not_depend_on_its_neighbours(
    integers: Path, exported: Path, pictures: list[Image.Image]
) -> None:
    if not products_are_exact():
        pytest.skip("this CPU saturates int8 products; the export is refused here, which the next test shows")
    cells = pd.Series(pictures, dtype=object)
    alone, together = (cells.vl.caption(**_onnx(integers, batch_size=size)) for size in (1, 8))

    assert together.tolist() == alone.tolist()
    wanted = cells.vl.caption(**_onnx(exported))
    assert (together == wanted).mean() > 0.7, "of pictures that training has not shown"


def test_integers_that_would_saturate_are_refused(integers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenvl_kit.onnx_backend.int8_support.products_are_exact", lambda: False)
    with pytest.raises(ConfigError, match="quantize='int8'"):
        pd.Series([Image.new("RGB", (56, 56))]).vl.caption(**_onnx(integers))
    with pytest.raises(ConfigError, match="quantize='int8'"):
        OnnxQwenVL.from_pretrained(integers)


def test_a_store_keeps_the_answers_of_an_export(exported: Path, tmp_path: Path, pictures: list[Image.Image]) -> None:
    cells = pd.Series(pictures[:3], dtype=object)
    options = _onnx(exported, store=str(tmp_path / "answers.db"))
    first, again = cells.vl.run(**options), cells.vl.run(**options)

    assert not first["cached"].any()
    assert again["cached"].all()
    assert again["text"].tolist() == first["text"].tolist()


def test_a_run_stops_between_two_tokens(exported: Path, pictures: list[Image.Image]) -> None:
    control = Control()
    pieces: list[str] = []

    def stop(row: int, text: str) -> None:
        pieces.append(text)
        control.cancel.set()

    control = Control(cancel=control.cancel, on_token=stop)
    frame = pd.Series(pictures[:4], dtype=object).vl.run(**_onnx(exported), control=control)

    assert pieces
    assert set(frame["status"]) == {"cancelled"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "num_beams=2.*backend='torch'"),
        ({"device_map": "auto"}, "device_map.*backend='torch'"),
        ({"dtype": "bfloat16"}, "float32.*dtype='bfloat16'"),
        ({"rank": 0}, "rank=0.*CPUExecutionProvider"),
        ({"use_flash_attention_2": True, "strict": True}, "use_flash_attention_2"),
    ],
)
def test_unsupported_options_are_refused(exported: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pd.Series([None], dtype=object).vl.caption(**_onnx(exported, **options))


def test_flash_attention_that_was_named_is_warned_of_once(exported: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pd.Series([None], dtype=object).vl.caption(**_onnx(exported, use_flash_attention_2=True))

    assert [one.category for one in caught] == [OptionWarning]
    assert "using GroupQueryAttention" in str(caught[0].message)


def test_a_checkpoint_is_no_export_and_an_export_no_checkpoint(exported: Path) -> None:
    with pytest.raises(CheckpointError, match="qwenvl-kit export demo"):
        pd.Series([None], dtype=object).vl.caption(backend="onnx", model_name="demo", progress=False)
    with pytest.raises(CheckpointError, match="backend='onnx'"):
        pd.Series([None], dtype=object).vl.caption(**{**TORCH, "model_name": str(exported)})


def test_without_the_extra_the_error_has_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else there(name, *rest)
    )
    with pytest.raises(MissingExtra, match=r"pip install 'qwenvl_kit\[onnx\]'"):
        pd.Series([None], dtype=object).vl.caption(backend="onnx", model_name="anything", progress=False)
    with pytest.raises(MissingExtra, match=r"qwenvl_kit\[onnx\]"):
        _ = qwenvl_kit.export.to_onnx
