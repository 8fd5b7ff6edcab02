"""A JupyterLab or Voila of one's own on 127.0.0.1, and a Chromium that looks at it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

TOKEN = "of-this-test"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SETTINGS: dict[str, Any] = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},  # else a question is asked
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight stay in the page
}


def chromium() -> str | None:
    """Where a browser is, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    folder: Path

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Talk to the server's REST API."""
        request = urllib.request.Request(
            f"{self.url}/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {TOKEN}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def start_kernel(self, notebook: str) -> None:
        """Start the notebook's kernel before the page opens: else the page starts one too, and the two race."""
        kernel = {"name": "python3"}
        self.ask("sessions", {"path": notebook, "name": notebook, "type": "notebook", "kernel": kernel})

    def wait_until_idle(self) -> None:
        """Wait for the one kernel; it stands at "starting" until the page has connected to it."""
        wait(lambda: [k["execution_state"] for k in self.ask("kernels")] == ["idle"] or None, "one idle kernel", 180)

    def stop_kernels(self) -> None:
        """Leave none for the next test; a busy server may need more than one request."""

        def stopped() -> bool | None:
            for session in self.ask("sessions"):
                self._delete(f"sessions/{session['id']}")
            return self.ask("kernels") == [] or None

        wait(stopped, "the kernels' end", 180)

    def _delete(self, path: str) -> None:
        request = urllib.request.Request(
            f"{self.url}/api/{path}", method="DELETE", headers={"Authorization": f"token {TOKEN}"}
        )
        urllib.request.urlopen(request, timeout=60).close()


def wait(answer: Any, what: str, seconds: float = 60) -> Any:
    """Ask again until there is an answer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, urllib.error.URLError, ValueError, KeyError):
            if (found := answer()) is not None:
                return found
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds} s in vain for {what}")


def write_notebook(path: Path, *cells: str) -> None:
    """Make a notebook of code cells."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, path)


@contextlib.contextmanager
def serve(folder: Path, *command: str, ready: str) -> Iterator[Server]:
    """Run a server with a home of its own, and end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = folder / ".home"
    environment = {
        **os.environ,
        **{f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")},
        **{f"JUPYTERLAB_{name}_DIR": str(home / name) for name in ("SETTINGS", "WORKSPACES")},
        "IPYTHONDIR": str(home / "ipython"),
        "HF_HUB_OFFLINE": "1",
    }
    for name, value in SETTINGS.items():
        settings = home / "SETTINGS" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps(value))
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *(part.format(port=port) for part in command)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    server = Server(f"http://127.0.0.1:{port}", folder)
    try:
        wait(lambda: _answers(f"{server.url}{ready}"), f"the server; see {folder / 'server.log'}", 90)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def lab(folder: Path) -> contextlib.AbstractContextManager[Server]:
    """A JupyterLab that asks nobody for news."""
    return serve(
        folder,
        *("jupyterlab", "--no-browser", "--allow-root", "--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1"),
        *("--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"),
        *("--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"),
        *("--LabApp.extension_manager=readonly", "--LabApp.expose_app_in_browser=True"),
        ready=f"/api/status?token={TOKEN}",
    )


def voila(folder: Path, notebook: str) -> contextlib.AbstractContextManager[Server]:
    """A Voila that shows one notebook."""
    return serve(folder, *("voila", notebook, "--no-browser", "--port={port}", "--Voila.ip=127.0.0.1"), ready="/")


def _answers(url: str) -> bool | None:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.status == 200 or None
