"""Stores of objects: what is read through their real clients, from stand-ins on this machine, and what is told."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.fake_servers import ACCESS_KEY, S3, SECRET_KEY, TOKEN, Tos, serve_hub, serve_s3, serve_tos

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.classify import classify
from qwenvl_kit.images.fetch import FetchLimits, fetch, tos

LIMITS = FetchLimits(timeout_s=20, max_image_bytes=1000, allow_private_hosts=True)
STRICT = FetchLimits(timeout_s=20, max_image_bytes=1000, allow_private_hosts=False)
OBJECTS = {"a.png": b"data", "图 片/b+c%20.png": b"more", "large.png": bytes(200_000), "empty.png": b""}
# moto and the SDK of TOS use what newer Pythons call deprecated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("AWS_", "TOS_", "VOLC", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # the client would ask the network for keys
    yield
    tos.close_idle_connections()
    _forget_s3()


def _forget_s3() -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tos]:
    with serve_tos(OBJECTS, {"public.png": b"open"}) as state:
        for name, value in state.environment.items():
            monkeypatch.setenv(name, value)
        yield state


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3]:
    with serve_s3("bucket", {**OBJECTS, "public.png": b"open"}) as state:
        yield state


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


READ = """
import sys
from qwenvl_kit.errors import RowError
from qwenvl_kit.images.fetch import FetchLimits, fetch
from qwenvl_kit.images.classify import classify
(source,) = classify(sys.argv[1], "image_url")
try:
    print(fetch(source, FetchLimits(60, 1000, True)).data, end="")
except RowError as error:
    print(error.message, end="")
