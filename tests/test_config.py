"""Names and defaults that the operator's users know, and values that travel."""

from __future__ import annotations

import pickle
from typing import get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit import Config, ConfigError
from qwenvl_kit.config import Options, option_docs, option_names

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
    assert option_names()[: len(OPERATOR) + 1] == ("image_src_type", *OPERATOR)


def test_type_checkers_see_the_options_that_there_are() -> None:
    hints = {option.name: option.hint for option in option_docs()}

    assert get_type_hints(Options) == hints


def test_only_what_was_passed_counts_as_asked() -> None:
    config = Config(batch_size=4, dtype="float32")

    assert config.asked == {"batch_size", "dtype"}
    assert config.replace(seed=1).asked == {"batch_size", "dtype", "seed"}
    assert Config(batch_size=4) == Config()


def test_a_config_travels_to_workers_whole() -> None:
    config = Config(device_map={"": "cpu"}, seed=3)

    copy = pickle.loads(pickle.dumps(config))

    assert copy == config
    assert copy.asked == config.asked


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
        assert getattr(config, name) == value
    assert name in told


@pytest.mark.parametrize("place", ["auto", "balanced", "cpu", "cuda:3", "mps"])
def test_places_of_accelerate_are_known(place: str) -> None:
    assert Config(device_map=place).device_map == place


def test_a_place_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cuda:1.*got 'gpu'"):
        Config(device_map="gpu")
