"""Ask an engine all rounds, and lay the verdicts out as a frame."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from qwenvl_kit._version import __version__
from qwenvl_kit.conformance.cases import Round, rounds
from qwenvl_kit.conformance.engines import ConfiguredEngine, Engine, Reference
from qwenvl_kit.conformance.layers import Judge, Verdict
from qwenvl_kit.demo.exported import REPETITION_PENALTY
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.options import Config, ModelOptions, names_of

_EXACT, _SIXTEEN_BITS = 1e-3, 0.5  # nats
_PACKAGES = ("torch", "transformers")


def judge_engine(
    images: Sequence[object] | None, options: dict[str, Any], *, tolerance: float | None, scene_seed: int
) -> pd.DataFrame:
    """Return the verdicts about the engine of some options; see `qwenvl_kit.conform`."""
    if images is not None:
        raise ConfigError("conform draws its own images. Pass images only with against={…}, which compares engines.")
    config = engine_config(options)
    engine, reference = ConfiguredEngine(config), Reference()
    if tolerance is None:
        tolerance = _EXACT if engine.dtype in ("float32", "server") else _SIXTEEN_BITS
    penalty = REPETITION_PENALTY if engine.default_penalty is None else engine.default_penalty
    asked = rounds_of(reference, scene_seed)
    if not engine.takes_penalty:  # its own runs in every round
        asked = {name: replace(one, penalty=one.penalty and penalty) for name, one in asked.items()}
    verdicts = verdicts_of(engine, asked, reference, tolerance=tolerance, default_penalty=penalty)
    record = {
        "backend": config.backend,
        "model": engine.model,
        "dtype": engine.dtype,
        "base_url": config.base_url,
        "tolerance": tolerance,
        "scene_seed": scene_seed,
        "reference": reference.spec.fingerprint,
        "versions": {"qwenvl_kit": __version__} | {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    return _frame(verdicts, record)


def verdicts_of(
    engine: Engine, asked: Mapping[str, Round], reference: Reference, *, tolerance: float, default_penalty: float
) -> list[Verdict]:
    """Ask an engine, and judge its answers; see `Judge`."""
    found = {name: engine.ask(one) for name, one in asked.items()}
    judge = Judge(asked, found, reference, tolerance=tolerance, default_penalty=default_penalty)
    return judge.verdicts()


def rounds_of(reference: Reference, scene_seed: int) -> dict[str, Round]:
    """Return the rounds for the embedded model."""
    checkpoint = reference.spec.checkpoint
    assert checkpoint is not None, "it runs on torch"
    return rounds(checkpoint.geometry, checkpoint.context, scene_seed)


def engine_config(options: dict[str, Any]) -> Config:
    """Return the config of an engine under test.

    Raises
    ------
    ConfigError
        An option is none of the model's, or no model is named.
    """
    others = sorted(set(options) - {*names_of(ModelOptions), "progress"})
    if others:
        raise ConfigError(
            f"conform sets {', '.join(others)} itself, or does not use it. Pass options of the model only, such as "
            "backend, model_name, base_url and dtype."
        )
    if options.get("backend", "torch") == "torch":
        options.setdefault("model_name", "demo")
    elif "model_name" not in options:
        raise ConfigError(
            f"conform needs the model_name that backend={options['backend']!r} has for the embedded model. Pass the "
            "server's name, or the folder of its export."
        )
    return Config(**options)


def _frame(verdicts: Sequence[Verdict], record: dict[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "layer": [one.layer for one in verdicts],
            "verdict": [one.outcome for one in verdicts],
            "cases": [one.n_cases for one in verdicts],
            "differ": [one.n_differ for one in verdicts],
            "logprob_difference": pd.array([one.logprob_difference for one in verdicts], dtype="Float64"),
            "detail": [one.words for one in verdicts],
        }
    )
    frame.attrs = {"passed": all(one.outcome != "fail" for one in verdicts), "conform": record}
    return frame
