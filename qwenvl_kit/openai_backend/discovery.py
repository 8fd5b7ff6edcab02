"""Find the model that a server serves, before any row: what is wrong with the server is an error with its remedy."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from qwenvl_kit.errors import ModelNotFound, QwenVLError, RowError, ServerError
from qwenvl_kit.openai_backend.client import Client, Clients
from qwenvl_kit.openai_backend.faults import NotOpenAIError, StatusError, Transient
from qwenvl_kit.openai_backend.retry import Patience
from qwenvl_kit.openai_backend.server import Server
from qwenvl_kit.openai_backend.stream import read_json

_T = TypeVar("_T")
_MAX_BYTES = 4 * 2**20
_MAX_LISTED = 20
_START_S = 60.0  # for a server that is busy; one that is not there is an error at once
_reached: set[str] = set()  # servers that answered this process: they get time to come back


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model, as ``/v1/models`` lists it.

    Attributes
    ----------
    name : str
        Its id.
    fingerprint : str
        Digest of its id, and of its root and revision where the server tells them; of no address.
    """

    name: str
    fingerprint: str


def find_model(server: Server, name: str) -> ServedModel:
    """Ask a server for its models, and return the one of this name.

    Raises
    ------
    ServerError
        The server is not reachable, redirects, has a certificate that is not accepted, refuses the key, or does not
        speak the protocol.
    ModelNotFound
        It has no model of this name; the message lists those that it has.
    """
    with opened(server) as (client, deadline):
        models = _listed(client, server, deadline)
    _reached.add(server.base_url)
    found = next((one for one in models if one.get("id") == name), None)
    if found is None:
        raise _not_found(server, name, [str(one.get("id")) for one in models])
    told = [found[key] for key in ("root", "revision") if isinstance(found.get(key), str)]
    digest = hashlib.blake2b(json.dumps(["openai", name, *told]).encode(), digest_size=16)
    return ServedModel(name, digest.hexdigest())


@contextlib.contextmanager
def opened(server: Server) -> Iterator[tuple[Client, float]]:
    """Give a connection and the time at which it ends, whatever the server does."""
    client = Clients(server).open()
    left = min(_START_S, server.timeout_s) if server.base_url not in _reached else server.timeout_s
    timer = threading.Timer(left, client.abort)
    timer.daemon = True
    timer.start()
    try:
        yield client, time.monotonic() + left
    finally:
        timer.cancel()
        client.close()


def patiently(work: Callable[[], _T], server: Server, deadline: float) -> _T:
    """Return what `work` returns, which is repeated after transient faults.

    Raises
    ------
    RowError
        It raised one, no time is left, or nothing listens where this process has reached no server yet.
    """
    patience, n_tries = Patience(server), 0
    while True:
        try:
            return work()
        except Transient as fault:
            n_tries += 1
            if fault.is_unreachable and server.base_url not in _reached:
                raise RowError("generate", f"{fault.message} Start it, or check host and port of base_url.") from fault
            time.sleep(max(0.0, patience.next_try(fault, n_tries, deadline) - time.monotonic()))


def _listed(client: Client, server: Server, deadline: float) -> list[dict[str, Any]]:
    try:
        return patiently(lambda: _get_models(client, server, deadline), server, deadline)
    except RowError as error:
        raise start_error(error, server, hint=_hint(error, client, server, deadline)) from None


def _get_models(client: Client, server: Server, deadline: float) -> list[dict[str, Any]]:
    with client.request("GET", server.path("models"), deadline) as response:
        content = read_json(response.read(_MAX_BYTES), response.content_type, server)
    models = content.get("data")
    if not isinstance(models, list) or not all(isinstance(one, dict) for one in models):
        raise NotOpenAIError("generate", f"{server.base_url}/models is no list of models, as OpenAI's protocol has it.")
    return models


def start_error(error: RowError, server: Server, *, hint: str = "") -> QwenVLError:
    """Return the error that ends a run before its first row."""
    if isinstance(error, StatusError) and error.status in (401, 403):
        asked = "refuses the key of" if server.has_key else "asks for a key, which belongs into"
        return ServerError(
            f"{server.base_url} {asked} the environment variable {server.api_key_env} (HTTP status {error.status}). "
            "Set it, or name another one with api_key_env=."
        )
    if isinstance(error, StatusError) and error.status in (404, 405):
        return ServerError(f"{server.base_url} has no OpenAI-compatible API (HTTP status {error.status}).{hint}")
    return ServerError(f"{error.message}{hint}")


def _hint(error: RowError, client: Client, server: Server, deadline: float) -> str:
    """Return the base URL to pass where the one below it answers; else what it should look like."""
    is_no_api = isinstance(error, NotOpenAIError) or (isinstance(error, StatusError) and error.status in (404, 405))
    if not is_no_api or server.base_url.endswith("/v1") or client.is_aborted:
        return ""
    below = Server(f"{server.base_url}/v1", server.api_key_env, server.timeout_s)
    try:
        _get_models(client, below, min(deadline, time.monotonic() + 5))
    except (QwenVLError, Transient):
        return " base_url ends with /v1 for most servers."
    return f" Pass base_url={below.base_url!r}."


def _not_found(server: Server, name: str, names: list[str]) -> ModelNotFound:
    shown = ", ".join(server.quote(repr(one), 100) for one in names[:_MAX_LISTED]) or "none"
    more = f", and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4) or (names if len(names) == 1 else [])
    remedy = f" Pass model_name={near[0]!r}." if near else " Pass one of these names as model_name."
    return ModelNotFound(
        f"{server.base_url} serves no model_name={name!r}. It serves: {shown}{more}.{server.quote(remedy)}"
    )
