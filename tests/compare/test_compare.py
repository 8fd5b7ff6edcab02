"""``df.vl.compare``: every setting on every picture, each model loaded once, what is done is never lost."""

from __future__ import annotations

import dataclasses
import http.server
import io
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from helpers.fake_backends import gray
from PIL import Image

import qwenvl_kit
from qwenvl_kit import BackendFailed, ConfigError, Control, Result, RowErrors, RowErrorWarning
from qwenvl_kit.demo import WORLD, caption, draw, sample_scenes
from qwenvl_kit.inference import echo

ECHO: dict[str, Any] = {"backend": "echo", "progress": False}
DEMO: dict[str, Any] = {
    "model_name": "demo",
    "use_flash_attention_2": False,
    "progress": False,
    "min_pixels": 28 * 28,
    "max_pixels": 10**6,
}


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({"image": [gray(1), gray(2), None]}, index=["x", "y", "y"])


@pytest.fixture(scope="module")
def scenes() -> pd.DataFrame:
    found = sample_scenes(4, seed=3, world=WORLD)
    return pd.DataFrame({"image": [draw(s) for s in found], "truth": [caption(s, "zh") for s in found]})


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The dtypes of the models that are loaded, in turn."""
    from qwenvl_kit.torch_backend.backend import TorchBackend, TorchSpec

    seen: list[str] = []
    load = TorchSpec.load

    def counted(spec: TorchSpec, *given: Any) -> TorchBackend:
        seen.append(spec.resolved.dtype)
        return load(spec, *given)

    qwenvl_kit.unload()
    monkeypatch.setattr(TorchSpec, "load", counted)
    return seen


def test_there_is_one_row_per_picture_setting_and_repeat(frame: pd.DataFrame) -> None:
    found = frame.vl.compare(
        "image", vary={"resized_height": [56, 112], "max_caption_length": [1, 9]}, repeats=2, **ECHO
    )

    assert found.complete
    assert len(found.frame) == 3 * 4 * 2
    counts = Counter(found.frame[["resized_height", "max_caption_length", "repeat", "row"]].itertuples(index=False))
    assert set(counts.values()) == {1}
    assert found.frame["label"].tolist()[:3] == ["x", "y", "y"]
    assert found.frame.loc[found.frame["row"] == 2, "status"].eq("null_image").all()
    seen = found.frame[found.frame["status"] == "ok"].groupby("resized_height")["visual_tokens"].unique()
    assert seen.map(list).to_dict() == {56: [4], 112: [16]}


@pytest.mark.model
def test_each_dtype_is_loaded_once_however_large_the_grid(scenes: pd.DataFrame, loads: list[str]) -> None:
    vary = {"temperature": [0.5, 1.5], "dtype": ["float32", "bfloat16", "float16"], "resized_height": [56, 112]}
    found = scenes.vl.compare("image", vary=vary, do_sample=True, seed=0, max_caption_length=4, **DEMO)

    assert loads == ["float32", "bfloat16", "float16"]
    assert [load["dtype"] for load in found.record["loads"]] == loads
    assert len(found.frame) == 4 * 12
    assert found.frame["temperature"].tolist() == [0.5] * 24 + [1.5] * 24  # in the order of the grid, not of the loads


@pytest.mark.model
def test_answers_are_those_of_a_plain_call_with_the_same_settings(scenes: pd.DataFrame) -> None:
    sampling = {**DEMO, "dtype": "float32", "do_sample": True, "temperature": 2.0, "max_caption_length": 12}
    found = scenes.vl.compare("image", vary={"resized_height": [84, 112]}, repeats=2, seed=5, **sampling).frame

    picked = found[(found["resized_height"] == 84) & (found["repeat"] == 1)]
    assert picked["seed"].tolist() == [6] * 4
    assert picked["text"].tolist() == scenes.vl.caption("image", seed=6, resized_height=84, **sampling).tolist()
    assert found["text"].nunique() > 4


@pytest.mark.model
def test_agreement_is_with_the_reference_and_with_the_truth(scenes: pd.DataFrame) -> None:
    found = scenes.vl.compare(
        "image", vary={"resized_height": [28, 112]}, reference={"resized_height": 112}, truth="truth", **DEMO
    )

    kept, lost = found.frame[found.frame["resized_height"] == 112], found.frame[found.frame["resized_height"] == 28]
    assert kept["same"].all()
    assert (kept["chrf"] == 100).all()
    assert (kept["token_edits"] == 0).all()
    assert not lost["same"].any()
    assert (lost["token_edits"] > 0).all()
    assert (kept["right"] == (kept["text"] == kept["truth"])).all()
    assert kept["right"].sum() > lost["right"].sum()
    summary = found.summary()
    assert summary.index.tolist() == [28, 112]
    assert "<table" in found._repr_html_()  # shown by itself at the end of a cell
    assert found.record["settings"]["resized_height=28"]["resized_height"] == 28
    assert summary["right"].tolist() == [lost["right"].mean(), kept["right"].mean()]


def test_prompts_can_vary_and_a_column_of_prompts_serves_all_settings(frame: pd.DataFrame) -> None:
    varied = frame.vl.compare("image", vary={"prompt": ["One?", "Two?"]}, **ECHO).frame
    frame["ask"] = ["a?", None, "c?"]
    column = frame.vl.compare("image", vary={"batch_size": [1, 2]}, prompts="ask", prompt="b?", **ECHO).frame

    assert varied["text"].str[:4].tolist()[::3] == ["One?", "Two?"]
    assert column["text"].str[:2].dropna().tolist() == ["a?", "b?"] * 2
    with pytest.raises(ConfigError, match=r"prompts and vary\['prompt'\] exclude each other"):
        frame.vl.compare("image", vary={"prompt": ["One?"]}, prompts="ask", **ECHO)


@pytest.mark.model
def test_labels_are_compared_as_classify_chooses_them(scenes: pd.DataFrame) -> None:
    labels, asked = ["Yes.", "No, there is none."], {**DEMO, "dtype": "float32", "prompt": "Is there a circle?"}
    truth = ["Yes.", None, "No, there is none.", "Yes."]
    found = scenes.vl.compare(
        "image", vary={"resized_height": [56, 112]}, labels=labels, normalize="length", truth=truth, **asked
    )

    for height, part in found.frame.groupby("resized_height"):
        alone = scenes.vl.classify("image", labels, normalize="length", resized_height=height, **asked)
        assert part["text"].tolist() == alone["label"].tolist()
        assert part["probability"].tolist() == pytest.approx(alone["probability"].tolist(), abs=1e-5)
        right = part["text"] == part["truth"]
        assert part["right"].isna().tolist() == [False, True, False, False]
        wanted = ((part["probability"] - right) ** 2).drop(part.index[1])
        assert part["brier"].dropna().tolist() == pytest.approx(wanted.tolist())
    assert found.summary()["ece"].between(0, 1).all()
    assert found.reliability()["n"].sum() == 6


@pytest.mark.model
def test_free_answers_have_the_probability_of_their_tokens(scenes: pd.DataFrame) -> None:
    asked = {**DEMO, "dtype": "float32", "max_caption_length": 6, "prompt": "How many objects are there?"}
    found = scenes.vl.compare("image", vary={"resized_height": [56, 112]}, truth=["Two."] * 4, logprobs=0, **asked)

    alone = scenes.vl.run("image", resized_height=112, logprobs=0, **asked)
    part = found.frame[found.frame["resized_height"] == 112]
    assert part["logprob_sum"].tolist() == pytest.approx(alone["logprob_sum"].tolist(), abs=1e-4)
    assert part["probability"].tolist() == pytest.approx(np.exp(part["logprob_sum"]).tolist())
    assert {"brier", "ece"} <= set(found.summary().columns)
    assert "probability" not in scenes.vl.compare("image", vary={"resized_height": [56]}, **asked).frame


@pytest.mark.model
def test_prompts_vary_beside_labels_and_a_row_without_labels_is_an_error(scenes: pd.DataFrame) -> None:
    tags = scenes.assign(tags=[["Yes.", "No."], None, ["One.", "Two.", "Three."], ["Yes.", "No."]])
    vary = {"prompt": ["Is there a circle?", "Is there a star?"]}
    with pytest.warns(RowErrorWarning, match="The row has no labels"):
        found = tags.vl.compare("image", vary=vary, labels="tags", dtype="float32", **DEMO).frame

    assert found["status"].tolist() == ["ok", "error", "ok", "ok"] * 2
    assert found["probability"].isna().tolist() == [False, True, False, False] * 2
    assert found["text"].isna().tolist() == [False, True, False, False] * 2
    assert found["probability"].iloc[0] != found["probability"].iloc[4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vary": {"num_beams": [1, 4]}}, r"vary\['num_beams'\] has no effect with labels"),
        ({"vary": {"dtype": ["float32"]}, "num_beams": 4}, "num_beams=4 changes generated answers only"),
        ({"vary": {"backend": ["torch", "echo"]}}, "backend='echo' has no model to score labels with"),
        ({"vary": {"dtype": ["float32"]}, "normalize": "tokens"}, "normalize must be 'sum' or 'length'"),
    ],
)
def test_what_cannot_concern_labels_is_refused(frame: pd.DataFrame, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        frame.vl.compare("image", labels=["Yes.", "No."], progress=False, **options)


def test_an_engine_elsewhere_is_refused_instead_of_left_out(frame: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match=r"engine='ray' is not supported in comparisons.*Use engine='local'"):
        frame.vl.compare("image", vary={"batch_size": [1, 2]}, engine="ray", **ECHO)


@pytest.mark.parametrize("repeats", [0, True, 1.5])
def test_repeats_that_are_no_count_are_refused(frame: pd.DataFrame, repeats: Any) -> None:
    with pytest.raises(ConfigError, match=r"repeats=.* is invalid. It must be an integer of at least 1"):
        frame.vl.compare("image", vary={"batch_size": [1]}, repeats=repeats, **ECHO)


def test_a_truth_of_another_length_or_index_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match="2 entries for 3 rows"):
        frame.vl.compare("image", vary={"batch_size": [1]}, truth=["a", "b"], **ECHO)
    with pytest.raises(ConfigError, match="index of truth differs"):
        frame.vl.compare("image", vary={"batch_size": [1]}, truth=pd.Series(["a", "b", "c"]), **ECHO)


def test_a_cancelled_grid_returns_what_is_done(frame: pd.DataFrame) -> None:
    control = Control()
    seen: list[Result] = []

    def stop_after_four(result: Result) -> None:
        seen.append(result)
        if len(seen) == 4:
            control.cancel.set()

    listening = dataclasses.replace(control, on_result=stop_after_four)
    found = frame.vl.compare("image", vary={"max_caption_length": [1, 2, 3]}, control=listening, **ECHO)

    assert not found.complete
    assert 4 <= len(found.frame) < 9
    assert found.frame["max_caption_length"].max() == 2
    assert set(found.frame["status"]) <= {"ok", "null_image"}
    assert len(qwenvl_kit.last_run()) == len(found.frame)


INTERRUPTED = """
import dataclasses, signal, pandas as pd, numpy as np, qwenvl_kit
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what a shell runs in the background
from qwenvl_kit.inference import echo
slow = echo.spec
echo.spec = lambda config: dataclasses.replace(slow(config), seconds_per_batch=0.05)
told = qwenvl_kit.Control(on_result=lambda result: print(result.row, flush=True))
df = pd.DataFrame({"image": [np.full((56, 56, 3), n, dtype=np.uint8) for n in range(10)]})
try:
    df.vl.compare("image", vary={"max_caption_length": list(range(1, 41))}, backend="echo", batch_size=1,
                  progress=False, control=told)
