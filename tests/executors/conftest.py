"""Drawn pictures behind addresses of this machine, and what is true of them."""

from __future__ import annotations

import http.server
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from PIL import Image

from qwenvl_kit.demo import caption, draw, sample_scenes


@dataclass(frozen=True)
class Gallery:
    """Addresses of pictures, the true caption of each, and the files themselves."""

    urls: tuple[str, ...]
    captions: tuple[str, ...]
    files: tuple[bytes, ...]


@pytest.fixture(scope="module")
def gallery() -> Iterator[Gallery]:
    scenes = sample_scenes(5, seed=5)
    files: list[bytes] = []
    for scene in scenes:
        buffer = io.BytesIO()
        Image.fromarray(draw(scene)).save(buffer, "PNG")
        files.append(buffer.getvalue())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = files[int(self.path.partition("?")[0].strip("/").removesuffix(".png"))]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        base = f"http://127.0.0.1:{server.server_port}"
        yield Gallery(
            tuple(f"{base}/{at}.png" for at in range(len(scenes))),
            tuple(caption(scene, "zh") for scene in scenes),
            tuple(files),
        )
        server.shutdown()
        thread.join(5)
