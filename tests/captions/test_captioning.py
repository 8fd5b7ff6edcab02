"""``df.vl.caption`` for training: what is written, kept, asked again and flagged."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

import qwenvl_kit
from qwenvl_kit import Control, Result
from qwenvl_kit.errors import ConfigError, OptionWarning, RowErrorWarning
from qwenvl_kit.inference.echo import Echo
from qwenvl_kit.types import Request

ECHO = {"backend": "echo", "progress": False, "max_caption_length": 4}


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    """Three pictures with tags, and a row without one."""
    names = ["a b.png", "🐕.png", "caf\udce9.png"]
    for level, name in enumerate(names):
        Image.new("RGB", (56, 56), (level, 0, 0)).save(tmp_path / "in.png")
        (tmp_path / "in.png").rename(tmp_path / name)
    images = pd.Series([*(str(tmp_path / name) for name in names), None], index=list("wxyz"), dtype=object)
    return pd.DataFrame({"image": images, "tags": ["red", "dark red", "brown", "none"]})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Prompts that reach the model."""
    answer = Echo._answer
    seen: list[str] = []

    def counted(self: Echo, request: Request, *rest: Any) -> Result:
        seen.append(request.prompt)
        return answer(self, request, *rest)

    monkeypatch.setattr(Echo, "_answer", counted)
    return seen


def texts_of(frame: pd.DataFrame) -> list[str | None]:
    paths = [None if image is None else Path(image).with_suffix(".txt") for image in frame["image"]]
    return [path.read_text() if path is not None and path.exists() else None for path in paths]


def test_captions_are_those_of_the_files_and_templates_name_the_rows_columns(
    frame: pd.DataFrame, asked: list[str]
) -> None:
    captions = frame.vl.caption("image", prompt="see {tags}", sidecar=".txt", prepend="tok, ", append=".", **ECHO)

    assert sorted(asked) == ["see brown", "see dark red", "see red"]
    assert texts_of(frame) == [*captions[:3], None]
    assert captions["w"].startswith("tok, see red [")
    assert captions["w"].endswith(".")
    assert captions.isna().tolist() == [False, False, False, True]
    assert captions.index.tolist() == list("wxyz")


def test_files_with_a_caption_are_kept_and_returned_and_not_asked(frame: pd.DataFrame, asked: list[str]) -> None:
    Path(frame["image"]["x"]).with_suffix(".txt").write_text("mine\n")
    heard: list[str | None] = []

    captions = frame.vl.caption(
        "image", prompt="{tags}", sidecar=".txt", control=Control(on_result=lambda one: heard.append(one.text)), **ECHO
    )

    assert captions["x"] == "mine"
    assert sorted(asked) == ["brown", "red"]
    assert sorted(filter(None, heard)) == sorted(captions.dropna())
    run = qwenvl_kit.last_run()
    assert run is not None
    assert run["cached"].tolist() == [False, True, False, False]
    assert captions.attrs["rows"] == {"ok": 3, "null_image": 1}

    asked.clear()
    assert frame.vl.caption("image", sidecar=".txt", **ECHO).tolist()[:3] == captions.tolist()[:3]
    assert asked == []


def test_overwrite_and_append_ask_all(frame: pd.DataFrame, asked: list[str]) -> None:
    options = {"sidecar": ".txt", **ECHO}
    first = frame.vl.caption("image", prompt="one", **options)
    second = frame.vl.caption("image", prompt="two", existing="append", **options)

    assert texts_of(frame)[:3] == [f"{one}\n{two}" for one, two in zip(first[:3], second[:3], strict=True)]
    third = frame.vl.caption("image", prompt="three", existing="overwrite", **options)
    assert texts_of(frame)[:3] == third.tolist()[:3]
    assert len(asked) == 9


def test_a_row_at_fault_is_asked_once_more_and_flagged_if_it_still_is(frame: pd.DataFrame, asked: list[str]) -> None:
    options = {**ECHO, "max_caption_length": 100}

    captions = frame.vl.caption("image", prompt="{tags}", must="red", must_not="purple", sidecar=".txt", **options)

    again = "brown The answer must contain: 'red'. The answer must not contain: 'purple'."
    assert sorted(asked) == ["brown", again, "dark red", "red"]
    run = qwenvl_kit.last_run()
    assert run is not None
    assert run["flag"].fillna("").tolist() == ["", "", "contains 'purple'", ""], "the echo says it now"
    assert captions["y"].startswith(again)
    assert texts_of(frame)[2] == captions["y"], "it is written all the same"
    assert captions.attrs["asked_again"] == 1


