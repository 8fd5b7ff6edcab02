"""Faults that may pass: what is asked again, how often and when, and that a host in trouble meets no storm."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import urllib3

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.classify import classify
from qwenvl_kit.images.fetch import connections, fetch, http, retry
from qwenvl_kit.images.fetch.fetched import RetryAt
from qwenvl_kit.images.fetch.limits import FetchLimits
from qwenvl_kit.images.fetch.retry import HostRetryState, TransientError
from qwenvl_kit.images.urls import host_key

LIMITS = FetchLimits(timeout_s=10, max_image_bytes=100_000, allow_private_hosts=True)


@pytest.fixture(autouse=True)
def _strangers() -> Iterator[None]:
    """No test knows the hosts of another."""
    retry.host_retry_state.cache_clear()
    yield
    for private in (True, False):
        connections.pool(private).clear()
    connections.pool.cache_clear()


def get(url: str, limits: FetchLimits = LIMITS) -> bytes:
    (source,) = classify(url, "image_url")
    return fetch(source, limits).data


def error_message(url: str, limits: FetchLimits = LIMITS) -> str:
    with pytest.raises(RowError) as caught:
        get(url, limits)
    return caught.value.message


@pytest.mark.slow
@pytest.mark.parametrize("n_faults", [1, 3])
@pytest.mark.parametrize("kind", ["429", "500", "502", "503", "504", "short", "torn", "reset"])
def test_what_may_pass_is_asked_again_until_it_has(server: Any, kind: str, n_faults: int) -> None:
    assert get(server.url(f"flaky/{n_faults}/{kind}")).startswith(b"\x89PNG")
    assert len(server.paths) == n_faults + 1


@pytest.mark.parametrize("path", ["status/503", "short", "torn/x", "reset"])
def test_what_does_not_pass_is_told_after_a_few_times(server: Any, path: str) -> None:
    assert error_message(server.url(path)).endswith("Gave up after 4 attempts.")
    assert len(server.paths) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
def test_an_answer_that_stays_is_not_asked_for_again(server: Any, status: int) -> None:
    assert f"status {status}" in error_message(server.url(f"status/{status}"))
    assert len(server.paths) == 1


@pytest.mark.parametrize(("when", "least_s"), [("1", 1.0), ("date2", 0.9)], ids=["seconds", "date"])
def test_a_server_that_says_when_is_not_asked_earlier(server: Any, when: str, least_s: float) -> None:
    started = time.monotonic()

    assert get(server.url(f"flaky/1/busy/{when}")).startswith(b"\x89PNG")
    assert time.monotonic() - started >= least_s


def test_a_server_that_wants_more_time_than_there_is_is_told_at_once(server: Any) -> None:
    assert "status 503" in error_message(server.url("busy/3600"), FetchLimits(1, 1000, True))
    assert len(server.paths) == 1


def test_an_odd_retry_after_is_passed_over(server: Any) -> None:
    assert get(server.url("flaky/1/busy/soon")).startswith(b"\x89PNG")


def test_a_host_that_asks_for_a_pause_rests_for_all(server: Any) -> None:
    url = server.url("flaky/1/busy/1")
    host = retry.host_retry_state(host_key(url))

    with pytest.raises(RetryAt) as later:
        http.HttpGet(url, LIMITS).try_once()
    n_asked = len(server.paths)
    with pytest.raises(RetryAt) as other:  # of the same host, and asked for nothing yet
        http.HttpGet(server.url("good"), LIMITS).try_once()

    assert later.value.at - time.monotonic() > 0.5
    assert abs(other.value.at - host.backoff_until) < 0.5
    assert len(server.paths) == n_asked


def test_pauses_grow_and_differ() -> None:
    host, fault, now = HostRetryState(), TransientError("fetch", "busy"), time.monotonic()

    granted = [[host.retry_at(fault, n_retries, now + 100) for n_retries in range(4)] for _ in range(10)]

    assert all(times[3] is None for times in granted)
    pauses = [at - now for times in granted for at in times if at is not None]
    assert len(set(pauses)) == 30, "pauses differ, so that rows that failed together do not return together"
    assert all(a < c for a, c in zip(pauses[::3], pauses[2::3], strict=True))
    assert max(pauses) < 1


def test_what_cannot_be_had_before_the_deadline_is_not_tried_again() -> None:
    fault = TransientError("fetch", "busy")
    fault.wait_s = 5.0

    assert HostRetryState().retry_at(fault, 0, time.monotonic() + 1) is None


@pytest.mark.parametrize(
    "value",
    [
        "Mon, 01 Jan 99999999999 00:00:00 GMT",
        "Mon, 01 Jan 2020 00:00:00 +99999999999999999999",
        "9" * 5000,
        "-1",
        "nan",
        "soon",
        "",
    ],
    ids=lambda value: value[:20],
)
def test_no_retry_after_hurts_anyone(value: str) -> None:
    response = urllib3.HTTPResponse(status=503, headers={"Retry-After": value})

    fault = retry.status_error("busy", response)

    assert isinstance(fault, TransientError)
    assert fault.wait_s is None or 0 <= fault.wait_s <= 86_400


def test_a_host_that_only_fails_meets_no_storm(server: Any) -> None:
    urls = [server.url(f"status/503?{number}") for number in range(400)]

    with ThreadPoolExecutor(32) as threads:
        messages = list(threads.map(error_message, urls))

    assert all("status 503" in message for message in messages)
    assert len(server.paths) <= 400 + 50, "50 retries is what a stranger is worth"


def test_one_host_gets_a_limited_number_of_connections(server: Any) -> None:
    urls = [server.url(f"good/{number}") for number in range(200)]

    with ThreadPoolExecutor(64) as threads:
        bodies = list(threads.map(get, urls))

    assert all(body.startswith(b"\x89PNG") for body in bodies)
    assert len(server.paths) == 200
    assert len(server.connections) <= connections.MAX_PER_HOST


def test_waiting_for_a_turn_meets_the_deadline(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_PER_HOST", 1)
    connections.pool.cache_clear()
    stalled = threading.Thread(target=error_message, args=(server.url("stall/0.5"), FetchLimits(2, 1000, True)))
    stalled.start()
    time.sleep(0.1)

    assert "timeout_s=0.2" in error_message(server.url("good"), FetchLimits(0.2, 100_000, True))
    stalled.join()


def test_a_login_in_an_address_is_used_there_and_told_nowhere(server: Any) -> None:
    login = server.url("login").replace("http://", "http://me:hun%40ter2@")
    away = server.url(f"login/httpCOLON//127.0.0.1COLON{server.port}/login").replace(
        "http://1", "http://me:hun%40ter2@1", 1
    )

    get(login)
    get(away)
    message = error_message(server.url("status/401").replace("http://", "http://me:hun%40ter2@"))

    expected = "Basic " + base64.b64encode(b"me:hun@ter2").decode()
    assert server.logins == [expected, expected, None], "a redirect elsewhere gets no login"
    assert "hun" not in message
