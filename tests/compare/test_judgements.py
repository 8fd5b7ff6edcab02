"""What a person is asked, and what follows from the answers."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit import ConfigError
from qwenvl_kit.compare.judgements import (
    Judgement,
    agreement,
    cohens_kappa,
    make_pairs,
    read_judgements,
    sign_test,
    wilson_interval,
    win_rates,
    write_judgement,
)


def answers(n_images: int = 40) -> pd.DataFrame:
    """Return a frame in which heights 56 and 28 answer otherwise than 112 on every image but the first."""
    return pd.DataFrame(
        [
            {"height": height, "repeat": 0, "row": row, "label": f"i{row}", "status": "ok", "text": text}
            for row in range(n_images)
            for height, text in ((112, "a"), (56, f"b{row}" if row else "a"), (28, f"c{row}" if row else "a"))
        ]
    )


def test_only_pairs_that_differ_are_asked_and_equal_ones_are_counted() -> None:
    pairs, n_equal = make_pairs(answers(), ["height"], {"height": 112}, seed=0)

    assert len(pairs) == 78
    assert n_equal.to_dict() == {"height=56": 1, "height=28": 1}
    assert {pair.reference for pair in pairs} == {"height=112"}


def test_a_seed_gives_one_order_and_sides_are_shown_equally_often() -> None:
    one, two, other = (make_pairs(answers(), ["height"], {"height": 112}, seed=seed)[0] for seed in (4, 4, 5))

    assert one == two
    assert [pair.key for pair in one] != [pair.key for pair in other]
    assert sorted(pair.key for pair in one) == sorted(pair.key for pair in other)
    assert 20 < sum(pair.is_swapped for pair in one) < 58
    for pair in one:
        assert pair.shown[0] == (pair.other_text if pair.is_swapped else pair.reference_text)
        preferred = pair.verdict(0)
        assert (preferred == "other") == (pair.shown[0] == pair.other_text)


def test_failed_rows_are_not_asked() -> None:
    frame = answers(3)
    frame.loc[frame["row"] == 1, "status"] = "error"
    assert {pair.row for pair in make_pairs(frame, ["height"], {"height": 112}, seed=0)[0]} == {2}


def test_win_rates_leave_ties_and_skips_out() -> None:
    judged = pd.DataFrame({"other": ["b"] * 7, "verdict": ["other"] * 3 + ["reference", "tie", "tie", "skip"]})
    row = win_rates(judged, pd.Series({"b": 5, "c": 0})).loc["b"]

    assert row[["wins", "losses", "ties", "skipped", "equal"]].tolist() == [3, 1, 2, 1, 5]
    assert (row["win_rate"], row["p"]) == (0.75, 0.625)
    assert row["low"] < 0.75 < row["high"]
    assert math.isnan(win_rates(judged, pd.Series({"c": 0})).loc["c", "win_rate"])
    with pytest.raises(ConfigError, match="level must be between 0 and 1"):
        win_rates(judged, pd.Series({"b": 0}), level=95)


@given(st.integers(0, 300), st.integers(0, 300))
def test_intervals_hold_their_share_and_both_sides_are_alike(wins: int, losses: int) -> None:
    if wins + losses:
        low, high = wilson_interval(wins, wins + losses)
        assert 0 <= low <= wins / (wins + losses) <= high <= 1
        assert wilson_interval(losses, wins + losses) == pytest.approx((1 - high, 1 - low))
        assert 0 < sign_test(wins, losses) <= 1
    assert sign_test(wins, losses) == sign_test(losses, wins) or wins + losses == 0


def test_the_sign_test_goes_on_beyond_what_can_be_counted() -> None:
    assert sign_test(540, 459) == pytest.approx(sign_test(541, 460), rel=0.1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), max_size=30))
def test_kappa_is_symmetric_and_at_most_one(verdicts: list[tuple[str, str]]) -> None:
    one, other = [a for a, _ in verdicts], [b for _, b in verdicts]
    kappa = cohens_kappa(one, other)

    assert math.isnan(kappa) or kappa <= 1
    assert math.isnan(kappa) == math.isnan(cohens_kappa(other, one))
    if not math.isnan(kappa):
        assert kappa == pytest.approx(cohens_kappa(other, one))
        assert (kappa == pytest.approx(1.0)) == (one == other)


def test_two_judges_meet_on_the_pairs_that_both_decided() -> None:
    one = pd.DataFrame({"key": list("abcd"), "verdict": ["other", "other", "tie", "skip"]})
    two = pd.DataFrame({"key": list("bcde"), "verdict": ["other", "reference", "other", "tie"]})

    assert agreement(one, two)["n"] == 2
    assert agreement(one, two)["same"] == 0.5
    assert math.isnan(agreement(one, two.iloc[:0])["kappa"])


def test_verdicts_survive_a_crash_in_mid_line_and_are_kept_by_judge(tmp_path: Path) -> None:
    path = tmp_path / "judged" / "file.jsonl"
    assert read_judgements(path, "ann") == {}
    for key, verdict in (("a", "other"), ("b", "tie"), ("a", None), ("c", "skip")):
        write_judgement(path, Judgement(key, verdict, "ann"))  # type: ignore[arg-type]
    write_judgement(path, Judgement("a", "reference", "bob"))
    path.write_bytes(path.read_bytes() + b'{"key": "d", "verd')

    assert read_judgements(path, "ann") == {"b": "tie", "c": "skip"}
    write_judgement(path, Judgement("e", "other", "ann"))
    assert read_judgements(path, "ann") == {"b": "tie", "c": "skip", "e": "other"}
    assert read_judgements(path, "bob") == {"a": "reference"}


@pytest.mark.parametrize("text", ["my notes\n", "my notes", '{"key": 1}\n', "[]\n"])
def test_a_file_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(text)
    with pytest.raises(ConfigError, match=r"Line 1 of .* is not a judgement"):
        read_judgements(tmp_path / "notes.txt", "")
