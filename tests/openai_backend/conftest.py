"""A server without a model, on this machine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.needs import lacking
from helpers.openai_server import MODEL, State, serve

from qwenvl_kit.openai_backend import agreement


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports come back with another server behind them, and this machine may have a key."""
    agreement._known.clear()
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[State]:
    with serve() as state:
        yield state


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[State]:
    """The same over TLS, under a certificate that nobody knows yet."""
    if shutil.which("openssl") is None:
        lacking("no openssl here, which makes the certificate")
    certificate = tmp_path / "server.pem"
    kind = ["-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "1"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(certificate.with_suffix(".key")), "-out", str(certificate)]
    subprocess.run(["openssl", "req", *kind, *names, *files], check=True, capture_output=True)
    with serve(State(certificate=certificate)) as state:
        yield state


def options(state: State, **more: Any) -> dict[str, Any]:
    """Options of a call on that server."""
    return {"backend": "openai", "base_url": state.url, "model_name": MODEL, "progress": False, **more}