def test_a_second_answer_that_is_worse_is_not_taken(frame: pd.DataFrame) -> None:
    words = {"must": "red", "must_not": ["purple", "contain"]}

    captions = frame.vl.caption("image", prompt="{tags}", **words, **{**ECHO, "max_caption_length": 100})

    run = qwenvl_kit.last_run()
    assert run is not None
    assert captions["y"].startswith("brown [")
    assert run["flag"]["y"] == "lacks 'red'"


def test_a_second_answer_that_is_better_is_taken(frame: pd.DataFrame) -> None:
    captions = frame.vl.caption("image", prompt="{tags}", must="red", **{**ECHO, "max_caption_length": 100})

    run = qwenvl_kit.last_run()
    assert run is not None
    assert run["flag"].isna().all()
    assert captions["y"].startswith("brown The answer must contain: 'red'.")


def test_options_that_are_ignored_are_told_once(frame: pd.DataFrame) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        frame.vl.caption("image", prompt="{tags}", must="red", torch_compile=True, **ECHO)

    assert [one.category for one in told] == [OptionWarning]


def test_a_run_that_is_cancelled_leaves_rows_at_fault_to_the_next(frame: pd.DataFrame, asked: list[str]) -> None:
    cancel = threading.Event()
    control = Control(cancel, on_result=lambda _: cancel.set())

    captions = frame.vl.caption("image", prompt="brown", must="red", sidecar=".txt", control=control, **ECHO)

    assert captions.isna().all()
    assert texts_of(frame) == [None] * 4
    assert all("must contain" not in prompt for prompt in asked)


def test_a_caption_that_cannot_be_written_is_that_rows_error_and_stays_in_the_run(
    frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwenvl_kit.captions import sidecars

    write = sidecars.write_text

    def full(path: str, text: str) -> None:
        if path.endswith("a b.txt"):
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr(sidecars, "write_text", full)

    with pytest.warns(RowErrorWarning, match=r"write: 1[\s\S]*No space left on device"):
        captions = frame.vl.caption("image", sidecar=".txt", **ECHO)

    run = qwenvl_kit.last_run()
    assert run is not None
    assert captions.isna().tolist() == [True, False, False, True]
    assert run["text"].isna().tolist() == [False, False, False, True]
    assert run["stage"]["w"] == "write"


def test_a_pool_gives_each_row_its_prompt_in_run_plan_and_caption(frame: pd.DataFrame) -> None:
    pool = {"red {stem}": 1.0, "blue {stem}": 1.0}
    options = {"prompts": pool, "seed": 2, **ECHO}

    run = frame.vl.run("image", **options)

    assert frame.vl.caption("image", **options).tolist()[:3] == run["text"].tolist()[:3]
    runs = [frame.vl.run("image", **{**options, "seed": seed})["text"] for seed in range(10)]  # addresses differ by run
    assert {text.split()[0] for texts in runs for text in texts[:3]} == {"red", "blue"}
    assert (frame.vl.plan("image", **options).rows["status"][:3] == "ok").all()
    assert frame["image"].vl.caption(**options).tolist()[:3] == run["text"].tolist()[:3]


def test_prompts_of_rows_are_taken_as_they_are_and_missing_ones_from_the_template(frame: pd.DataFrame) -> None:
    own = ["see {tags}", None, r"\frac{a}{b}", None]

    captions = frame.vl.caption("image", prompts=own, prompt="a {tags}", **ECHO)

    assert [text.split(" [")[0] for text in captions[:3]] == ["see {tags}", "a dark red", r"\frac{a}{b}"]


@pytest.mark.parametrize(
    "change",
    [
        {"existing": "skip"},
        {"existing": "rename", "sidecar": ".txt"},
        {"prepend": "\ud800"},
        {"prompt": "{nothing}"},
        {"must": [""]},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_asked(
    frame: pd.DataFrame, asked: list[str], change: dict[str, object]
) -> None:
    call: Callable[..., object] = frame.vl.caption
    with pytest.raises(ConfigError):
        call("image", **change, **ECHO)
    assert asked == []
