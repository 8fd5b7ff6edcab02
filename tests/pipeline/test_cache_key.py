"""Equal keys are equal answers."""

from __future__ import annotations

from typing import Any

import pytest

from qwenvl_kit import Config
from qwenvl_kit.checkpoints.capabilities import Device
from qwenvl_kit.checkpoints.resolve import CheckpointDefaults, resolve
from qwenvl_kit.pipeline.cache_key import CacheKeyBuilder
from qwenvl_kit.types import Constraint, PatchGeometry, Prompt


def key(
    *,
    fingerprint: str = "f",
    system: str | None = None,
    prompt: str = "What?",
    sample_index: int = 0,
    digest: str = "digest",
    labels: tuple[str, ...] = (),
    constraint: Constraint | None = None,
    **options: Any,
) -> str | None:
    resolved = resolve(Config(**options), Device("cpu"), CheckpointDefaults("m", fingerprint, PatchGeometry()))
    return CacheKeyBuilder(resolved, system).key([digest], Prompt(prompt, labels, constraint), sample_index)


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "g"},
        {"system": "s"},
        {"prompt": "Who?"},
        {"labels": ("cat", "dog")},
        {"constraint": Constraint("regex", "cat|dog")},
        {"digest": "other"},
        {"resized_width": 28},
        {"max_caption_length": 5},
        {"image_decode": "draft"},
        {"num_beams": 2},
        {"min_pixels": 4000},
        {"do_sample": True, "seed": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_an_answer_changes_its_key(change: dict[str, Any]) -> None:
    assert key(**change) != key()


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 9}, {"timeout_s": 1.0}, {"sample_index": 3}, {"temperature": 0.5}, {"seed": 3}],
    ids=lambda change: next(iter(change)),
)
def test_what_a_greedy_answer_does_not_depend_on_leaves_its_key(change: dict[str, Any]) -> None:
    assert key(**change) == key()


def test_constraints_differ_by_kind_and_source() -> None:
    constraints = [Constraint("regex", "a"), Constraint("regex", "b"), Constraint("choices", '["a"]'), None]

    assert len({key(constraint=one) for one in constraints}) == len(constraints)


def test_the_order_of_pictures_counts() -> None:
    resolved = resolve(Config(), Device("cpu"), CheckpointDefaults("m", "f", PatchGeometry()))
    keys = CacheKeyBuilder(resolved, None)

    assert keys.key(["a", "b"], Prompt("p"), 0) != keys.key(["b", "a"], Prompt("p"), 0)


def test_draws_differ_under_a_seed_and_have_no_key_without_one() -> None:
    assert key(do_sample=True, seed=1, sample_index=0) != key(do_sample=True, seed=1, sample_index=1)
    assert key(do_sample=True) is None
