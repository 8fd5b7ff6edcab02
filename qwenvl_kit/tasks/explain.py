"""Trace the words of answers to the images: what is asked of the backend, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from qwenvl_kit.attribution import Attribution, Method
from qwenvl_kit.errors import ConfigError, printable
from qwenvl_kit.types import Prompt

if TYPE_CHECKING:
    from qwenvl_kit.options import Config

_N_STEPS = 8
_MAX_GRID = 32
_LACKS = {
    "onnx": "an export has no graph that returns attention or hides visual tokens",
    "openai": "servers return tokens, and neither attention nor gradients",
    "echo": "it has no model",
}


def check_explainable(config: Config) -> None:
    """Raise ConfigError for a backend that traces no words, and for options that explanations do not support."""
    if config.backend in _LACKS:
        raise ConfigError(
            f"backend={config.backend!r} cannot explain answers: {_LACKS[config.backend]}. Use backend='torch'."
        )
    if config.num_beams > 1:
        raise ConfigError(f"Beam search does not support explanations (num_beams={config.num_beams}). Use num_beams=1.")
    if config.engine != "local":
        raise ConfigError(f"engine={config.engine!r} does not return maps. Use engine='local'.")
    if "store" in config.explicit and config.store is not None:
        raise ConfigError("The store keeps answers without their maps. Leave out store.")
    if config.beginning:
        raise ConfigError(f"Explanations do not support start_with={config.start_with!r}. Leave it out.")


def attribution_of(
    *,
    method: str,
    layers: Sequence[int] | Literal["all"] | None,
    heads: Sequence[int] | None,
    correct: bool,
    grid: int,
    check: bool,
) -> Attribution:
    """Return what is asked of the backend.

    Raises
    ------
    ConfigError
        A value is invalid, or has no effect with this method.

    Examples
    --------
    >>> attribution_of(method="attention", layers=[2, -1], heads=None, correct=True, grid=8, check=False).layers
    (2, -1)
    """
    if method not in get_args(Method):
        raise ConfigError(f"method must be 'attention', 'occlusion' or 'gradient'; got {_shown(method)}.")
    if method != "attention" and not (layers is None and heads is None):
        raise ConfigError(f"layers and heads are of method='attention'; method is {method!r}. Leave them out.")
    if isinstance(grid, bool) or not isinstance(grid, int) or not 2 <= grid <= _MAX_GRID:
        raise ConfigError(f"grid must be a whole number from 2 to {_MAX_GRID}; got {_shown(grid)}.")
    return Attribution(
        method=method,  # type: ignore[arg-type]  # checked above
        layers="all" if isinstance(layers, str) and layers == "all" else _indices("layers", layers),
        heads=_indices("heads", heads),
        correct=correct,
        grid=grid,
        n_steps=_N_STEPS if check else 0,
    )


def explained_prompts(texts: Sequence[str | None], attribution: Attribution) -> list[Prompt | None]:
    """Return the prompt of each row with what is asked of its words."""
    return [None if text is None else Prompt(text, attribution=attribution) for text in texts]


def cost_of(attribution: Attribution) -> str:
    """Return in words what explanations cost beside the answers; empty where that is little.

    Examples
    --------
    >>> cost_of(Attribution(method="occlusion", grid=3))
    'explain: beside its answer, each row is read 17 times (4 × 4 hidden squares per image, and once whole).'
    """
    parts = []
    if attribution.method == "occlusion":
        n_windows = attribution.grid + 1
        parts.append(f"{n_windows**2 + 1} times ({n_windows} × {n_windows} hidden squares per image, and once whole)")
    if attribution.n_steps:
        n_readings = 2 * (attribution.n_steps + 1)
        parts.append(f"{n_readings} times for each word and {4 * n_readings} times for random orders (check=True)")
    return f"explain: beside its answer, each row is read {', and '.join(parts)}." if parts else ""


def _indices(name: str, given: object) -> tuple[int, ...] | None:
    if given is None:
        return None
    if isinstance(given, Sequence) and not isinstance(given, str | bytes) and given:
        indices = tuple(given)
        if all(isinstance(one, int) and not isinstance(one, bool) for one in indices):
            return indices
    also = " or 'all'" if name == "layers" else ""
    raise ConfigError(f"{name} must be a list of whole numbers{also}; got {_shown(given)}.")


def _shown(value: object) -> str:
    return printable(repr(value), 60)
