"""The panels without a browser: what buttons and controls do, and that the event loop stays free meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import html
import io
import re
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.fake_backends import gray
from PIL import Image

from qwenvl_kit import ColumnNotFound, ConfigError, MissingExtra, UnknownOption
from qwenvl_kit.compare import grid
from qwenvl_kit.compare.memory import Peak, measure_peak
from qwenvl_kit.demo import WORLD, draw, sample_scenes
from qwenvl_kit.images import ImageLoader
from qwenvl_kit.inference import echo
from qwenvl_kit.options import option_docs
from qwenvl_kit.widgets import (
    DtypeCompare,
    ModelCompare,
    Playground,
    PromptCompare,
    ResizeCompare,
    SamplingCompare,
    images,
    replaced,
    worker,
)

DEMO: dict[str, Any] = {
    "model_name": "demo",
    "dtype": "float32",
    "use_flash_attention_2": False,
    "min_pixels": 784,
    "max_pixels": 10**6,
}
EVIL = "<script>alert('x')</script>"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An echo that takes its time, as a model does."""
    spec = echo.spec
    monkeypatch.setattr(echo, "spec", lambda config: dataclasses.replace(spec(config), seconds_per_batch=0.2))


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    return [draw(scene) for scene in sample_scenes(2, seed=3, world=WORLD)]


