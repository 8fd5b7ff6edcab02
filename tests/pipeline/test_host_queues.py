"""Work queued by host: a slow or resting host holds up nobody else, and nothing is lost or taken twice."""

from __future__ import annotations

import http.server
import io
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwenvl_kit import Control
from qwenvl_kit.pipeline.host_queues import HostQueues

STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "first", "rest", "take", "done"]), st.integers(0, 3), st.floats(0, 5)),
    max_size=60,
)


@given(STEPS)
def test_every_item_is_taken_once_within_the_limit_of_its_host_and_never_while_it_rests(
    steps: list[tuple[str, int, float]],
) -> None:
    queues: HostQueues[int] = HostQueues(2)
    n_put, taken, now = 0, [], 0.0
    under_way: Counter[str] = Counter()
    rests: dict[str, float] = {}
    for what, number, seconds in steps:
        host = f"host{number}"
        if what in ("put", "first", "rest"):
            until = now + seconds if what == "rest" else 0.0
            rests[host] = max(rests.get(host, 0.0), until)
            queues.put(host, n_put, first=what == "first", not_before=until)
            n_put += 1
        elif what == "take":
            now += seconds / 10
            if (found := queues.take(now)) is not None:
                assert rests.get(found[0], 0.0) <= now
                under_way[found[0]] += 1
                assert under_way[found[0]] <= 2
                taken.append(found[1])
        elif under_way[host]:
            under_way[host] -= 1
            queues.done(host)
    for host, n in under_way.items():
        for _ in range(n):
            queues.done(host)
    while (found := queues.take(1e9)) is not None:
        taken.append(found[1])
        queues.done(found[0])
    assert sorted(taken) == list(range(n_put))


class Slow(http.server.BaseHTTPRequestHandler):
    """Answers at once, or says when to come back."""

    protocol_version = "HTTP/1.1"
    body = b""
    n_busy = 0

    def do_GET(self) -> None:
        kind = self.path.strip("/").partition("/")[0]
        if kind == "slow":
            time.sleep(0.4)
        if kind == "busy" and type(self).n_busy < 8:
            type(self).n_busy += 1
            self.send_response(503)
            self.send_header("Retry-After", "2")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hosts() -> Iterator[tuple[int, int]]:
    file = io.BytesIO()
    Image.new("RGB", (30, 30)).save(file, "PNG")
    Slow.body, Slow.n_busy = file.getvalue(), 0
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) for _ in range(2)]
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield servers[0].server_port, servers[1].server_port
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["slow", "busy"])
def test_a_slow_or_resting_host_holds_up_no_other(hosts: tuple[int, int], kind: str) -> None:
    bad = [f"http://127.0.0.1:{hosts[0]}/{kind}/{n}" for n in range(80)]
    good = [f"http://127.0.0.1:{hosts[1]}/quick/{n}" for n in range(40)]
    order: list[int] = []

    frame = pd.Series([*bad, *good]).vl.run(
        backend="echo", progress=False, control=Control(on_result=lambda result: order.append(result.row))
    )

    assert (frame["status"] == "ok").all()
    last_good = max(order.index(row) for row in range(80, 120))
    assert last_good < 90, "the others are done while most of the bad host's rows still wait"
