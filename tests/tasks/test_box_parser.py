"""Boxes and points are read however they are written, and what cannot be read is counted and kept."""

from __future__ import annotations

import json
import math
import random
import time
from typing import Any

import pytest
from helpers.answers import spoilt
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_kit.tasks.box_parser import Kind, parse_objects

CAT = '{"bbox_2d": [1, 2, 30, 40], "label": "cat"}'
DOG = '{"bbox_2d": [5, 6, 70, 80], "label": "dog"}'
BOTH = [((1, 2, 30, 40), "cat"), ((5, 6, 70, 80), "dog")]
LABELS = st.text(st.characters(codec="utf-8"), max_size=12)


def read(text: str, kind: Kind = "box") -> tuple[list[Any], list[str]]:
    found = parse_objects(text, kind)
    return [(one.coordinates, one.label) for one in found.objects], list(found.unread)


@given(
    objects=st.lists(st.tuples(st.lists(st.integers(-999, 9_999), min_size=4, max_size=4), LABELS), max_size=5),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 2]),
    fence=st.booleans(),
)
def test_every_object_of_valid_json_is_read_in_its_order(
    objects: list[tuple[list[int], str]], ascii_only: bool, indent: int | None, fence: bool
) -> None:
    text = json.dumps(
        [{"bbox_2d": box, "label": label} for box, label in objects], ensure_ascii=ascii_only, indent=indent
    )

    found, unread = read(f"```json\n{text}\n```" if fence else text)

    assert found == list(dict.fromkeys((tuple(box), label) for box, label in objects))
    assert unread == []


@pytest.mark.parametrize(
    "text",
    [
        f"[{CAT}, {DOG}]",
        f"```json\n[\n\t{CAT},\n\t{DOG}\n]\n```",
        f"Sure, here they are:\n```\n{CAT}\n{DOG}\n```\nAnything else?",
        f"[{CAT}, {DOG}]".replace('"', "'"),
        f"[{CAT}, {DOG}]".replace('"bbox_2d"', "bbox_2d").replace('"label"', "label"),
        f"[{CAT}, {DOG}]".replace("bbox_2d", "bbox"),
        f"[{CAT}, {DOG}]".replace("bbox_2d", "box"),
        f"[{CAT}, {DOG}]".replace("bbox_2d", "bounding_box").replace("label", "name"),
        f"[{CAT}, {DOG},]",
        f'{{"objects": [{CAT}, {DOG}]}}',
        f"[[{CAT}], [[{DOG}]]]",
        '[{"bbox_2d": ["1", "2", " 30", "40.0"], "label": "cat"}, {"bbox_2d": "5, 6, 70, 80", "label": "dog"}]',
        '[{"bbox_2d": [[1, 2], [30, 40]], "label": "cat"}, {"bbox_2d": [[5, 6, 70, 80]], "label": "dog"}]',
        '[{"label": "cat", "bbox_2d": [001, 2., 30, 40]}, {"label": "dog", "bbox_2d": [5, +6, 70, 80]}]',
        f"{CAT}{DOG}",
        f"[{CAT} {DOG}",
    ],
)
def test_other_spellings_are_read(text: str) -> None:
    assert read(text) == (BOTH, [])


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        (f'[{CAT}, {DOG}, {{"bbox_2d": [5, 6', '{"bbox_2d": [5, 6'),
        (f'[{CAT}, {DOG}, {{"bbox_2d": [5, 6, 7, 8], "label": "a', '{"bbox_2d": [5, 6, 7, 8], "label": "a'),
        (f'[{CAT}, {DOG}, {{"label": "bird"}}]', '{"label": "bird"}'),
        (f'[{CAT}, {{"bbox_2d": [1, 2, 3]}}, {DOG}]', '{"bbox_2d": [1, 2, 3]}'),
        (f'[{CAT}, {{"bbox_2d": [1, 2, 3, NaN]}}, {DOG}]', '{"bbox_2d": [1, 2, 3, NaN]}'),
        (f'[{CAT}, {{"bbox_2d": [1, 2, 3, 1e999]}}, {DOG}]', '{"bbox_2d": [1, 2, 3, 1e999]}'),
        (f'[{CAT}, {{"bbox_2d": [1, 2, 3, true]}}, {DOG}]', '{"bbox_2d": [1, 2, 3, true]}'),
        (f'[{CAT}, {{"point_2d": [1, 2], "label": "x"}}, {DOG}]', '{"point_2d": [1, 2], "label": "x"}'),
        (f'[{CAT}, {{"bbox_2d": [1, 2, 3, 4], {DOG}]', '{"bbox_2d": [1, 2, 3, 4],'),
        (
            f'[{CAT}, {{"bbox_2d": [1, 2, 3, 4], "bbox_2d": [5, 6, 7, 8]}}, {DOG}]',
            '{"bbox_2d": [1, 2, 3, 4], "bbox_2d": [5, 6, 7, 8]}',
        ),
        (
            f"[{CAT}, {{'bbox_2d': [1, 2, 3, 4], 'bbox_2d': [5, 6, 7, 8]}}, {DOG}]",
            "{'bbox_2d': [1, 2, 3, 4], 'bbox_2d': [5, 6, 7, 8]}",
        ),
        (f'[{CAT}, {{"bbox_2d": [1, 2, 3, 4], "label": "a}}, {DOG}]', '{"bbox_2d": [1, 2, 3, 4], "label": "a}'),
        (f'{{"label": "pets", "boxes": [{CAT}, {DOG}]}}', '{"label": "pets", "boxes": ['),
    ],
)
def test_a_fault_in_one_object_costs_no_other_and_is_kept_as_text(text: str, unread: str) -> None:
    assert read(text) == (BOTH, [unread])


