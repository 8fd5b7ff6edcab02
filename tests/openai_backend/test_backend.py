"""``backend="openai"``: a column of images, asked of a server."""

from __future__ import annotations

import base64
import io
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.openai_server import MODEL, State, expected, pixels_of, serve
from PIL import Image

from qwenvl_kit import Config, ConfigError, Control, OptionWarning, QwenVLError, RowErrorWarning
from qwenvl_kit.executors.daft_worker import Worker
from qwenvl_kit.executors.serialization import WorkItem
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.images import ImageLoader, Sizing, classify
from qwenvl_kit.operator import QwenVLImageUnderstanding
from qwenvl_kit.types import PatchGeometry

from .conftest import options


def image(level: int, height: int = 56, width: int = 84) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def images(n: int) -> list[np.ndarray]:
    return [image(level) for level in range(n)]


def run(state: State, cells: list[Any], **more: Any) -> pd.DataFrame:
    return pd.DataFrame({"image": cells}).vl.run("image", prompt="What?", **options(state, **more))


def noise(height: int, width: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# ---------------------------------------------------------------------- what is sent and what comes back


def test_every_row_has_the_answer_to_its_own_image(server: State) -> None:
    frame = run(server, images(40))

    assert frame["text"].tolist() == [expected("What?", one) for one in images(40)]
    assert frame["finish_reason"].eq("stop").all()
    assert frame["new_tokens"].eq(len(frame["text"][0].split(" "))).all()
    assert frame[["height", "width"]].to_numpy().tolist() == [[56, 84]] * 40


@pytest.mark.parametrize("size", [(56, 84), (300, 41), (1000, 700), (30, 4000)])
def test_the_server_gets_exactly_the_pixels_that_the_loader_sized(server: State, size: tuple[int, int]) -> None:
    data = noise(*size)
    run(server, [data], max_pixels=200_000)
    config = Config(max_pixels=200_000)
    sizing = Sizing.of(config.image, PatchGeometry())
    (source,) = classify(data)
    loaded = ImageLoader.of(config.fetch, sizing).load(source)

    (sent,) = pixels_of(server.bodies[0])

    assert np.array_equal(sent, loaded.pixels)
    assert sent.shape[0] % 28 == sent.shape[1] % 28 == 0


def test_jpeg_is_sent_on_request_and_stands_on_record(server: State) -> None:
    frame = run(server, [noise(56, 56)], image_encoding="jpeg")

    url = server.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")
    assert frame.attrs["effective"]["image_encoding"] == "jpeg"


def test_several_images_of_a_row_stand_in_order_before_the_text(server: State) -> None:
    frame = run(server, [[image(1), image(2, 84, 56), image(3)]])

    kinds = [part["type"] for part in server.bodies[0]["messages"][0]["content"]]
    assert kinds == ["image_url", "image_url", "image_url", "text"]
    assert frame["text"][0] == expected("What?", image(1), image(2, 84, 56), image(3))


def test_a_system_prompt_is_sent_only_if_it_is_given(server: State) -> None:
    run(server, [image(1)])
    run(server, [image(1)], system_prompt="Be brief.")

    assert [one["role"] for one in server.bodies[0]["messages"]] == ["user"]
    assert server.bodies[1]["messages"][0] == {"role": "system", "content": "Be brief."}


def test_greedy_search_is_temperature_zero_without_sampling_parameters(server: State) -> None:
    run(server, [image(1)], max_caption_length=9, extra_body={"min_p": 0.1})

    sent = {name: value for name, value in server.bodies[0].items() if name != "messages"}
    assert sent == {
        "model": MODEL,
        "max_tokens": 9,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "min_p": 0.1,
    }


def test_sampling_is_passed_whole_with_a_seed_of_each_row(server: State) -> None:
    run(server, [image(1), image(1)], do_sample=True, seed=3, temperature=0.5, top_k=None, repetition_penalty=1.2)

    first, second = server.bodies
    assert {name: first[name] for name in ("temperature", "top_p", "top_k", "repetition_penalty")} == {
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": -1,
        "repetition_penalty": 1.2,
    }
    assert first["seed"] != second["seed"]


def test_a_local_folder_gives_the_sizes_and_the_penalty_of_the_served_model(server: State) -> None:
    server.models.append({"id": "demo"})

    frame = run(server, [noise(400, 400)], model_name="demo")

    assert (frame["height"][0], frame["width"][0]) == (112, 112)  # of the embedded model's processor
    assert server.bodies[0]["repetition_penalty"] == 1.0


def test_an_image_that_the_server_sizes_once_more_is_noted(server: State) -> None:
    """Its rounded area is below the limit: 280×28 has 7840 pixels, and the embedded model wants 9408."""
    server.models.append({"id": "demo"})

    frame = run(server, [noise(393, 60), noise(400, 400)], model_name="demo")

    assert (frame["height"][0], frame["width"][0]) == (280, 28)
    (note,) = (one for one in frame.attrs["effective"]["notes"] if "once more" in one)
    assert "images of 1 rows once more, because their area is outside of its limits of 9408 to 14400 pixels" in note


def test_an_answer_that_reaches_the_limit_says_so(server: State) -> None:
    frame = run(server, [image(1)], max_caption_length=2)

    assert frame["finish_reason"].tolist() == ["length"]
    assert frame["text"][0] == "What? [84×56"


@pytest.mark.parametrize("fault", ["plain", ""])
def test_a_server_that_does_not_stream_is_understood(server: State, fault: str) -> None:
    server.faults = [fault]

    assert run(server, [image(1)])["text"][0] == expected("What?", image(1))


def test_logprobs_have_the_form_of_the_other_backends(server: State) -> None:
    frame = run(server, [image(1)], logprobs=2)

    tokens = frame["logprobs"][0]
    assert "".join(one["token"] for one in tokens) == frame["text"][0]
    assert tokens[-1]["token"] == ""  # the one that ended the answer
    assert {len(one["likeliest"]) for one in tokens} == {2}
    assert frame["logprob_mean"][0] == -0.5


def test_logprobs_that_a_server_does_not_send_are_noted(server: State) -> None:
    server.faults = ["no-logprobs"]

    frame = run(server, [image(1), image(2)], logprobs=0, rows_in_flight=1)

    assert sorted(frame["logprobs"].isna()) == [False, True]
    assert f"{server.url} sent no log-probabilities of 1 answers." in frame.attrs["effective"]["notes"]


def test_an_answer_that_repeats_a_phrase_is_flagged_and_can_be_stopped(server: State) -> None:
    server.faults = ["loop", "loop"]

    kept = run(server, [image(1)], max_caption_length=60)
    stopped = run(server, [image(1)], max_caption_length=60, stop_repetition=True)

    assert kept["flag"][0] == "repeats 'again ' to its end"
    assert (kept["finish_reason"][0], stopped["finish_reason"][0]) == ("length", "repetition")
    assert len(stopped["text"][0]) < len(kept["text"][0])


def test_half_a_character_breaks_no_file(server: State, tmp_path: Path) -> None:
    server.faults = ["surrogate"]

    frame = run(server, [image(1)], store=str(tmp_path / "answers.db"))

    assert "\ufffd" in frame["text"][0]
    frame["text"][0].encode()


# ---------------------------------------------------------------------- forms


def test_a_schema_goes_out_as_a_response_format_and_comes_back_as_columns(server: State) -> None:
    frame = pd.DataFrame({"image": [image(1)]}).vl.extract("image", {"count": int}, **options(server))

    sent = server.bodies[0]["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["schema"]["properties"]["count"]["type"] == "integer"
    assert frame["count"].tolist() == [3]


@pytest.mark.parametrize(
    ("form", "sent", "answer"),
    [
        ({"regex": r"\d+"}, {"regex": r"\d+"}, "12"),
        ({"choices": ["yes", "n.o"]}, {"choice": ["yes", "n.o"]}, "n.o"),
    ],
)
def test_other_forms_go_out_under_the_names_of_engines(
    server: State, form: dict[str, Any], sent: dict[str, Any], answer: str
) -> None:
    found = pd.DataFrame({"image": [image(1)]}).vl.ask("image", "How many are there?", **form, **options(server))

    assert server.bodies[0]["structured_outputs"] == sent
    assert server.bodies[0]["regex"] in (r"\d+", r"(yes|n\.o)")
    assert found.tolist() == [answer]


@pytest.mark.parametrize("form", [{"regex": r"\d+"}, {"choices": ["yes", "no"]}])
def test_a_form_that_a_server_ignores_is_the_rows_error(server: State, form: dict[str, Any]) -> None:
    server.ignores_constraints = True

    with pytest.warns(RowErrorWarning, match=r"does not match the (regex|list of choices): the server ignores it"):
        pd.DataFrame({"image": [image(1)]}).vl.ask("image", "How many are there?", **form, **options(server))


def test_a_form_that_a_server_refuses_is_the_rows_error_with_a_remedy(server: State) -> None:
    server.refuses = {"response_format": "transformers"}

    with pytest.warns(RowErrorWarning, match=r"Unexpected fields .*response_format.*constrain=False"):
        pd.DataFrame({"image": [image(1)]}).vl.extract("image", {"count": int}, **options(server))


def test_labels_are_refused_before_anything_is_sent(server: State) -> None:
    with pytest.raises(ConfigError, match=r"cannot score labels.*choices="):
        pd.DataFrame({"image": [image(1)]}).vl.classify("image", ["a", "b"], **options(server))

    assert server.headers == []


# ---------------------------------------------------------------------- parameters that a server refuses


@pytest.mark.parametrize("form", ["openai", "vllm", "fastapi", "transformers"])
def test_a_refused_option_is_told_once_and_left_out(server: State, form: str) -> None:
    server.refuses = {"repetition_penalty": form}

    with pytest.warns(OptionWarning, match=r"repetition_penalty=1\.5 is ignored .*refuses it") as told:
        frame = run(server, images(5), repetition_penalty=1.5)

    assert len(told) == 1
    assert frame["status"].eq("ok").all()
    assert not any("repetition_penalty" in body for body in server.bodies)
    assert frame.attrs["effective"]["repetition_penalty"] is None


def test_a_refused_option_is_an_error_under_strict(server: State) -> None:
    server.refuses = {"logprobs": "vllm", "top_logprobs": "vllm"}

    with pytest.raises(ConfigError, match=r"strict=True: logprobs=50 is ignored .*refuses it"):
        run(server, [image(1)], logprobs=50, strict=True)

    assert server.bodies == []


def test_a_refused_default_stands_on_record_without_a_warning(server: State) -> None:
    server.refuses = {"top_k": "openai", "stream_options": "openai"}

    frame = run(server, [image(1)], do_sample=True, seed=1)

    assert any(note.startswith("top_k=50 is ignored") for note in frame.attrs["effective"]["notes"])
    assert frame["new_tokens"].isna().all()  # which only stream_options brings


def test_a_server_that_renamed_the_length_gets_its_new_name(server: State) -> None:
    server.refuses = {"max_tokens": "openai"}

    run(server, [image(1)], max_caption_length=7)

    assert server.bodies[0]["max_completion_tokens"] == 7


def test_a_server_that_cannot_search_greedily_is_refused(server: State) -> None:
    server.refuses = {"temperature": "vllm"}

    with pytest.raises(ConfigError, match="refuses temperature=0, so it cannot search greedily"):
        run(server, [image(1)])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"num_beams": 3}, r"does not support beam search.*num_beams=1"),
        ({"extra_body": {"top_k": 3}}, "extra_body sets 'top_k', which is the option top_k"),
        ({"extra_body": {"stream": False}}, "extra_body sets 'stream', which qwenvl_kit sets itself"),
        ({"base_url": None}, "needs a server. Pass base_url="),
        ({"api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY of api_key_env is not set"),
    ],
)
def test_what_the_protocol_lacks_is_refused_before_anything_is_sent(
    server: State, more: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        run(server, [image(1)], **more)

    assert server.headers == []


def test_a_field_of_extra_body_that_a_server_refuses_is_an_error(server: State) -> None:
    server.refuses = {"min_p": "fastapi"}

    with pytest.raises(ConfigError, match="refuses 'min_p' of extra_body"):
        run(server, [image(1)], extra_body={"min_p": 0.1})


def test_options_of_loading_are_told_once(server: State) -> None:
    with pytest.warns(OptionWarning, match=r"dtype='float32' is ignored .*using the server's"):
        run(server, [image(1)], dtype="float32")


def test_options_of_a_server_are_told_on_other_backends() -> None:
    with pytest.warns(OptionWarning, match=r"base_url='http://h/v1' is ignored \(backend='echo' sends nothing"):
        pd.DataFrame({"image": [image(1)]}).vl.run("image", backend="echo", base_url="http://h/v1", progress=False)


# ---------------------------------------------------------------------- addresses instead of pixels


def test_addresses_are_handed_over_and_nothing_is_fetched(server: State) -> None:
    url = "http://pictures.example/a.png?signature=x"

    frame = run(server, [url], image_mode="url")

    assert server.bodies[0]["messages"][0]["content"][0]["image_url"]["url"] == url
    assert frame[["height", "width"]].isna().all(axis=None)
    assert frame.attrs["effective"]["image_mode"] == "url"


def test_a_data_url_is_handed_over_as_it_is(server: State) -> None:
    url = f"data:image/png;base64,{base64.b64encode(noise(56, 56)).decode()}"

    run(server, [url], image_mode="url")

    assert server.bodies[0]["messages"][0]["content"][0]["image_url"]["url"] == url


@pytest.mark.parametrize("cell", [image(1), "no-such-file.png", b"\x89PNG", "s3://bucket/a.png"])
def test_only_http_addresses_can_be_handed_over(server: State, cell: Any) -> None:
    with pytest.warns(RowErrorWarning, match="image_mode='url' sends http, https and data URLs only"):
        run(server, [cell], image_mode="url")

    assert server.bodies == []


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "0x7f.1", "localhost", "[::1]", "169.254.169.254"])
def test_blocked_hosts_are_not_handed_over(server: State, host: str) -> None:
    with pytest.warns(RowErrorWarning, match="is blocked"):
        run(server, [f"http://{host}/a.png"], image_mode="url", allow_private_hosts=False)

    assert server.bodies == []


