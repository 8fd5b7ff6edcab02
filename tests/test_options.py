"""Names and defaults that the operator's users know, and values that travel."""

from __future__ import annotations

import pickle
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit import Config, ConfigError, UnknownOption
from qwenvl_kit.options import FORMER_NAMES, ImageOptions, Options, names_of, option_docs, option_names
from qwenvl_kit.options.groups import GROUPS
from qwenvl_kit.options.table import FOREIGN_NAMES

OPERATOR = {
    "model_path": "/opt/las/models",
    "model_name": "Qwen/Qwen2.5-VL-7B-Instruct",
    "prompt": "请给出这张图片的详细描述。",
    "batch_size": 4,
    "dtype": "bfloat16",
    "use_flash_attention_2": True,
    "max_caption_length": 256,
    "resized_height": None,
    "resized_width": None,
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "rank": None,
}


def test_the_operators_parameters_keep_their_names_and_defaults() -> None:
    config = Config()

    assert {name: getattr(config, name) for name in OPERATOR} == OPERATOR
    assert config.image_src_type == "auto"


def test_type_checkers_see_the_options_that_there_are() -> None:
    hints = {option.name: option.hint for option in option_docs()}

    assert get_type_hints(Options) == hints


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"do_sample": True, "temperature": 0.0}, r"temperature=0\.0 .*above 0.*do_sample=False"),
        ({"temperature": float("inf")}, r"temperature=inf .*a number"),
        ({"top_p": 0.0}, r"top_p=0\.0 .*\(0, 1\]"),
        ({"top_p": 1.5}, r"top_p=1\.5"),
        ({"top_k": -1}, r"top_k=-1 .*at least 0, or None for no limit"),
        ({"max_caption_length": 0}, r"max_caption_length=0 .*at least 1"),
        ({"max_caption_length": 2.0}, r"max_caption_length=2\.0 .*an integer"),
        ({"resized_width": -28}, r"resized_width=-28 .*in pixels, or None for the original size"),
        ({"dtype": "bf16"}, r"dtype='bf16' .*bfloat16, float16 or float32\..*'bfloat16'"),
        ({"num_beams": 0}, r"num_beams=0"),
        ({"repetition_penalty": 0}, r"repetition_penalty=0 .*above 0"),
        ({"seed": 2**63}, r"seed=9223372036854775808"),
        ({"timeout_s": 0}, r"timeout_s=0 .*above 0"),
        ({"rank": 0, "device_map": "auto"}, r"rank=0 and device_map='auto'"),
        ({"max_memory": {0: "1GiB"}}, r"max_memory=.*device_map='auto'"),
        ({"min_pixels": 2, "max_pixels": 1}, r"min_pixels=2 exceeds max_pixels=1.*Swap"),
        ({"num_beams": 2, "do_sample": True}, r"num_beams=2 and do_sample=True"),
        ({"prompt": "\ud800"}, r"prompt=.*without unpaired surrogates"),
    ],
    ids=str,
)
def test_a_broken_rule_is_told_with_field_rule_value_and_fix(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Config(**options)
    with pytest.raises(ValueError, match=told):
        Config().replace(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"top_k": 0, "do_sample": True},
        {"top_k": None},
        {"top_p": 1},
        {"seed": 0},
        {"rank": 0},
        {"min_pixels": 5, "max_pixels": 5},
        {"prompt": None, "system_prompt": ""},
    ],
    ids=str,
)
def test_values_at_the_edge_of_their_rule_are_taken(options: dict[str, Any]) -> None:
    assert {name: getattr(Config(**options), name) for name in options} == options


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("temprature", "Did you mean 'temperature'"),
        ("max_caption_lenght", "Did you mean 'max_caption_length'"),
        ("max_new_tokens", "Did you mean 'max_caption_length'"),
        ("torch_dtype", "Did you mean 'dtype'"),
        ("qqq", "The options are: model_path"),
        ("explicit", "Unknown option"),
    ],
)
def test_an_option_that_does_not_exist_is_a_type_error_that_helps(name: str, told: str) -> None:
    with pytest.raises(UnknownOption, match=told) as caught:
        Config(**{name: 1})
    assert isinstance(caught.value, TypeError)


def test_every_option_is_in_exactly_one_group_and_the_groups_hold_the_configs_values() -> None:
    config = Config(dtype="float32", seed=1, max_pixels=784, timeout_s=5, batch_size=2)
    groups = (config.model, config.sampling, config.image, config.fetch, config.run)

    assert tuple(map(type, groups)) == GROUPS
    assert sorted(name for group in GROUPS for name in names_of(group)) == sorted(set(option_names()))
    held = {name: getattr(group, name) for group in groups for name in names_of(type(group))}
    assert held == {name: getattr(config, name) for name in option_names()}


def test_a_group_alone_checks_its_values() -> None:
    with pytest.raises(ConfigError, match="min_pixels=2 exceeds"):
        ImageOptions(min_pixels=2, max_pixels=1)


@pytest.mark.parametrize(("former", "current"), FORMER_NAMES.items())
def test_a_former_name_is_accepted_with_a_warning(former: str, current: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{former} is now {current}") as caught:
        config = Config(**{former: "draft"})

    assert caught[0].filename == __file__
    assert (getattr(config, current), config.explicit) == ("draft", {current})
    with pytest.warns(DeprecationWarning, match=current):
        assert getattr(config, former) == "draft"


def test_only_what_was_passed_counts_as_asked() -> None:
    config = Config(batch_size=4, dtype="float32")

    assert config.explicit == {"batch_size", "dtype"}
    assert config.replace(seed=1).explicit == {"batch_size", "dtype", "seed"}
    assert Config(batch_size=4) == Config()


def test_a_config_travels_to_workers_whole() -> None:
    config = Config(device_map={"": "cpu"}, seed=3)

    copy = pickle.loads(pickle.dumps(config))

    assert copy == config
    assert copy.explicit == config.explicit


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Config().batch_size = 3  # type: ignore[misc]


def test_numpy_values_and_paths_are_taken_as_plain_ones(tmp_path: object) -> None:
    config = Config(batch_size=np.int64(3), temperature=np.float32(0.5), do_sample=np.True_, model_path=tmp_path)

    assert (config.batch_size, config.temperature, config.do_sample) == (3, 0.5, True)
    assert type(config.batch_size) is int
    assert config.model_path == str(tmp_path)


@given(
    st.sampled_from(option_names()),
    st.one_of(
        st.none(), st.integers(), st.floats(), st.text(max_size=5), st.binary(), st.lists(st.integers()), st.booleans()
    ),
)
def test_any_value_is_taken_or_refused_by_its_name(name: str, value: object) -> None:
    try:
        config = Config(**{name: value})
    except ConfigError as error:
        told = str(error)
    else:
        told = f"{name} is taken"
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value)
    assert name in told


@pytest.mark.parametrize("place", ["auto", "balanced", "cpu", "cuda:3", "mps"])
def test_places_of_accelerate_are_known(place: str) -> None:
    assert Config(device_map=place).device_map == place


def test_a_place_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"device_map='gpu' .*cuda:1"):
        Config(device_map="gpu")


def test_names_from_elsewhere_lead_to_options_that_exist() -> None:
    assert set(FOREIGN_NAMES.values()) <= set(option_names())
    assert not set(FOREIGN_NAMES) & set(option_names())
