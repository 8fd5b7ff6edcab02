"""Samples of the fuzzers, and that their seeds are what they claim to be."""

from __future__ import annotations

import io
import itertools
import warnings
from collections import Counter
from collections.abc import Iterator

import pytest
from helpers.malformed_inputs.answers import answers, image_of
from helpers.malformed_inputs.cells import cells
from helpers.malformed_inputs.mutations import mutations
from helpers.malformed_inputs.scripts import script
from helpers.malformed_inputs.seeds import ALLOWED, may_become_image, seeds
from PIL import Image

UNOPENED = {"EPS", "PDF", "PALM", "WAL", "other"}  # by programs, or not at all


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # row errors are what is looked at here, and Pillow warns of odd metadata
        yield


@pytest.mark.parametrize(
    ("kind", "n_cases", "seed"),
    [("files", 2500, 1), ("cells", 2000, 2), ("servers", 300, 3)],
    ids=lambda value: str(value),
)
def test_malformed_inputs_hurt_no_good_row(kind: str, n_cases: int, seed: int) -> None:
    report = script("fuzz").fuzz(kind, n_cases, seed)

    assert not report.breaches, "\n".join(f"{b.what}: {b.detail}" for b in report.breaches[:20])
    assert report.n_odd == n_cases
    assert report.n_good >= n_cases / 10
    statuses = sum(report.outcomes.values(), Counter())
    assert {"ok", "fetch", "decode"} & set(statuses) >= ({"ok", "decode"} if kind == "files" else {"ok", "fetch"})


def test_there_is_a_seed_of_every_format_that_pillow_knows() -> None:
    Image.init()
    found = {
        Image.open(io.BytesIO(data)).format
        for name, data in seeds().items()
        if name.split()[0] in Image.OPEN and _opens(data)
    }

    assert {name.upper() for name in found if name} >= set(Image.OPEN) - UNOPENED - {"HEIF"}
    assert {name.split()[0] for name in seeds()} >= set(Image.SAVE) - {"HEIF"}


def _opens(data: bytes) -> bool:
    if data.startswith(b"%!PS"):
        return False
    try:
        Image.open(io.BytesIO(data))
    except Exception:  # noqa: BLE001  # some seeds are made to be refused
        return False
    return True


def test_equal_seeds_give_equal_cases_and_others_do_not() -> None:
    first, again, other = ([case.data for case in itertools.islice(mutations(seed), 50)] for seed in (1, 1, 2))
    assert first == again != other

    assert [name for name, _ in itertools.islice(cells(1), 50)] == [name for name, _ in itertools.islice(cells(1), 50)]
    assert answers(1, 50) == answers(1, 50) != answers(2, 50)


def test_most_cases_are_of_formats_that_may_become_images() -> None:
    some = list(itertools.islice(mutations(0), 1000))

    assert sum(may_become_image(case.data) for case in some) > 600
    assert {case.seed.split()[0] for case in some} >= set(ALLOWED) - {"HEIF"}
    assert len({image_of(number) for number in range(10)}) == 10