def test_options_of_pixels_are_told_where_the_server_resizes(server: State) -> None:
    with pytest.warns(OptionWarning, match=r"max_pixels=9000 is ignored \(image_mode='url' leaves"):
        run(server, ["http://pictures.example/a.png"], image_mode="url", max_pixels=9000)


# ---------------------------------------------------------------------- runs


@pytest.mark.parametrize("n", [1, 4, 16])
def test_as_many_requests_are_in_flight_as_asked(server: State, n: int) -> None:
    server.piece_s = 0.01

    run(server, images(8 + 2 * n), rows_in_flight=n)

    assert n // 2 <= server.most_at_once <= n
    assert len(server.connections) <= n + 2  # kept alive; two are of the start


def test_auto_grows_and_says_how_far(server: State) -> None:
    server.piece_s = 0.005

    frame = run(server, images(100), rows_in_flight="auto")

    assert any(note.startswith("rows_in_flight='auto' grew to ") for note in frame.attrs["effective"]["notes"])
    assert server.most_at_once > 8


def test_pieces_are_heard_as_they_come_and_make_the_text(server: State) -> None:
    heard: dict[int, list[str]] = {}
    threads = set()

    def hear(row: int, text: str) -> None:
        heard.setdefault(row, []).append(text)
        threads.add(threading.get_ident())

    frame = run(server, images(5), control=Control(on_token=hear))

    assert ["".join(heard[row]) for row in range(5)] == frame["text"].tolist()
    assert len(heard[0]) > 1
    assert len(threads) == 1