def play(scenario: Coroutine[Any, Any, None]) -> None:
    """Run it on an event loop of its own thread: browser tests before it may have left one in this thread."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, scenario).result()


async def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        await asyncio.sleep(0.01)


def shown(panel: Playground) -> str:
    return " ".join(child.value for child in panel.answers.children)


def test_run_gives_an_answer_for_every_picture_and_a_tidy_frame() -> None:
    panel = Playground(pd.DataFrame({"image": [gray(1), gray(2)]}, index=["x", "y"]), prompt="Hm?", backend="echo")
    panel.run()

    frame = panel.to_frame()
    assert frame["label"].tolist() == ["x", "y"]
    assert frame["text"].str.startswith("Hm?").all()
    assert "2 of 2 answers" in panel.state.message
    assert shown(panel).count("Hm?") == 2


@pytest.mark.usefixtures("slow")
def test_the_event_loop_is_free_during_a_run_and_cancel_stops_it_at_once() -> None:
    async def scenario() -> None:
        panel = Playground([gray(level) for level in range(24)], prompt="Hm?", backend="echo", batch_size=1)
        panel.run_button.click()
        await until(lambda: len(panel.to_frame()) >= 2)
        started = time.monotonic()
        await asyncio.sleep(0)  # another cell's turn
        assert time.monotonic() - started < 0.2
        assert panel.run_button.disabled
        panel.cancel_button.click()
        started = time.monotonic()
        await until(lambda: panel.state.phase == "idle")
        assert time.monotonic() - started < 0.5
        assert 2 <= len(panel.to_frame()) < 24
        assert "Finished answers are kept" in panel.state.message
        assert not panel.run_button.disabled

    play(scenario())


@pytest.mark.usefixtures("slow")
def test_a_second_run_at_once_is_refused_and_the_first_goes_on() -> None:
    async def scenario() -> None:
        panel = Playground([gray(1), gray(2)], prompt="Hm?", backend="echo", batch_size=1)
        panel.start()
        panel.start()
        assert "A run is in progress" in panel.state.message
        await until(lambda: panel.state.phase == "idle")
        assert len(panel.to_frame()) == 2

    play(scenario())


@pytest.mark.model
def test_dtypes_stand_side_by_side_and_differences_from_the_first_are_marked(scenes: list[np.ndarray]) -> None:
    panel = DtypeCompare(scenes, **{**DEMO, "dtype": "float32"}, max_caption_length=20)
    panel.run()

    frame = panel.to_frame()
    assert frame["dtype"].drop_duplicates().tolist() == ["float32", "bfloat16", "float16"]
    assert ("equal to dtype float32" in shown(panel)) == frame["same"][frame["dtype"] != "float32"].any()
    assert "seconds" not in panel.to_code()


@pytest.mark.model
def test_sizes_show_the_visual_tokens_and_mark_what_changed(scenes: list[np.ndarray]) -> None:
    panel = ResizeCompare(scenes, heights=[112, 56], **DEMO)
    panel.run()

    page = shown(panel)
    assert "4 × 3 visual tokens" in page
    assert "12 visual tokens" in page
    assert "[+" in page or "tokens differ" in page
    assert panel.slider.before.startswith("data:image/jpeg")
    assert (panel.token_grid.rows, panel.token_grid.columns) == (4, 3)
    panel.left_choice.value = 1
    assert (panel.token_grid.rows, panel.token_grid.columns) == (2, 2)


@pytest.mark.model
def test_sampling_shows_every_seed_and_its_answer_can_be_had_again(scenes: list[np.ndarray]) -> None:
    panel = SamplingCompare(scenes[:1], temperatures=[2.0], repeats=3, seed=4, **DEMO, max_caption_length=12)
    panel.run()

    frame = panel.to_frame()
    assert frame["seed"].tolist() == [4, 5, 6]
    assert all(f"seed {seed}" in shown(panel) for seed in (4, 5, 6))
    again = pd.Series(scenes[:1]).vl.caption(
        **DEMO, do_sample=True, temperature=2.0, seed=6, max_caption_length=12, progress=False
    )
    assert again.tolist() == frame["text"].tolist()[2:]


def test_a_blocking_run_that_is_interrupted_keeps_what_is_done_and_stops_the_cells_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peaks = iter([measure_peak])

    def interrupted() -> AbstractContextManager[Peak]:
        try:
            return next(peaks)()
        except StopIteration:
            raise KeyboardInterrupt from None  # as Ctrl-C between two settings

    monkeypatch.setattr(grid, "measure_peak", interrupted)
    panel = ResizeCompare([gray(1), gray(2)], heights=[56, 112], prompt="Hm?", backend="echo")
    with pytest.raises(KeyboardInterrupt) as caught:
        panel.run()

    assert len(panel.to_frame()) == len(caught.value.results) == 2  # type: ignore[attr-defined]
    assert "Stopped after 2 of 4 answers" in panel.state.message


@pytest.mark.usefixtures("slow")
def test_the_status_shows_the_words_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    panel = Playground(pd.Series([gray(1)] * 3, index=["x", "y", "z"]), prompt="<i>Hm?", backend="echo", batch_size=1)
    panel.status_line.observe(lambda change: told.append(change["new"]), names="value")
    monkeypatch.setattr(panel, "redraw_s", 0.0)
    panel.run()

    assert any("x: …<i>Hm?" in status for status in told)
    assert any("about" in status and "left" in status for status in told)


def test_a_large_picture_is_decoded_once_however_many_answers_come(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []
    load = ImageLoader.load
    monkeypatch.setattr(ImageLoader, "load", lambda loader, source: decoded.append(source) or load(loader, source))
    panel = SamplingCompare([gray(1)], temperatures=[0.5, 1.0, 1.5], repeats=4, prompt="Hm?", backend="echo")
    panel.run()
    panel.to_html()

    assert len(decoded) == 1


@pytest.mark.model
def test_a_playground_marks_what_changed_since_the_run_before(scenes: list[np.ndarray]) -> None:
    panel = Playground(scenes[:1], resized_height=112, **DEMO)
    panel.run()
    assert "run before" not in shown(panel)
    panel.controls.by_name["resized_height"].value = "56"
    panel.run()

    assert "from the run before" in shown(panel)
    assert panel.to_config().resized_height == 56


@pytest.mark.model
def test_a_playground_shades_the_tokens_of_an_answer_also_in_the_saved_view(scenes: list[np.ndarray]) -> None:
    panel = Playground(scenes[:1], prompt="Describe the noise.", logprobs=2, max_caption_length=12, **DEMO)
    panel.run()

    (tokens,) = panel.to_frame()["logprobs"]
    for view in (shown(panel), panel.to_html()):
        assert f"{len(tokens)} tokens, together" in view
        assert "<script" not in view
    panel.controls.by_name["logprobs"].value = ""
    panel.run()
    assert "tokens, together" not in shown(panel)


@pytest.mark.model
def test_a_playground_draws_labels_as_bars_and_its_code_does_the_same(scenes: list[np.ndarray]) -> None:
    panel = Playground(scenes[:1], prompt="Is there a circle?", labels=["Yes.", "No."], **DEMO)
    panel.run()

    (label,), (share,) = panel.to_frame()["text"], panel.to_frame()["probability"]
    assert label in ("Yes.", "No.")
    assert shown(panel).count("aria-hidden='true'") == panel.to_html().count("aria-hidden='true'") == 2
    names: dict[str, Any] = {}
    exec(panel.to_code(), names)
    assert names["panel_answers"]["label"].tolist() == [label]
    assert names["panel_answers"]["probability"].tolist() == pytest.approx([share], abs=1e-5)
    panel.labels_field.value = ""
    panel.run()
    assert "aria-hidden='true'" not in shown(panel)


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        ("Yes.", DEMO, "Pass at least two"),
        ("Yes.\nYes.", DEMO, "twice"),
        ("Yes.\nNo.", {"backend": "echo"}, "backend='echo' has no model to score labels with"),
        ("Yes.\nNo.", {**DEMO, "num_beams": 2}, "num_beams=2 changes generated answers only"),
    ],
)
def test_labels_that_cannot_be_scored_are_told_and_the_panel_stays_usable(
    labels: str, options: dict[str, Any], said: str
) -> None:
    panel = Playground([gray(1)], prompt="Hm?", **options)
    panel.labels_field.value = labels
    panel.run()

    assert said in panel.status_line.value
    assert panel.state.phase == "idle"
    assert panel.to_frame().empty


@pytest.mark.parametrize(("value", "n_rows"), [("auto", "auto"), ("32", 32), ("", None)])
def test_rows_in_flight_are_a_number_or_auto(value: str, n_rows: int | str | None) -> None:
    panel = Playground([gray(1)], prompt="Hm?", backend="echo", rows_in_flight=7)
    panel.controls.by_name["rows_in_flight"].value = value

    assert panel.to_config().rows_in_flight == n_rows


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("resized_height", "tall", "resized_height='tall' is invalid. Use an integer of at least 1, in pixels"),
        ("resized_height", "-3", "resized_height=-3 is invalid"),
        ("top_k", "-1", "top_k=-1 is invalid"),
        ("rows_in_flight", "many", "rows_in_flight='many' is invalid. Use an integer of at least 1, 'auto'"),
        ("rank", "1.5", "rank=1.5 is invalid"),
    ],
)
def test_an_impossible_value_is_told_and_the_panel_stays_usable(name: str, value: str, said: str) -> None:
    panel = Playground([gray(1)], prompt="Hm?", backend="echo")
    control = panel.controls.by_name[name]
    control.value = value
    panel.run()
    assert said in panel.status_line.value
    with pytest.raises(ConfigError, match=re.escape(said)):
        panel.to_config()

    control.value = ""
    panel.run()
    assert len(panel.to_frame()) == 1


def test_heights_that_are_no_numbers_are_told_and_the_panel_stays_usable() -> None:
    panel = ResizeCompare([gray(1)], heights=[56], prompt="Hm?", backend="echo")
    panel.heights_field.value = "small"
    panel.run()
    assert "resized_height contains 'small'. Enter integers with commas between" in panel.status_line.value

    panel.heights_field.value = "56，112"
    panel.run()
    assert panel.to_frame()["resized_height"].tolist() == [56, 112]


def test_an_upload_that_is_no_picture_is_refused_beside_one_that_is() -> None:
    good = io.BytesIO()
    Image.fromarray(gray(9)).save(good, "PNG")
    panel = Playground(prompt="Hm?", backend="echo")
    upload(panel, {f"{EVIL}.txt": b"text", "ok.png": good.getvalue(), "empty.png": b""})

    assert "Added ok.png." in panel.status_line.value
    assert f"{EVIL}.txt was not added: decode:" in panel.status_line.value
    assert "empty.png was not added: the file is empty" in panel.status_line.value
    panel.run()
    assert panel.to_frame()["label"].tolist() == ["ok.png"]


def test_a_large_file_comes_in_slices_and_one_that_is_too_large_is_refused_before_it_is_sent() -> None:
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (2000, 2200, 3), np.uint8)).save(noise, "PNG")
    assert len(noise.getvalue()) > 10 * 2**20, "more than one message of a browser can hold"
    panel = Playground(prompt="Hm?", backend="echo")
    upload(panel, {"large.png": noise.getvalue()})
    assert panel.state.message == "Added large.png."
    assert panel.state.images[0].cell == noise.getvalue()

    button = panel.gallery.upload_button
    assert button.receive({"kind": "begin", "files": [{"name": "huge.png", "size": 33 * 2**20}]}, []) == []
    button.receive({"kind": "slice", "at": 0}, [b"sent all the same"])
    button.receive({"kind": "end"}, [])
    assert "huge.png was not added: 34603008 bytes exceed the upload limit" in panel.state.message


def upload(panel: Playground, files: dict[str, bytes]) -> None:
    """Send files as the page does."""
    button, contents = panel.gallery.upload_button, list(files.values())
    told = [{"name": name, "size": len(data)} for name, data in files.items()]
    for at in button.receive({"kind": "begin", "files": told}, []):
        for start in range(0, len(contents[at]), 2**20):
            button.receive({"kind": "slice", "at": at}, [memoryview(contents[at])[start : start + 2**20]])
    button.receive({"kind": "end"}, [])


def test_a_model_that_does_not_start_leaves_the_answers_of_the_run_before(monkeypatch: pytest.MonkeyPatch) -> None:
    panel = Playground([gray(1), gray(2)], prompt="Hm?", backend="echo")
    panel.run()
    answers, page = panel.to_frame(), panel.to_html()

    def missing(config: object) -> None:
        raise ConfigError("no such model")

    monkeypatch.setattr(echo, "spec", missing)
    panel.run()

    assert "no such model" in panel.status_line.value
    pd.testing.assert_frame_equal(panel.to_frame(), answers)
    assert panel.to_html() == page
    assert "…" not in shown(panel)


@pytest.mark.usefixtures("slow")
def test_a_panel_that_waits_says_for_which_run_and_its_clock_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "TICK_S", 0.05)

    async def scenario() -> None:
        first = SamplingCompare([gray(1)] * 4, temperatures=[0.5], repeats=4, prompt="A?", backend="echo", batch_size=1)
        second = Playground([gray(1)], prompt="B?", backend="echo")
        first.start()
        second.start()
        await until(lambda: "Waiting for another run: Compare sampling, " in second.status_line.value)
        told = second.status_line.value
        await until(lambda: second.status_line.value != told)
        second.cancel()
        await until(lambda: second.state.phase == "idle", 1.0)
        assert first.state.phase == "running"
        first.cancel()
        await until(lambda: first.state.phase == "idle")

    play(scenario())


@pytest.mark.usefixtures("slow")
def test_a_cell_that_is_run_again_cancels_the_run_of_its_former_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaced, "current_cell", lambda: "cell-7")

    async def scenario() -> None:
        former = Playground([gray(level) for level in range(24)], prompt="Hm?", backend="echo", batch_size=1)
        replaced.cancel_replaced(former)
        former.start()
        await until(lambda: len(former.to_frame()) >= 1)
        replaced.cancel_replaced(Playground([gray(1)], prompt="Hm?", backend="echo"))
        await until(lambda: former.state.phase == "idle", 2.0)
        assert "Finished answers are kept" in former.state.message

    play(scenario())


def test_a_cell_that_is_no_picture_says_so_in_the_code() -> None:
    panel = Playground([3.5], prompt="Hm?", backend="echo")
    panel.code_header.opened = True

    assert panel.code.value.startswith("# ")
    assert "is not an image" in panel.code.value


def test_the_code_leaves_the_readers_names_alone_and_keeps_the_labels() -> None:
    panel = Playground(pd.Series([gray(1), gray(2)], index=["left", "right"]), prompt="Hm?", backend="echo")
    names: dict[str, Any] = {"df": "mine", "frame": "mine", "found": "mine", "pixels": "mine"}
    exec(panel.to_code(), names)

    assert [names[name] for name in ("df", "frame", "found", "pixels")] == ["mine"] * 4
    assert names["panel_answers"].index.tolist() == ["left", "right"]


def test_every_token_is_framed_light_and_dark_on_a_gray_picture() -> None:
    framed = Image.new("RGB", (336, 336), (128, 128, 128))
    images.frame_tokens(framed, 112)
    halved = np.asarray(framed.resize((168, 168), Image.Resampling.BOX))[84]

    assert halved.min() < 40, "the page halves the picture, and the dark line must not average to gray"
    assert halved.max() > 215


def test_every_control_has_the_help_of_its_option() -> None:
    controls = Playground([gray(1)], prompt="Hm?", backend="echo").controls.by_name

    docs = {option.name: option.doc for option in option_docs()}
    for name, control in controls.items():
        assert html.unescape(control.description) == f"<span title='{docs[name]}'>{name}</span>"


def test_scripts_in_prompts_names_and_answers_stay_text() -> None:
    panel = Playground(pd.Series([gray(1)], index=[EVIL]), prompt=f"{EVIL} what?", backend="echo")
    panel.run()

    for page in (shown(panel), panel.to_html()):
        assert "<script" not in page
    assert "&lt;script&gt;" in panel.to_html()


@pytest.mark.model
def test_a_prompt_of_fifty_thousand_characters_ends_in_an_answer_or_an_error(scenes: list[np.ndarray]) -> None:
    panel = Playground(scenes[:1], prompt="为什么" * 17_000, **DEMO, max_caption_length=4)
    panel.run()

    assert panel.to_frame()["status"].tolist()[0] in ("ok", "error")
    assert panel.state.phase == "idle"
    assert len(panel.to_html()) < 100_000


@pytest.mark.model
def test_a_model_that_is_not_there_is_told_with_the_places_looked_at() -> None:
    panel = Playground([gray(1)], prompt="Hm?", model_path="/nowhere", model_name="no/model")
    panel.run()

    assert "no/model" in panel.status_line.value
    assert panel.state.phase == "idle"


def test_options_that_do_not_take_effect_are_noted() -> None:
    panel = Playground([gray(1)], prompt="Hm?", backend="echo", top_k=5)
    panel.run()

    assert "top_k=5 is ignored" in panel.notes.value


@pytest.mark.model
@pytest.mark.parametrize("where", ["in the code", "in files"])
def test_the_code_runs_as_pasted_and_gives_the_same_answers(
    where: str, scenes: list[np.ndarray], tmp_path: Path
) -> None:
    panel = SamplingCompare(scenes, temperatures=[0.5, 1.5], repeats=2, **DEMO, max_caption_length=6)
    code = panel.to_code(folder=tmp_path if where == "in files" else None)
    script = tmp_path / "pasted.py"
    script.write_text(f"{code}\nprint(panel_answers.frame['text'].tolist())\n", encoding="utf-8")
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=120).stdout

    panel.run()
    assert said.strip() == repr(panel.to_frame()["text"].tolist())


def test_pictures_too_large_for_the_code_name_the_way_out() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8)
    panel = Playground([noise], prompt="Hm?", backend="echo")

    with pytest.raises(ConfigError, match=r"Call to_code\(folder='images'\)"):
        panel.to_code()


def test_the_saved_view_needs_no_kernel_and_is_bounded() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 300, 300, 3), dtype=np.uint8)
    panel = ResizeCompare(list(noise), heights=[280, 252, 224, 196, None], prompt="Hm?", backend="echo")
    panel.run()

    page = panel.to_html()
    assert "more images are not shown" in page
    assert len(page) < 700_000
    assert "Hm? " in page
    assert "<script" not in page
    assert "http" not in page


def test_more_pictures_than_fit_are_told() -> None:
    panel = Playground([gray(1)] * 30, backend="echo")

    assert "Showing the first 24 of 30 images" in panel.status_line.value


def test_a_wrong_column_or_option_is_told_at_once() -> None:
    with pytest.raises(ColumnNotFound, match="The frame has: 'image'"):
        Playground(pd.DataFrame({"image": [gray(1)]}), "picture")
    with pytest.raises(UnknownOption, match="Did you mean 'temperature'"):
        Playground(temprature=0.5)
    with pytest.raises(ConfigError, match=r"top_p=2\.0 is invalid"):
        Playground(top_p=2.0)


def test_without_ipywidgets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("qwenvl_kit.widgets")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)

    with pytest.raises(MissingExtra, match=r"pip install 'qwenvl_kit\[notebook\]'"):
        __import__("qwenvl_kit.widgets")


def test_prompts_are_compared_line_by_line_and_the_code_does_the_same() -> None:
    panel = PromptCompare([gray(1)], prompts=["What is it?", "Describe it."], backend="echo", progress=False)
    panel.lines_field.value += "\n\n  Is it red?  \nWhat is it?"
    panel.run()

    assert panel.to_frame()["prompt"].tolist() == ["What is it?", "Describe it.", "Is it red?"]
    assert [text.partition(" [")[0] for text in panel.to_frame()["text"]] == panel.to_frame()["prompt"].tolist()
    names: dict[str, Any] = {}
    exec(panel.to_code(), names)
    assert names["panel_answers"].frame["text"].tolist() == panel.to_frame()["text"].tolist()

    panel.lines_field.value = " \n"
    panel.run()
    assert "There is no prompt to try. Enter one per line" in panel.status_line.value


def test_models_are_compared_one_after_another() -> None:
    panel = ModelCompare([gray(1)], models=["echo", "echo-10ms"], prompt="Hm?", backend="echo")
    panel.run()

    assert panel.to_frame()["model_name"].tolist() == ["echo", "echo-10ms"]
    assert panel.to_frame()["same"].all()
