"""Counting right answers is pure arithmetic."""

from __future__ import annotations

from qwenvl_kit.demo.training.metrics import Judged, Score, score, table

ANSWERS = [
    Judged(language="en", kind="caption", n_things=2, expected="a", given="a"),
    Judged(language="en", kind="caption", n_things=1, expected="b", given="c"),
    Judged(language="zh", kind="is_there", n_things=2, expected="没有。", given="没有。", hard=True),
    Judged(language="zh", kind="is_there", n_things=2, expected="没有。", given="有。"),
    Judged(language="zh", kind="is_there", n_things=2, expected="有。", given=None),
]


def test_answers_are_counted_by_language_kind_objects_and_truth() -> None:
    assert [(s.language, s.group, s.n_right, s.n_total) for s in score(ANSWERS)] == [
        ("zh", "is_there", 1, 3),
        ("zh", "is_there, hard no", 1, 1),
        ("zh", "is_there, other no", 0, 1),
        ("zh", "is_there, yes", 0, 1),
        ("en", "caption", 1, 2),
        ("en", "caption, 1 object", 0, 1),
        ("en", "caption, 2 objects", 1, 1),
    ]


def test_a_missing_answer_is_wrong() -> None:
    assert not ANSWERS[-1].right


def test_the_table_has_a_line_for_each_score() -> None:
    lines = table([Score(language="en", group="caption", n_right=3, n_total=4)]).splitlines()
    assert lines[-1] == "| en | caption | 3 | 4 | 0.750 |"
    assert len(lines) == 3