def test_a_cut_stream_is_asked_again_without_repeating_what_was_heard(server: State) -> None:
    heard: list[str] = []
    server.faults = ["cut", "cut"]

    frame = run(server, [image(1)], control=Control(on_token=lambda _, text: heard.append(text)))

    assert len(server.bodies) == 3
    assert "".join(heard) == frame["text"][0] == expected("What?", image(1))


def test_a_cancelled_run_keeps_finished_rows_and_returns_soon(server: State) -> None:
    control = Control(on_result=lambda result: control.cancel.set())
    server.faults = ["", *["silent"] * 60]

    started = time.monotonic()
    frame = run(server, images(30), control=control, rows_in_flight=8)

    assert time.monotonic() - started < 10
    assert frame["status"].value_counts().to_dict() == {"ok": 1, "cancelled": 29}


def test_equal_rows_are_asked_once(server: State) -> None:
    frame = run(server, [image(1)] * 10)

    assert len(server.bodies) == 1
    assert frame["cached"].sum() == 9


def test_stored_answers_are_not_asked_again_wherever_the_server_moves(server: State, tmp_path: Path) -> None:
    store = str(tmp_path / "answers.db")
    first = run(server, images(5), store=store)
    with serve() as moved:
        second = run(moved, images(6), store=store)

        assert len(moved.bodies) == 1
    assert second["text"].tolist()[:5] == first["text"].tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"image_encoding": "jpeg"},
        {"extra_body": {"min_p": 0.1}},
        {"image_mode": "url"},
        {"repetition_penalty": 1.3},
    ],
)
def test_what_changes_answers_changes_their_key(server: State, tmp_path: Path, change: dict[str, Any]) -> None:
    store = str(tmp_path / "answers.db")
    cell = "http://127.0.0.1:9/a.png" if "image_mode" in change else image(1)
    if "image_mode" not in change:
        run(server, [cell], store=store)

    run(server, [cell], store=store, **change)
    n_asked = len(server.bodies)
    run(server, [cell], store=store, **change)

    assert n_asked == len(server.bodies)
    assert server.bodies[-1].get("min_p") == change.get("extra_body", {}).get("min_p")


