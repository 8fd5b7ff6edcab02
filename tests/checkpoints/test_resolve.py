"""Options as they run, and the warnings and records where they differ from the call."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import Any

import pytest

from qwenvl_kit import Config, ConfigError, OptionWarning
from qwenvl_kit.checkpoints.capabilities import Capabilities, Device, FixedOption
from qwenvl_kit.checkpoints.resolve import (
    CheckpointDefaults,
    ResolvedConfig,
    answer_fields,
    asked_record,
    resolve,
    warn_ignored_options,
)
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.types import PatchGeometry

CPU = Device("cpu")
GPU = Device("cuda:0", is_cuda=True, flash_attention="2.8.0")
GPU_WITHOUT_FLASH = Device("cuda:0", is_cuda=True)
CHECKPOINT = CheckpointDefaults(
    "m", "f", PatchGeometry(min_pixels=3136, max_pixels=12_845_056), repetition_penalty=1.05
)


def resolved(device: Device = CPU, **options: Any) -> ResolvedConfig:
    return resolve(Config(**options), device, CHECKPOINT)


@pytest.mark.parametrize(
    ("device", "dtype", "attention", "reason"),
    [
        (GPU, "bfloat16", "flash_attention_2", None),
        (GPU, "float16", "flash_attention_2", None),
        (GPU, "float32", "sdpa", "float32"),
        (GPU_WITHOUT_FLASH, "bfloat16", "sdpa", r"qwenvl_kit\[flash\]"),
        (CPU, "bfloat16", "sdpa", "not on CUDA"),
    ],
)
def test_flash_attention_runs_where_it_can_and_sdpa_with_a_reason_elsewhere(
    device: Device, dtype: Any, attention: str, reason: str | None
) -> None:
    planned = resolved(device, dtype=dtype)

    assert planned.attention == attention
    if reason is None:
        assert planned.notes == ()
    else:
        with pytest.warns(OptionWarning, match=reason):
            warn_ignored_options(Config(use_flash_attention_2=True), planned)


EAGER = FixedOption(option="torch_compile", value=False, reason="no compiler here", instead="running in eager mode")


@pytest.mark.parametrize(
    ("options", "device", "capabilities", "reason"),
    [
        ({}, CPU, Capabilities(fixed=(EAGER,)), "no compiler here"),
        ({"device_map": "auto"}, Device("auto", is_cuda=True, spans=True), Capabilities(), "device_map"),
        ({"num_beams": 3}, CPU, Capabilities(), "num_beams=3"),
    ],
)
def test_steps_are_compiled_where_they_can_be_and_the_reason_is_given_elsewhere(
    options: dict[str, Any], device: Device, capabilities: Capabilities, reason: str
) -> None:
    assert resolved(torch_compile=True).torch_compile
    config = Config(torch_compile=True, **options)

    planned = resolve(config, device, CHECKPOINT, capabilities)

    assert not planned.torch_compile
    with pytest.warns(OptionWarning, match=rf"torch_compile=True is ignored \({reason}"):
        warn_ignored_options(config, planned)


def test_compiled_steps_attend_through_sdpa() -> None:
    planned = resolved(GPU, torch_compile=True)

    assert (planned.attention, planned.torch_compile) == ("sdpa", True)
    assert "torch_compile=True" in planned.record()["notes"][0]


def test_a_default_that_cannot_be_honoured_goes_on_record_without_noise() -> None:
    planned = resolved()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_ignored_options(Config(), planned)
        warn_ignored_options(Config(strict=True), planned)
    assert "use_flash_attention_2" in planned.record()["notes"][0]


def test_what_the_caller_turned_off_is_no_difference() -> None:
    assert resolved(use_flash_attention_2=False).notes == ()


def test_strict_raises_for_what_the_caller_named() -> None:
    with pytest.raises(ConfigError, match="strict=True"):
        warn_ignored_options(Config(use_flash_attention_2=True, strict=True), resolved())


@pytest.mark.parametrize(
    ("options", "n_rows"),
    [
        ({}, "auto"),
        ({"batch_size": 4}, 4),
        ({"batch_size": 4, "rows_in_flight": "auto"}, "auto"),
        ({"batch_size": 4, "rows_in_flight": 64}, 64),
        ({"rows_in_flight": 2}, 2),
        ({"rows_in_flight": None}, "auto"),
        ({"num_beams": 2}, 4),
    ],
)
def test_rows_in_flight_are_those_asked_for_else_the_batch_that_was_else_as_many_as_fit(
    options: dict[str, Any], n_rows: int | str
) -> None:
    assert resolved(**options).rows_in_flight == n_rows
    assert resolved(**options).record()["rows_in_flight"] == n_rows
    assert "rows_in_flight" not in [note.option for note in resolved(**options).notes]


def test_beams_run_in_batches_and_say_so_to_those_who_asked_for_more_rows() -> None:
    planned = resolved(num_beams=2, rows_in_flight=64)

    assert planned.rows_in_flight == 4
    with pytest.warns(OptionWarning, match="rows_in_flight=64 is ignored .*num_beams=2.* batch_size=4"):
        warn_ignored_options(Config(num_beams=2, rows_in_flight=64), planned)


def test_sampling_passes_every_value_and_greedy_none() -> None:
    sampling = resolved(do_sample=True, temperature=0.5, seed=3)
    greedy = resolved(seed=3)

    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.5, 50, 1.0, 3)
    assert (greedy.temperature, greedy.top_k, greedy.top_p, greedy.seed) == (None, None, None, None)


def test_the_checkpoints_penalty_runs_unless_another_is_asked() -> None:
    assert resolved().repetition_penalty == 1.05
    assert resolved(repetition_penalty=1.0).repetition_penalty == 1.0


ONE_DTYPE = FixedOption(option="dtype", value="float32", reason="the model is float32", instead="using float32")


def test_a_backend_of_one_dtype_runs_that_dtype_and_warns() -> None:
    planned = resolve(Config(dtype="bfloat16"), CPU, CHECKPOINT, Capabilities(fixed=(ONE_DTYPE,)))

    assert planned.dtype == "float32"
    with pytest.warns(OptionWarning, match="dtype='bfloat16'"):
        warn_ignored_options(Config(dtype="bfloat16", use_flash_attention_2=False), planned)


def test_a_value_that_a_backend_refuses_is_an_error_for_the_caller_and_a_note_for_a_default() -> None:
    capabilities = Capabilities(fixed=(replace(ONE_DTYPE, remedy="Leave dtype out."),))

    with pytest.raises(ConfigError, match=r"the model is float32 \(dtype='bfloat16'\)\. Leave dtype out\."):
        resolve(Config(dtype="bfloat16"), CPU, CHECKPOINT, capabilities)
    planned = resolve(Config(), CPU, CHECKPOINT, capabilities)
    assert planned.dtype == "float32"
    assert any("dtype='bfloat16' is ignored" in note for note in planned.record()["notes"])


def test_pixel_limits_are_the_checkpoints_unless_asked_for() -> None:
    assert (resolved().min_pixels, resolved().max_pixels) == (3136, 12_845_056)
    assert resolved(max_pixels=50_000).max_pixels == 50_000


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": 0.7}, ["temperature"]),
        ({"temperature": 0.7, "top_k": None, "top_p": 0.5}, ["temperature", "top_k", "top_p"]),
        ({"temperature": 1, "top_k": 50, "top_p": 1.0}, []),
        ({"temperature": 0.7, "do_sample": True}, []),
    ],
    ids=str,
)
def test_sampling_values_that_greedy_search_drops_are_named_in_one_warning(
    options: dict[str, Any], named: list[str]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_ignored_options(Config(**options), resolved(**options))

    assert len(caught) == bool(named)
    assert all(f"{name}=" in str(warning.message) for warning in caught for name in named)


@pytest.mark.parametrize("top_k", [0, None])
def test_no_top_k_is_no_filter(top_k: int | None) -> None:
    assert resolved(do_sample=True, top_k=top_k).top_k is None


def test_what_was_asked_is_recorded_as_plain_json() -> None:
    record = asked_record(Config(device_map={"": "cpu"}, max_memory={0: "1GiB"}, batch_size=2))

    assert record == {"batch_size": 2, "device_map": {"": "cpu"}, "max_memory": {"0": "1GiB"}}


def test_only_answer_fields_decide_an_answer() -> None:
    assert answer_fields(resolved(batch_size=1)) == answer_fields(resolved(batch_size=8))
    changes = ({"max_caption_length": 9}, {"image_decode": "draft"}, {"resized_height": 9}, {"repetition_penalty": 2.0})
    for change in changes:
        assert answer_fields(resolved(**change)) != answer_fields(resolved())
    assert answer_fields(resolved(temperature=0.3)) == answer_fields(resolved()), "greedy search has no temperature"


def test_the_record_is_plain_json() -> None:
    record = resolved(do_sample=True, temperature=0.3).record()

    assert json.loads(json.dumps(record)) == record


def test_the_family_of_the_model_is_on_record() -> None:
    """It decides how answers name places in an image."""
    demo = make_spec(Config(model_name="demo", dtype="float32", use_flash_attention_2=False)).resolved

    assert demo.record()["family"] == resolved().record()["family"] == "qwen2_5_vl"


def test_advice_about_the_device_is_on_record_and_warned_of_once() -> None:
    planned = resolved(Device("cuda:0", is_cuda=True, advice=("This GPU is slow.",)))

    with pytest.warns(OptionWarning, match=r"This GPU is slow\."):
        warn_ignored_options(Config(), planned)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_ignored_options(Config(), planned)
    assert planned.record()["notes"][-1] == "This GPU is slow."
    assert "advice" not in planned.record()