"""


def read(address: str, limits: FetchLimits = LIMITS) -> bytes:
    (source,) = classify(address, "image_url")
    return fetch(source, limits).data


def read_in_a_process(address: str) -> str:
    """For clients that look at the environment when they are imported."""
    command = [sys.executable, "-c", READ, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def error_message(address: str, limits: FetchLimits = LIMITS) -> str:
    with pytest.raises(RowError) as caught:
        read(address, limits)
    assert caught.value.stage == "fetch"
    for secret in (SECRET_KEY, TOKEN, "Signature="):
        assert secret not in caught.value.message
    return caught.value.message


# ------------------------------------------------------------------ TOS


@pytest.mark.parametrize("limits", [LIMITS, STRICT], ids=["any", "no-private-hosts"])
def test_an_object_of_tos_is_read_with_a_signed_request(store: Tos, limits: FetchLimits) -> None:
    assert read("tos://bucket/a.png", limits) == b"data"
    assert read("TOS://bucket/图 片/b+c%20.png", limits) == b"more"
    assert store.paths == ["a.png", "图 片/b+c%20.png"]
    assert len(store.connections) == 1, "connections are kept for the next image"


def test_the_hosts_name_holds_the_bucket_at_toss_own_endpoints(store: Tos, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **options: real("127.0.0.1", *rest, **options))
    monkeypatch.setenv("TOS_ENDPOINT", f"http://tos-cn-test.volces.com:{store.port}")
    monkeypatch.delenv("TOS_REGION")

    assert read("tos://bucket/a.png") == b"data"
    assert store.hosts == [f"bucket.tos-cn-test.volces.com:{store.port}"] or store.hosts == [
        "bucket.tos-cn-test.volces.com"
    ]


def test_temporary_keys_are_sent_with_their_token(store: Tos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOS_SECURITY_TOKEN", TOKEN)

    assert read("tos://bucket/a.png") == b"data"
    assert store.tokens == [TOKEN]


@pytest.mark.parametrize(
    "names",
    [
        ("TOS_ACCESS_KEY_ID", "TOS_SECRET_ACCESS_KEY"),
        ("VOLCENGINE_ACCESS_KEY", "VOLCENGINE_SECRET_KEY"),
        ("VOLC_ACCESSKEY", "VOLC_SECRETKEY"),
    ],
)
def test_keys_are_found_under_their_other_names(
    store: Tos, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TOS_ACCESS_KEY", "TOS_SECRET_KEY"):
        monkeypatch.delenv(name)
    for name, value in zip(names, (ACCESS_KEY, SECRET_KEY), strict=True):
        monkeypatch.setenv(name, value)

    assert read("tos://bucket/a.png") == b"data"


def test_public_buckets_need_no_keys_and_others_say_what_to_set(store: Tos, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOS_ACCESS_KEY", "TOS_SECRET_KEY"):
        monkeypatch.delenv(name)

    assert read("tos://bucket/public.png") == b"open"
    assert "without credentials; set TOS_ACCESS_KEY, TOS_SECRET_KEY" in error_message("tos://bucket/a.png")


def test_wrong_keys_are_told_without_being_repeated(store: Tos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOS_SECRET_KEY", "wrongwrong")

    message = error_message("tos://bucket/a.png")

    assert message == "tos://bucket/a.png: Cannot read the image: access denied (SignatureDoesNotMatch)."


@pytest.mark.parametrize("faults", [["503"], ["short"], ["short", "503", "short"]])
def test_busy_answers_and_those_cut_short_are_asked_for_again(store: Tos, faults: list[str]) -> None:
    store.faults.extend(faults)

    assert read("tos://bucket/a.png") == b"data"
    assert len(store.paths) == len(faults) + 1


def test_what_stays_cut_short_is_no_image(store: Tos) -> None:
    store.faults.extend(["short"] * 4)

    assert "not whole" in error_message("tos://bucket/a.png")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tos://bucket/none.png", "not found (NoSuchKey)"),
        ("tos://bucket", "names no object"),
        ("tos:///a.png", "names no object"),
        ("tos://bucket/large.png", "exceeds max_image_bytes=1000"),
    ],
)
def test_what_tos_does_not_give_is_told(store: Tos, address: str, reason: str) -> None:
    assert reason in error_message(address)
    assert read("tos://bucket/a.png") == b"data", "and does not spoil the next"


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "set TOS_ACCESS_KEY, TOS_SECRET_KEY and TOS_REGION"),
        ({"TOS_ACCESS_KEY": "a", "TOS_SECRET_KEY": "s"}, "TOS_REGION"),
        ({"TOS_REGION": "cn-x", "TOS_ACCESS_KEY": "a"}, "TOS_SECRET_KEY"),
        ({"TOS_ENDPOINT": "img.example.org", "TOS_ACCESS_KEY": "a", "TOS_SECRET_KEY": "s"}, "no region"),
        ({"TOS_ENDPOINT": "https://tos-s3-cn-x.volces.com"}, "Set it to https://tos-cn-x.volces.com"),
    ],
)
def test_an_environment_that_says_too_little_is_told_what_to_set(environment: dict[str, str], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        tos.settings_of(environment)
    assert reason in caught.value.message


@pytest.mark.parametrize(
    ("given", "endpoint", "region", "is_custom"),
    [
        ({"TOS_REGION": "cn-x"}, "https://tos-cn-x.volces.com", "cn-x", False),
        ({"TOS_ENDPOINT": "tos-cn-x.ivolces.com"}, "https://tos-cn-x.ivolces.com", "cn-x", False),
        ({"TOS_ENDPOINT": "http://tos-cn-x.volces.com/"}, "http://tos-cn-x.volces.com", "cn-x", False),
        ({"TOS_ENDPOINT": "https://me:pw@img.example.org", "TOS_REGION": "y"}, "https://img.example.org", "y", True),
    ],
)
def test_endpoint_and_region_are_told_from_each_other(
    given: dict[str, str], endpoint: str, region: str, is_custom: bool
) -> None:
    settings = tos.settings_of(given)

    assert (settings.endpoint, settings.region, settings.is_custom_domain) == (endpoint, region, is_custom)


def test_an_endpoint_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("TOS_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")

    assert "cannot be reached" in error_message("tos://bucket/a.png")


# ------------------------------------------------------------------ S3


@pytest.mark.parametrize("limits", [LIMITS, STRICT], ids=["any", "no-private-hosts"])
@pytest.mark.usefixtures("s3")
def test_an_object_of_s3_is_read_from_the_endpoint_that_is_set(limits: FetchLimits) -> None:
    assert read("s3://bucket/a.png", limits) == b"data"
    assert read("s3a://bucket/图 片/b+c%20.png", limits) == b"more"


@pytest.mark.usefixtures("s3")
def test_a_public_bucket_of_s3_is_read_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    told_what = error_message("s3://bucket/a.png")

    assert "no credentials; set AWS_ACCESS_KEY_ID" in told_what
    assert "FSSPEC_S3_ANON=true for public buckets" in told_what
    monkeypatch.setenv("FSSPEC_S3_ANON", "true")  # which fsspec reads when it is imported
    assert read_in_a_process("s3://bucket/public.png") == "b'open'"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("s3://bucket/none.png", "not found"),
        ("s3://none/a.png", "not found"),
        ("s3://bucket/large.png", "exceeds max_image_bytes=1000"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_what_s3_does_not_give_is_told(address: str, reason: str) -> None:
    assert reason in error_message(address)


# ------------------------------------------------------------------ the hub


@pytest.mark.slow
def test_a_file_of_a_data_set_on_the_hub_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serve_hub("me/pictures", {"a.png": b"data"}) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)

        assert read_in_a_process("hf://datasets/me/pictures/a.png") == "b'data'"
        assert read_in_a_process("hf://datasets/me/pictures/none.png").endswith("Cannot read the image: not found.")


# ------------------------------------------------------------------ secrets


def test_no_log_and_no_pickle_of_settings_names_a_secret(
    store: Tos, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TOS_SECURITY_TOKEN", TOKEN)
    store.faults.extend(["503", "short"])
    with caplog.at_level(logging.DEBUG):
        read("tos://bucket/a.png")
        error_message("tos://bucket/none.png")
    (source,) = classify("tos://bucket/a.png")

    assert SECRET_KEY not in caplog.text
    assert TOKEN not in caplog.text
    assert "Signature=" not in caplog.text
    assert SECRET_KEY.encode() not in pickle.dumps(source)
    assert SECRET_KEY not in repr(tos.settings_of(os.environ))


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/a.png::http://127.0.0.1/",
        "reference://k::data:.json;base64,e30=",
        "zip://a.png::http://169.254.169.254/",
        "hf::s3://bucket/a.png",
    ],
)
@pytest.mark.parametrize("limits", [LIMITS, STRICT], ids=["any", "no-private-hosts"])
def test_chains_of_addresses_are_never_followed(address: str, limits: FetchLimits) -> None:
    message = error_message(address, limits)

    assert "::" in message or "not read" in message or "does not exist" in message