def test_a_model_of_another_root_has_answers_of_its_own(server: State, tmp_path: Path) -> None:
    store = str(tmp_path / "answers.db")
    run(server, [image(1)], store=store)
    server.models = [{"id": MODEL, "root": "/another"}]

    run(server, [image(1)], store=store)

    assert len(server.bodies) == 2


def test_the_operator_asks_a_server_too(server: State) -> None:
    understand = QwenVLImageUnderstanding(**options(server, image_src_type="auto", prompt="What?"))

    assert understand([image(1), None]) == [expected("What?", image(1)), None]


def test_a_comparison_asks_a_server_beside_another_backend(server: State) -> None:
    given = options(server)
    del given["backend"]
    with pytest.warns(OptionWarning, match="base_url"):
        found = pd.DataFrame({"image": [image(1)]}).vl.compare(
            "image", vary={"backend": ["openai", "echo"]}, prompt="What?", **given
        )

    assert len(found.summary()) == 2


def test_boxes_stand_in_pixels_of_the_original(server: State) -> None:
    server.answer = '[{"bbox_2d": [14, 14, 28, 28], "label": "cat"}]'

    found = pd.DataFrame({"image": [image(1, 112, 112)]}).vl.detect(
        "image", ["cat"], **options(server, resized_height=56, resized_width=56)
    )

    assert found[["x0", "y0", "x1", "y1"]].to_numpy().tolist() == [[28, 28, 56, 56]]


