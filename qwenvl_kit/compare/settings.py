"""Expand varied options to the settings of a grid, each with its reference setting."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.options import Config, Options

_SAMPLING = ("temperature", "top_k", "top_p", "seed")
# They change neither answers nor their cost, or concern the whole grid.
_FIXED = ("image_src_type", "store", "trust_sources", "progress", "on_error", "strict", "timeout_s")


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of the grid.

    Attributes
    ----------
    values : tuple of (str, object)
        The varied options with their values.
    config : Config
        All options of this setting.
    reference : int
        Position of the reference setting.
    """

    values: tuple[tuple[str, Any], ...]
    config: Config
    reference: int

    @property
    def label(self) -> str:
        """The varied options, such as ``dtype=float16, resized_height=56``."""
        return ", ".join(f"{name}={value}" for name, value in self.values)

    def seeded(self, repeat: int) -> Config:
        """Return the config of one repeat; its seed is ``seed + repeat``, so that each repeat is reproducible alone."""
        if self.config.seed is None or not repeat:
            return self.config
        return self.config.replace(seed=self.config.seed + repeat)


def expand(
    vary: Mapping[str, Sequence[object]], options: Options, reference: Mapping[str, object] | None = None
) -> list[Setting]:
    """Return every combination of the varied options, the last option varying fastest.

    Parameters
    ----------
    vary : mapping
        Option names and their values.
    options : mapping
        Options shared by all settings.
    reference : mapping, optional
        Reference values; omitted options keep each setting's own value. Default: the first value of each option.

    Returns
    -------
    list of Setting
        At least one.

    Raises
    ------
    ConfigError
        `vary` is empty, an option cannot vary, a value is invalid or duplicate, or the grid lacks the reference.

    Examples
    --------
    >>> grid = expand({"dtype": ["float32", "bfloat16"], "resized_height": [56, 112]}, {}, {"dtype": "float32"})
    >>> [(setting.label, setting.reference) for setting in grid][-1]
    ('dtype=bfloat16, resized_height=112', 1)
    """
    values = {name: _values(name, given) for name, given in vary.items()}
    _check(values, options)
    wanted = _reference(values, reference)
    points = list(itertools.product(*values.values()))
    position = {point: at for at, point in enumerate(points)}
    settings = []
    for point in points:
        named = dict(zip(values, point, strict=True))
        asked: dict[str, Any] = {**options, **named}
        against = tuple(({**named, **wanted}).values())
        settings.append(Setting(tuple(named.items()), Config(**asked), position[against]))
    return settings


def _values(name: str, given: object) -> tuple[Any, ...]:
    if isinstance(given, str | bytes) or (not isinstance(given, Sequence) and not hasattr(given, "__array__")):
        raise ConfigError(f"vary[{name!r}]={given!r} is not a list. Pass a list of values: [{given!r}, …].")
    values = tuple(_key(value) for value in given)  # type: ignore[attr-defined]  # arrays iterate too
    if not values:
        raise ConfigError(f"vary[{name!r}] is empty. Pass at least one value, or remove {name} from vary.")
    if twice := [value for at, value in enumerate(values) if value in values[:at]]:
        raise ConfigError(f"vary[{name!r}] contains {twice[0]!r} twice. Use repeats= to run a setting again.")
    return values


def _key(value: object) -> Any:
    return value.item() if hasattr(value, "item") else value


def _check(values: Mapping[str, tuple[Any, ...]], options: Options) -> None:
    if not values:
        raise ConfigError("vary is empty. Pass at least one option, such as vary={'dtype': ['float32', 'bfloat16']}.")
    for name in values:
        if name in options:
            raise ConfigError(f"{name} is passed both as an option and in vary. Pass it in vary only.")
        if name in _FIXED:
            raise ConfigError(
                f"{name!r} cannot vary, because it changes neither an answer nor its cost. Pass {name}=… instead."
            )
    samples = options.get("do_sample", False) or True in values.get("do_sample", ())
    if (idle := [name for name in values if name in _SAMPLING]) and not samples:
        raise ConfigError(
            f"vary[{idle[0]!r}] has no effect with do_sample=False. Pass do_sample=True, and seed=0 for reproducible "
            "answers."
        )


def _reference(values: Mapping[str, tuple[Any, ...]], reference: Mapping[str, object] | None) -> dict[str, Any]:
    if reference is None:
        return {name: tried[0] for name, tried in values.items()}
    for name, value in reference.items():
        if name not in values:
            raise ConfigError(f"reference contains {name!r}, which does not vary. Use one of: {', '.join(values)}.")
        if _key(value) not in values[name]:
            raise ConfigError(
                f"reference[{name!r}]={value!r} is not a value of the grid. Use one of: "
                f"{', '.join(map(repr, values[name]))}."
            )
    return {name: _key(value) for name, value in reference.items()}
