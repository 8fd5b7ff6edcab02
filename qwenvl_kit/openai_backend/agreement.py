"""Agree with a server on parameters: a request of one token shows which of them it refuses, before any row."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qwenvl_kit.checkpoints.capabilities import IgnoredOption
from qwenvl_kit.errors import ConfigError, RowError
from qwenvl_kit.openai_backend.discovery import opened, patiently, start_error
from qwenvl_kit.openai_backend.faults import StatusError
from qwenvl_kit.openai_backend.parameters import OPTION_OF, parameters
from qwenvl_kit.openai_backend.request import body_of
from qwenvl_kit.openai_backend.stream import max_answer_bytes, read_answer
from qwenvl_kit.types import LoadedImage

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.openai_backend.client import Client
    from qwenvl_kit.openai_backend.server import Server

_INSTEAD = {
    "logprobs": "answering without log-probabilities",
    "seed": "answers cannot be repeated, and are not stored",
}
_IMAGE = LoadedImage(np.full((56, 56, 3), 128, np.uint8), "", (56, 56))
_MAX_KNOWN = 64
_known: dict[tuple[str, str, str], dict[str, str]] = {}  # refusals, so that each call of a process need not ask


def agree(server: Server, model: str, resolved: ResolvedConfig) -> tuple[ResolvedConfig, frozenset[str]]:
    """Return the options that will run, with a note for each that the server refuses, and the refused parameters.

    Raises
    ------
    ConfigError
        It refuses what an answer cannot do without, or a field of ``extra_body``.
    ServerError
        It refuses the request for another reason.
    """
    key = (server.base_url, model, json.dumps(_sent(resolved, ()), sort_keys=True))
    refusals = _known.get(key)
    if refusals is None:
        refusals = _ask(server, model, resolved)
        while len(_known) >= _MAX_KNOWN:
            _known.pop(next(iter(_known)), None)
        _known[key] = refusals
    notes = [_note(resolved, name, words, server) for name, words in refusals.items() if name in OPTION_OF]
    kept = tuple({one.option: one for one in notes if one is not None}.values())
    changes: dict[str, Any] = {one.option: None for one in kept}
    return replace(resolved, **changes, notes=(*resolved.notes, *kept)), frozenset(refusals)


def _ask(server: Server, model: str, resolved: ResolvedConfig) -> dict[str, str]:
    """Return the parameters that the server refuses, with its words."""
    refusals: dict[str, str] = {}
    with opened(server) as (client, deadline):
        while True:
            sent = _sent(resolved, refusals)
            try:
                patiently(lambda: _try(client, server, model, sent, deadline), server, deadline)  # noqa: B023
                return refusals
            except StatusError as error:
                name = _refused(error, sent)
                if name is None or name in refusals:
                    raise _refusal(error, server) from error
                _require_optional(name, error, resolved, server)
                refusals[name] = error.words
            except RowError as error:
                raise start_error(error, server) from error


def _sent(resolved: ResolvedConfig, refused: Collection[str]) -> dict[str, Any]:
    return parameters(resolved, 1, None if resolved.seed is None else 0, refused)


def _try(client: Client, server: Server, model: str, sent: dict[str, Any], deadline: float) -> None:
    with client.request(
        "POST", server.path("chat/completions"), deadline, lambda: body_of(model, sent, "?", images=(_IMAGE,))
    ) as response:
        read_answer(response, server, max_answer_bytes(256, sent.get("top_logprobs")))


def _refused(error: StatusError, sent: dict[str, Any]) -> str | None:
    """Return the parameter that the server names as the fault; None where it names none."""
    if error.status not in (400, 422):
        return None
    if error.parameter in sent:
        return error.parameter
    found = [at for name in sent for at in re.finditer(rf"\b{re.escape(name)}\b", error.words)]
    return min(found, key=lambda at: at.start()).group() if found else None


def _refusal(error: StatusError, server: Server) -> Exception:
    if error.status in (400, 422):
        error = StatusError("generate", f"{server.base_url} refuses a request with one image. {error.message}")
    return start_error(error, server)


def _require_optional(name: str, error: StatusError, resolved: ResolvedConfig, server: Server) -> None:
    """Raise ConfigError for a parameter without which the answer would be another one than was asked for."""
    if name in (resolved.extra_body or {}):
        raise ConfigError(f"{server.base_url} refuses {name!r} of extra_body: {error.words}. Leave it out.")
    if name == "temperature" and not resolved.do_sample:
        raise ConfigError(
            f"{server.base_url} refuses temperature=0, so it cannot search greedily: {error.words}. Pass "
            "do_sample=True with a temperature that it accepts."
        )
    if name in ("stream", "max_completion_tokens"):
        raise ConfigError(f"{server.base_url} refuses {name!r}, which every request needs: {error.words}.")


def _note(resolved: ResolvedConfig, name: str, words: str, server: Server) -> IgnoredOption | None:
    """Return the note for an option that the server refuses; None where nothing was asked for by it."""
    option = OPTION_OF[name]
    asked = getattr(resolved, option)
    if asked is None or option == "max_caption_length":
        return None
    reason = f"{server.base_url} refuses it: {words.rstrip('.')}"
    return IgnoredOption(option, asked, _INSTEAD.get(option, "using the server's own"), reason)
