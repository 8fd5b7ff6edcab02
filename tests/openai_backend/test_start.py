"""What is wrong with a server is told before any row, with its remedy."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pandas as pd
import pytest
from helpers.openai_server import MODEL, State, serve
from PIL import Image

from qwenvl_kit import Config, ConfigError, ModelNotFound, QwenVLError, ServerError
from qwenvl_kit.cli import doctor, main

from .conftest import options
from .test_backend import image


def start(state: State, **more: Any) -> QwenVLError:
    with pytest.raises(QwenVLError) as caught:
        pd.DataFrame({"image": [image(1)]}).vl.run("image", **options(state, **more))
    assert state.bodies == []
    return caught.value


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = start(State(port=unused.getsockname()[1]))

    assert isinstance(error, ServerError)
    assert "No server answers at http://127.0.0.1:" in str(error)
    assert str(error).endswith("(Connection refused). Start it, or check host and port of base_url.")


def test_a_host_that_has_no_address(server: State) -> None:
    error = start(server, base_url="http://no-such-host.invalid/v1")

    assert isinstance(error, ServerError)
    assert "No server answers at http://no-such-host.invalid/v1" in str(error)


def test_a_model_that_is_not_there_is_told_with_those_that_are(server: State) -> None:
    server.models.append({"id": "other/model"})

    error = start(server, model_name="served/qwem")

    assert isinstance(error, ModelNotFound)
    assert "serves no model_name='served/qwem'. It serves: 'served/qwen', 'other/model'." in str(error)
    assert str(error).endswith("Pass model_name='served/qwen'.")


def test_a_list_of_many_models_is_cut_and_cleaned(server: State) -> None:
    server.models = [{"id": f"model {n} \x1b[31m{'x' * 300}"} for n in range(500)]

    error = start(server)

    assert "and 480 more" in str(error)
    assert len(str(error)) < 3500
    assert "\x1b" not in str(error)


def test_a_url_without_v1_is_told_with_the_right_one(server: State) -> None:
    error = start(server, base_url=server.url.removesuffix("/v1"))

    assert isinstance(error, ServerError)
    assert str(error).endswith(f"Pass base_url={server.url!r}.")


@pytest.mark.parametrize(
    ("lists", "told"),
    [
        ("nothing", "has no OpenAI-compatible API (HTTP status 404)"),
        ("html", "answered with a web page. Check base_url, which ends with /v1 for most servers."),
        ("other", "answered with no JSON object"),
    ],
)
def test_a_server_that_speaks_another_protocol(server: State, lists: str, told: str) -> None:
    server.lists = lists

    error = start(server)

    assert isinstance(error, ServerError)
    assert told in str(error)


def test_a_server_that_speaks_no_http() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)

        def greet() -> None:
            accepted, _ = listening.accept()
            with accepted:
                accepted.sendall(b"220 mail.example ESMTP\r\n")
                accepted.recv(1024)

        threading.Thread(target=greet, daemon=True).start()
        error = start(State(port=listening.getsockname()[1]))

    assert isinstance(error, ServerError)
    assert "does not speak HTTP. Check host, port and scheme." in str(error)


def test_neither_the_request_nor_the_key_follow_a_redirect(server: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-marked-0123456789")
    with serve() as elsewhere:
        server.elsewhere = elsewhere.url
        server.lists = "elsewhere"

        error = start(server)

        assert elsewhere.headers == []
    assert isinstance(error, ServerError)
    assert f"redirects to http://127.0.0.1:{elsewhere.port}, which neither the request nor the key follow" in str(error)


def test_a_missing_key_names_the_variable(server: State) -> None:
    server.key = "sk-marked-0123456789"

    error = start(server)

    assert isinstance(error, ServerError)
    assert "asks for a key, which belongs into the environment variable OPENAI_API_KEY (HTTP status 401)" in str(error)


def test_a_wrong_key_is_told_without_it(server: State, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "sk-marked-0123456789"
    monkeypatch.setenv("MY_KEY", "sk-wrong-0123456789")

    error = start(server, api_key_env="MY_KEY")

    assert "refuses the key of the environment variable MY_KEY" in str(error)
    assert "sk-wrong" not in str(error)


def test_a_key_of_several_lines_is_told_without_it(server: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-marked\r\nX-Evil: 1")

    error = start(server)

    assert isinstance(error, ConfigError)
    assert "contains line breaks" in str(error)
    assert "marked" not in str(error)


def test_a_certificate_that_nobody_knows(tls_server: State) -> None:
    error = start(tls_server)

    assert isinstance(error, ServerError)
    assert "The certificate of https://localhost:" in str(error)
    assert "SSL_CERT_FILE" in str(error)


def test_a_certificate_of_another_name(tls_server: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_server.certificate))

    error = start(tls_server, base_url=tls_server.url.replace("localhost", "127.0.0.1"))

    assert "is not accepted" in str(error)


def test_a_certificate_that_is_known_is_enough(tls_server: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_server.certificate))

    frame = pd.DataFrame({"image": [image(1)]}).vl.run("image", **options(tls_server))

    assert frame["status"].tolist() == ["ok"]


def test_https_of_a_server_without_it(server: State) -> None:
    error = start(server, base_url=server.url.replace("http:", "https:"))

    assert isinstance(error, ServerError)
    assert "For a server without TLS, base_url begins with http://." in str(error)


def test_a_model_that_takes_no_image_is_told_before_any_row(server: State) -> None:
    server.refuses = {"messages": "vllm"}

    error = start(server)

    assert isinstance(error, ConfigError | ServerError)
    assert "messages is too large" in str(error)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v1",
        "ftp://h/v1",
        "http://",
        "http://me:secret-password@h/v1",
        "http://h/v1?key=secret-password",
        "http://h/v1#x",
        "http://h:99999/v1",
        "http://h:0/v1",
        "http://h/v1\r\nHost: evil",
        "http://[::1/v1",
        7,
    ],
)
def test_an_address_that_is_none_is_refused_without_its_password(url: Any) -> None:
    with pytest.raises(ConfigError, match=r"base_url is invalid\. Use an http or https URL") as caught:
        Config(base_url=url)

    assert "secret-password" not in str(caught.value)


def test_a_key_in_the_place_of_its_variables_name_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"api_key_env is invalid") as caught:
        Config(api_key_env="sk-marked-0123456789")

    assert "marked" not in str(caught.value)


def test_the_doctor_asks_the_server(
    server: State, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_machine", tuple)  # which imports torch
    given = ["--backend", "openai", "--base-url", server.url, "--model-name", MODEL]

    assert main(["doctor", *given]) == 0
    assert "the server answers" in capsys.readouterr().out

    server.lists = "html"
    assert main(["doctor", *given]) == 1
    assert "a web page" in capsys.readouterr().out


def test_the_command_line_asks_a_server(server: State, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (60, 60), "red").save(tmp_path / "a.png")
    out = tmp_path / "answers.csv"
    given = ["--backend", "openai", "--base-url", server.url, "--model-name", MODEL, "--no-progress"]

    assert main(["caption", str(tmp_path), "--out", str(out), "--extra-body", '{"min_p": 0.1}', *given]) == 0

    assert server.bodies[0]["min_p"] == 0.1
    assert "56×56" in out.read_text(encoding="utf-8")