def test_each_row_bounds_its_coordinates_by_the_image_that_it_sends(server: State) -> None:
    server.answer = "[]"
    cells = [image(1, 112, 84), image(2, 56, 224), [image(3)] * 2]
    with pytest.warns(RowErrorWarning, match="The row has 2 images"):
        pd.DataFrame({"image": cells}).vl.detect("image", ["{width}"], constrain=True, **options(server))

    assert len(server.bodies) == 2
    for body in server.bodies:
        height, width = pixels_of(body)[0].shape[:2]
        fields = body["response_format"]["json_schema"]["schema"]["items"]["properties"]
        assert [one["maximum"] for one in fields["bbox_2d"]["prefixItems"]] == [width, height] * 2
        assert fields["label"] == {"enum": ["{width}"]}


def test_boxes_need_the_sizes_of_images(server: State) -> None:
    with pytest.raises(ConfigError, match="image_mode='url' leaves the sizes of images unknown"):
        pd.DataFrame({"image": ["http://h/a.png"]}).vl.detect("image", ["cat"], **options(server, image_mode="url"))


def test_a_worker_of_daft_asks_the_server(server: State) -> None:
    worker = pickle.loads(pickle.dumps(Worker(Config(**options(server)))))

    (answer,) = worker.answer([WorkItem(image(1), ("What?", "Where?")).pack()])

    assert [one["text"] for one in answer["results"]] == [expected("What?", image(1)), expected("Where?", image(1))]


@pytest.fixture
def marked(server: State, monkeypatch: pytest.MonkeyPatch) -> State:
    server.key = "sk-marked-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    return server


def test_no_output_holds_the_key(
    marked: State, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Store, logs, records, errors, warnings, pickles and texts of every object of a run."""
    key = marked.key or ""
    caplog.set_level(0)
    marked.faults = ["", "echo-key", "503", "cut", "html", "elsewhere"]
    store, told = tmp_path / "answers.db", []
    config = Config(**options(marked, store=str(store)))
    with pytest.warns(RowErrorWarning) as warned:
        frame = run(marked, images(8), store=str(store), logprobs=1)
    told += [str(one.message) for one in warned]
    spec = make_spec(config)
    monkeypatch.setenv("OPENAI_API_KEY", f"{key}-wrong")
    with pytest.raises(QwenVLError) as refused:
        make_spec(config)
    monkeypatch.setenv("OPENAI_API_KEY", f"{key}\n{key}")
    with pytest.raises(ConfigError) as unusable:
        make_spec(config)
    told += [str(refused.value), str(unusable.value), repr(refused.value), repr(unusable.value)]

    assert all(header.get("Authorization", "").startswith("Bearer ") for header in marked.headers)
    assert frame["error"].str.contains(r"Bearer \*\*\*").any()
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    pickled = pickle.dumps([config, spec, spec.resolved, refused.value, unusable.value])
    texts = [*told, repr([config, spec, spec.load()]), caplog.text, frame.to_csv(), repr(frame.attrs)]
    assert key.encode() not in written
    assert key.encode() not in pickled
    assert [text for text in texts if key in text] == []
