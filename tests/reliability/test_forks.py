"""After a fork rows get their own images, or the call is refused at once; nothing hangs and nothing is mixed up."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

SERVER = """
import http.server, io, sys, threading, time
from PIL import Image

def png(n):
    file = io.BytesIO()
    Image.new("RGB", (56, 56), (n % 256, n // 256, 77)).save(file, "PNG")
    return file.getvalue()

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = png(int(self.path.strip("/")))
        time.sleep(0.002)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

server = Server(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
"""

CLIENT = """
import hashlib, io, multiprocessing, sys, threading, time, warnings
warnings.simplefilter("ignore")
import pandas as pd, qwenvl_kit
from PIL import Image

port, before = sys.argv[1:]
ECHO = {"backend": "echo", "progress": False, "timeout_s": 20}

def png(n):
    file = io.BytesIO()
    Image.new("RGB", (56, 56), (n % 256, n // 256, 77)).save(file, "PNG")
    return file.getvalue()

def frame(numbers):
    return pd.DataFrame({"image": [f"http://127.0.0.1:{port}/{n}" for n in numbers]})

def rows(numbers):
    try:
        done = frame(numbers).vl.run("image", **ECHO)
    except qwenvl_kit.ForkedProcess:
        return [0, 0, 0, len(numbers)]
    digests = [hashlib.blake2b(png(n), digest_size=16).hexdigest()[:8] for n in numbers]
    told = list(zip(digests, done.text, done.status))
    right = sum(status == "ok" and digest in text for digest, text, status in told)
    wrong = sum(status == "ok" and digest not in text for digest, text, status in told)
    return [right, wrong, len(numbers) - right - wrong, 0]

if before == "show":
    frame(range(24)).vl.show("image")
elif before == "unloaded":
    frame(range(24)).vl.run("image", **ECHO)
    qwenvl_kit.unload()
elif before == "under way":
    threading.Thread(target=lambda: frame(range(2000)).vl.run("image", **ECHO), daemon=True).start()
    time.sleep(0.5)
context = multiprocessing.get_context("fork")
with context.Pool(3) as pool:
    found = pool.map_async(rows, [range(k * 150, k * 150 + 150) for k in range(1, 4)]).get(50)
print(*(sum(part[at] for part in found) for at in range(4)))
sys.stdout.flush()
import os
os._exit(0)
"""


@pytest.mark.parametrize(
    ("before", "wanted"),
    [("show", "450 0 0 0"), ("unloaded", "450 0 0 0"), ("under way", "0 0 0 450")],
)
def test_no_row_gets_the_image_of_another_after_a_fork(before: str, wanted: str, tmp_path: Path) -> None:
    for name, text in (("server", SERVER), ("client", CLIENT)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    server = subprocess.Popen(
        [sys.executable, tmp_path / "server.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        port = server.stdout.readline().strip()
        done = subprocess.run(
            [sys.executable, tmp_path / "client.py", port, before], capture_output=True, text=True, timeout=100
        )
    finally:
        server.stdin.close()
        server.wait(timeout=20)
        server.stdout.close()

    assert done.stdout.strip() == wanted, done.stderr[-2000:]