@pytest.mark.parametrize("text", ["There are no cats.", "", "```json\n[", "null", "（没有）"])
def test_an_answer_without_json_is_unread_as_a_whole(text: str) -> None:
    assert read(text) == ([], [text])


@pytest.mark.parametrize("text", ["[]", "```json\n[]\n```", "[\n]", "{}", '{"objects": []}', "Nothing here: []"])
def test_an_empty_list_says_that_there_are_none(text: str) -> None:
    assert read(text) == ([], [])


def test_objects_without_label_and_bare_lists_have_none() -> None:
    assert read('[[1, 2, 3, 4], {"bbox_2d": [5, 6, 7, 8]}, {"box": [9, 9, 9, 9], "label": null}]') == (
        [((1, 2, 3, 4), None), ((5, 6, 7, 8), None), ((9, 9, 9, 9), None)],
        [],
    )


def test_points_are_read_where_points_are_asked_for() -> None:
    text = '[{"point_2d": [394, 105], "label": "猫"}, {"point": ["1", 2]}, [3, 4], {"point_2d": [[5, 6], [7, 8]]}]'

    assert read(text, "point") == ([((394, 105), "猫"), *(((x, x + 1), None) for x in (1, 3, 5, 7))], [])
    assert read(text, "box") == (
        [],
        ['{"point_2d": [394, 105], "label": "猫"}', '{"point": ["1", 2]}', "[3, 4]", '{"point_2d": [[5, 6], [7, 8]]}'],
    )


def test_braces_and_brackets_in_a_label_end_no_object() -> None:
    text = '[{"bbox_2d": [1, 2, 3, 4], "label": "sign {A} [1]"}, {"label": "}{", "bbox_2d": [5, 6, 7, 8]}]'

    assert read(text) == ([((1, 2, 3, 4), "sign {A} [1]"), ((5, 6, 7, 8), "}{")], [])


def test_equal_objects_are_kept_once_and_counted() -> None:
    found = parse_objects(f"[{', '.join([CAT, DOG, CAT] * 1_000)}", "box")

    assert [(one.coordinates, one.label) for one in found.objects] == BOTH
    assert found.n_repeated == 2_998
    assert found.unread == ()


def test_an_object_knows_where_its_numbers_and_its_label_stand() -> None:
    text = f'Here: [{CAT}, {{"label": "a", "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]}}]'

    written = [
        [text[slice(*span)] for span in part] for one in parse_objects(text, "box").objects for part in one.spans()
    ]

    assert written == [
        *(["1", "2", "30", "40"], ["cat"]),
        *(["1", "2", "3", "4"], ["a"]),
        *(["5", "6", "7", "8"], ["a"]),
    ]


@settings(max_examples=400)
@given(text=st.text("{}[]\"':,0a1 \n`tbox_2d’”-.\\", max_size=60), kind=st.sampled_from(["box", "point"]))
def test_no_text_raises_and_all_of_json_is_read_or_kept(text: str, kind: Kind) -> None:
    found = parse_objects(text, kind)

    for one in found.objects:
        assert all(math.isfinite(number) for number in one.coordinates)
        assert text[one.start :].startswith(one.text)
        one.spans()
    assert found.objects or found.unread or "[" in text or "{" in text
    assert all(piece in text for piece in found.unread)


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["box", "point"]))
def test_no_spoilt_answer_raises(seed: int, kind: Kind) -> None:
    for one in parse_objects(spoilt(random.Random(seed)), kind).objects:
        one.spans()


@pytest.mark.parametrize(
    "unit",
    [
        "{",
        "[",
        '{"',
        "{'",
        '{"a":',
        "[[",
        '"',
        "}",
        "{}",
        "[]",
        '{"}',
        "[1,",
        "\\",
        "{[",
        f"{CAT},",
        "{'a': 'b's'},",
        "{a" + " " * 99,
    ],
)
def test_the_time_is_linear_in_the_length(unit: str) -> None:
    def seconds(n: int) -> float:
        text = unit * n
        times = []
        for _ in range(3):
            started = time.process_time()
            parse_objects(text, "box")
            times.append(time.process_time() - started)
        return min(times)

    n = 8_000 // len(unit)
    assert seconds(8 * n) < 24 * seconds(n) + 0.02
