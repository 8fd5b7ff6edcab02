"""What a stranger's address may reach and cost: hosts, names, files, headers, memory, connections, logs."""

from __future__ import annotations

import dataclasses
import http.server
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from helpers.malformed_inputs import encoded, noise

from qwenvl_kit import Config
from qwenvl_kit.errors import RowError
from qwenvl_kit.images.classify import classify
from qwenvl_kit.images.fetch import connections
from qwenvl_kit.images.fetch.addresses import is_metadata, is_public
from qwenvl_kit.images.fetch.dispatch import fetch
from qwenvl_kit.images.fetch.fetched import BODY_MEMORY, WITHOUT_LEASE
from qwenvl_kit.images.fetch.limits import FetchLimits

LIMITS = FetchLimits(timeout_s=10, max_image_bytes=10_000_000, allow_private_hosts=True)
PNG = encoded(noise(30, 20, 0), "PNG")
ECHO = {"backend": "echo", "progress": False}


def read(cell: object, limits: FetchLimits = LIMITS) -> bytes:
    (source,) = classify(cell)
    return fetch(source, limits).data


def error_message(cell: object, limits: FetchLimits = LIMITS) -> str:
    with pytest.raises(RowError) as caught:
        read(cell, limits)
    assert caught.value.stage == "fetch"
    return caught.value.message


class Recorder(http.server.BaseHTTPRequestHandler):
    """Keeps what it was sent."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, dict[str, str]]]
    target = ""

    def do_GET(self) -> None:
        type(self).seen.append((self.path, dict(self.headers)))
        is_hop = self.path.startswith("/hop")
        self.send_response(302 if is_hop else 200)
        if is_hop:
            self.send_header("Location", type(self).target)
        self.send_header("Content-Length", "0" if is_hop else str(len(PNG)))
        self.end_headers()
        self.wfile.write(b"" if is_hop else PNG)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def recorder() -> Iterator[tuple[int, list[tuple[str, dict[str, str]]]]]:
    Recorder.seen = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, Recorder.seen
    connections.close_idle_connections()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254",
        "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe", "::a9fe:a9fe", "::ffff:0:a9fe:a9fe", "2002:a9fe:a9fe::1", "fe80::1",
    ],
)  # fmt: skip
def test_no_way_of_writing_a_metadata_service_is_let_through(address: str) -> None:
    assert is_metadata(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "224.0.0.1",
        "100.64.0.1",
        "fec0::1",
        "::7f00:1",
        "::ffff:0:7f00:1",
        "3fff::1",
        "ff02::1",
    ],
)
def test_what_is_special_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_what_is_public_is_public(address: str) -> None:
    assert is_public(address)
    assert not is_metadata(address)


def test_a_resolver_that_is_silent_meets_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = threading.Event()

    def resolve(*_: object, flags: int = 0, **__: object) -> list[object]:
        if not flags & socket.AI_NUMERICHOST:
            silent.wait(20)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    started = time.monotonic()

    message = error_message("http://silent.example/a.png", dataclasses.replace(LIMITS, timeout_s=0.5))

    silent.set()
    assert "timeout_s=0.5" in message
    assert time.monotonic() - started < 5


def test_cells_can_be_kept_from_local_files(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in" / "a.png", tmp_path / "b.png"
    inside.parent.mkdir()
    inside.write_bytes(PNG)
    outside.write_bytes(PNG)
    (inside.parent / "link.png").symlink_to(outside)
    within = dataclasses.replace(LIMITS, local_paths=str(inside.parent))

    assert read(str(inside), within) == PNG
    for path in (outside, f"{inside.parent}/../b.png", inside.parent / "link.png", f"file://{outside}"):
        assert "outside of local_paths" in error_message(str(path), within)
    assert "local_paths=False blocks" in error_message(str(inside), dataclasses.replace(LIMITS, local_paths=False))
    assert read(PNG, dataclasses.replace(LIMITS, local_paths=False)) == PNG


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="this system has no /proc")
@pytest.mark.parametrize("path", ["/proc/self/environ", "/proc/kmsg", "/sys/kernel/notes", "file:///proc/self/status"])
def test_the_kernels_files_are_never_read(path: str, tmp_path: Path) -> None:
    assert "are not read" in error_message(path)
    link = tmp_path / "a.png"
    link.symlink_to(path.removeprefix("file://"))
    assert "are not read" in error_message(str(link))


def test_headers_are_sent_and_not_passed_on_to_another_host(
    recorder: tuple[int, list[tuple[str, dict[str, str]]]],
) -> None:
    port, seen = recorder
    Recorder.target = f"http://localhost:{port}/elsewhere"
    limits = dataclasses.replace(LIMITS, headers=(("User-Agent", "survey/1.0"), ("Authorization", "Bearer t")))

    assert read(f"http://127.0.0.1:{port}/a", limits) == PNG
    assert read(f"http://127.0.0.1:{port}/hop", limits) == PNG

    sent = dict(seen)
    assert sent["/a"]["User-Agent"] == "survey/1.0"
    assert sent["/a"]["Authorization"] == "Bearer t"
    assert "Authorization" not in sent["/elsewhere"]


def test_no_record_and_no_log_holds_a_header_or_a_signature(
    recorder: tuple[int, list[tuple[str, dict[str, str]]]], caplog: pytest.LogCaptureFixture
) -> None:
    port, _ = recorder
    with caplog.at_level(logging.DEBUG):
        frame = pd.Series([f"http://127.0.0.1:{port}/a?X-Amz-Signature=deadbeef"]).vl.run(
            headers={"Authorization": "Bearer hunter2"}, **ECHO
        )

    assert frame["status"].tolist() == ["ok"]
    for text in (caplog.text, repr(frame.attrs), repr(Config(headers={"Authorization": "Bearer hunter2"}))):
        assert "hunter2" not in text
        assert "deadbeef" not in text


def test_largeBODY_MEMORY_share_a_budget_until_they_are_decoded(tmp_path: Path) -> None:
    path, before = tmp_path / "a.bin", BODY_MEMORY.available
    path.write_bytes(bytes(2 * WITHOUT_LEASE))
    (source,) = classify(str(path))

    fetched = fetch(source, LIMITS)

    assert BODY_MEMORY.available == before - 2 * WITHOUT_LEASE
    del fetched
    assert BODY_MEMORY.available == before


def test_no_connection_stays_open_behind_a_run(recorder: tuple[int, list[tuple[str, dict[str, str]]]]) -> None:
    port, _ = recorder
    column = pd.Series([f"http://127.0.0.1:{port}/{number}" for number in range(40)])

    column.vl.run(**ECHO)

    inodes = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_socket(fd)}
    with open("/proc/net/tcp") as table:
        open_to_it = [line.split() for line in table.readlines()[1:] if line.split()[2].endswith(f":{port:04X}")]
    assert not [fields for fields in open_to_it if f"socket:[{fields[9]}]" in inodes]


def _is_socket(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except OSError:
        return False
