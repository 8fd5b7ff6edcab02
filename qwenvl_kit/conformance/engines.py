"""Ask the engine under test, and the reference: torch in float32 with the embedded model."""

from __future__ import annotations

import base64
import contextlib
import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from qwenvl_kit.conformance.cases import Round
from qwenvl_kit.executors.local import execute, run_spec
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.options import Config

if TYPE_CHECKING:
    from qwenvl_kit.conformance.variants import Variant
    from qwenvl_kit.inference.backend import Backend
    from qwenvl_kit.types import Result

N_ALTERNATIVES = 5
"""Likeliest tokens that are asked for in each place."""

_BATCH = 16


class Engine(Protocol):
    """What answers rounds."""

    def ask(self, asked: Round) -> list[Result]:
        """Return an answer to each case of a round."""
        ...


class ConfiguredEngine:
    """The engine that a config names.

    Parameters
    ----------
    config : Config
        Its backend and model.

    Attributes
    ----------
    dtype : str
        As it runs; ``server`` for a server.
    default_penalty : float or None
        Repetition penalty of its checkpoint; None where only the server knows.
    takes_penalty : bool
        A request can set the penalty.
    """

    def __init__(self, config: Config) -> None:
        self._config = config.replace(progress=False, logprobs=N_ALTERNATIVES, do_sample=False)
        own = make_spec(self._config).resolved
        self.is_server = own.base_url is not None
        self.dtype, self.model = own.dtype, own.model
        self.default_penalty = own.repetition_penalty
        asked = make_spec(self._config.replace(repetition_penalty=1.0)).resolved
        self.takes_penalty = asked.repetition_penalty == 1.0

    def ask(self, asked: Round) -> list[Result]:
        """Return an answer to each case; an error that ends the run is raised."""
        hands_over = self.is_server and asked.sends_files
        cells = [[_data_url(file) if hands_over else file for file in case.files] for case in asked.cases]
        config = configured(self._config, asked)
        if hands_over:
            config = config.replace(image_mode="url")
        run = execute(cells, [case.prompt for case in asked.cases], config, warn_ignored=False)
        if run.failure is not None:
            raise run.failure
        return list(run.results)


class Reference:
    """The embedded model on torch in float32, loaded when first asked; answers are kept.

    Attributes
    ----------
    config : Config
        Of the embedded model.
    """

    def __init__(self) -> None:
        self.config = Config(
            backend="torch", model_name="demo", dtype="float32", progress=False, logprobs=N_ALTERNATIVES, rank=None
        )
        self.spec = make_spec(self.config)
        self._kept: dict[tuple[Round, Variant | None], list[Result]] = {}

    def ask(self, asked: Round, variant: Variant | None = None) -> list[Result]:
        """Return an answer to each case, of the model or of a variant that has a fault."""
        key = (asked, variant)
        if key not in self._kept:
            self._kept[key] = self._ask(asked, variant)
        return self._kept[key]

    def _ask(self, asked: Round, variant: Variant | None) -> list[Result]:
        if variant is None:
            return answer(self.config, self._loaded, asked)
        with variant.loaded(self.config) as backend:
            return answer(self.config, backend, variant.changed(asked))

    @functools.cached_property
    def _loaded(self) -> Backend:
        return self.spec.load()


def answer(config: Config, backend: Backend, asked: Round) -> list[Result]:
    """Return the answers of a loaded backend, sixteen rows at once."""
    config = configured(config, replace(asked, in_flight=_BATCH))
    cells: list[Any] = [list(case.files) for case in asked.cases]
    prompts = [case.prompt for case in asked.cases]
    run = run_spec(cells, prompts, config, make_spec(config), lambda _: contextlib.nullcontext(backend))
    if run.failure is not None:
        raise run.failure
    return list(run.results)


def configured(config: Config, asked: Round) -> Config:
    """Return the config of a round."""
    changed = config.replace(
        system_prompt=asked.system,
        max_caption_length=asked.max_new_tokens,
        batch_size=asked.in_flight,
        rows_in_flight=asked.in_flight,
    )
    return changed if asked.penalty is None else changed.replace(repetition_penalty=asked.penalty)


def _data_url(file: bytes) -> str:
    kind = "png" if file.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"
