"""The judging panel without a browser."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from helpers.fake_backends import gray

from qwenvl_kit import ConfigError
from qwenvl_kit.compare import Comparison
from qwenvl_kit.widgets import Judge

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def found() -> Comparison:
    images = pd.DataFrame({"image": [gray(1), gray(2), gray(3)], "truth": ["x", "y", "z"]}, index=["a", "b", EVIL])
    vary = {"prompt": ["What is it?", f"Describe {EVIL}"]}
    return images.vl.compare("image", vary=vary, truth="truth", backend="echo", progress=False)


def test_a_blind_panel_does_not_say_whose_answer_is_whose_until_all_are_judged(found: Comparison) -> None:
    judge = Judge(found, seed=3)
    for _ in range(3):
        assert judge.pair is not None
        assert "prompt=" not in judge.page
        assert "First" in judge.page
        assert "<script" not in judge.page
        judge.decide("first")

    assert judge.pair is None
    assert judge.told == "3 of 3 pairs judged; 0 more have equal answers."
    assert "prompt=What" in Judge(found, blind=False).page or "prompt=Describe" in Judge(found, blind=False).page


def test_keys_enter_what_they_say_whichever_side_was_shown_first(found: Comparison) -> None:
    judge = Judge(found, seed=1)
    for _ in range(3):
        assert judge.pair is not None
        judge.decide("first" if judge.pair.is_swapped else "second")  # always the other setting
    assert judge.to_frame()["verdict"].tolist() == ["other"] * 3

    judge.decide("undo")
    judge.decide("tie")
    judge.decide("nothing known")
    summary = judge.summary()
    assert summary[["wins", "losses", "ties"]].iloc[0].tolist() == [2, 0, 1]


def test_a_later_panel_goes_on_where_the_file_ends(found: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "judged.jsonl"
    first = Judge(found, path=path, judge="ann")
    first.decide("first")
    first.decide("second")
    first.decide("undo")

    again = Judge(found, path=path, judge="ann")
    pd.testing.assert_frame_equal(again.to_frame(), first.to_frame())
    assert again.pair == first.pair
    assert len(Judge(found, path=path, judge="bob").to_frame()) == 0


def test_agreement_with_a_person_and_with_a_measure(found: Comparison) -> None:
    ann, bob = Judge(found, seed=1), Judge(found, seed=2)
    for judge in (ann, bob):
        for _ in range(3):
            judge.decide("tie")

    assert ann.agreement(bob) == {"n": 3, "same": 1.0, "kappa": pytest.approx(float("nan"), nan_ok=True)}
    assert ann.agreement("right")["same"] == 1.0  # neither answer is ever right
    with pytest.raises(ConfigError, match="no measure 'chrf' that tells better from worse"):
        ann.agreement("chrf")


def test_a_comparison_without_images_is_refused(found: Comparison) -> None:
    bare = Comparison(found.frame, found.varied, found.reference, True, {})
    with pytest.raises(ConfigError, match="no images to show"):
        Judge(bare)