except KeyboardInterrupt as error:
    print("interrupted", len(error.results.frame), error.results.complete, len(qwenvl_kit.last_run()), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent as a POSIX signal here")
def test_ctrl_c_ends_the_whole_grid_and_hands_over_what_is_done() -> None:
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(15):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    told = process.communicate(timeout=60)[0].splitlines()[-1].split()

    assert told[0] == "interrupted"
    assert 14 <= int(told[1]) == int(told[3]) < 400
    assert told[2] == "False"


def test_a_bad_picture_is_an_error_in_every_setting_and_warned_of_once(frame: pd.DataFrame) -> None:
    frame["image"] = [gray(1), b"no picture", None]
    with pytest.warns(RowErrorWarning, match=r"2 of 6 rows failed \(decode: 2\)") as caught:
        found = frame.vl.compare("image", vary={"resized_height": [56, 112]}, **ECHO)

    assert len(caught) == 1
    assert found.frame["status"].tolist() == ["ok", "error", "null_image"] * 2
    assert found.summary()["errors"].tolist() == [1, 1]
    with pytest.raises(RowErrors) as raised:
        frame.vl.compare("image", vary={"resized_height": [56, 112]}, on_error="raise", **ECHO)
    assert len(raised.value.results.frame) == 6


def test_a_backend_that_breaks_hands_over_the_settings_that_were_done(
    frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = echo.Echo.generate

    def broken(self: Any, queue: Any, resolved: Any, control: Any) -> Iterator[Result]:
        if resolved.resized_height == 112:
            raise RuntimeError("no such size here")
        return generate(self, queue, resolved, control)

    monkeypatch.setattr(echo.Echo, "generate", broken)
    with pytest.raises(BackendFailed, match="no such size here") as caught:
        frame.vl.compare("image", vary={"resized_height": [56, 112, 168]}, **ECHO)
    assert (caught.value.results.frame["status"] == "ok").sum() == 2
    assert caught.value.results.frame["resized_height"].max() == 112


def test_a_picture_behind_an_address_is_fetched_once_for_the_whole_grid() -> None:
    asked: list[str] = []
    file = io.BytesIO()
    Image.fromarray(gray(9)).save(file, "PNG")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(file.getvalue() if self.path == "/good.png" else b"rubbish")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        df = pd.DataFrame({"image": [f"{base}/good.png", f"{base}/bad.png"]})
        with pytest.warns(RowErrorWarning, match="bad.png"):  # the address stands in the message, not our own dress
            found = df.vl.compare("image", vary={"resized_height": [56, 112, 168]}, **ECHO)
        server.shutdown()

    assert found.frame["status"].tolist() == ["ok", "error"] * 3
    assert asked.count("/good.png") == 1


@pytest.mark.model
def test_an_empty_frame_gives_a_typed_frame_and_loads_nothing(loads: list[str]) -> None:
    found = pd.DataFrame({"image": pd.Series(dtype=object)}).vl.compare("image", vary={"dtype": ["float32"]}, **DEMO)

    assert len(found.frame) == 0
    assert {"dtype", "text", "same", "chrf", "visual_tokens"} <= set(found.frame.columns)
    assert loads == []


@pytest.mark.model
def test_the_plot_has_a_point_per_setting_and_bars_over_repeats(scenes: pd.DataFrame) -> None:
    mpl.use("Agg")
    found = scenes.vl.compare(
        "image",
        vary={"resized_height": [56, 112], "temperature": [0.5, 2.0]},
        truth="truth",
        repeats=2,
        do_sample=True,
        seed=0,
        max_caption_length=8,
        dtype="float32",
        **DEMO,
    )
    axes = found.plot("truth_chrf", cost="visual_tokens")

    assert len(axes.get_legend().get_texts()) == 2  # a line per height, a point per temperature
    drawn = sorted(float(y) for line in axes.get_lines() if line.get_marker() in "os" for y in line.get_ydata())
    wanted = sorted(found.frame.groupby(["resized_height", "temperature"])["truth_chrf"].mean().astype(float))
    assert drawn == pytest.approx(wanted)
    with pytest.raises(ConfigError, match=r"'text' is not a numeric measure of this comparison\. Use one of: right"):
        found.plot("text")
    mpl.pyplot.close("all")
