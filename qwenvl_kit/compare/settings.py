"""What varies goes in, the settings of a grid come out, each with the one it is compared to.

It knows options and nothing of pictures, models or frames.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.options import Config, Options

_SAMPLING = ("temperature", "top_k", "top_p", "seed")
# They change neither answers nor their cost, or are not a setting's own affair.
_FIXED = ("image_src_type", "store", "trust_sources", "progress", "on_error", "strict", "timeout_s")


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of the grid.

    Attributes
    ----------
    values : tuple of (str, object)
        The varied options and what they are here.
    config : Config
        Everything that runs here.
    reference : int
        Position of the setting that this one is compared to.
    """

    values: tuple[tuple[str, Any], ...]
    config: Config
    reference: int

    @property
    def label(self) -> str:
        """What tells this setting from the others, such as ``dtype=float16, resized_height=56``."""
        return ", ".join(f"{name}={value}" for name, value in self.values)

    def seeded(self, repeat: int) -> Config:
        """The config of one repeat: a seed that was given counts up, so that each repeat can be had again alone."""
        if self.config.seed is None or not repeat:
            return self.config
        return self.config.replace(seed=self.config.seed + repeat)


def expand(
    vary: Mapping[str, Sequence[object]], options: Options, reference: Mapping[str, object] | None = None
) -> list[Setting]:
    """Every combination of the varied options, the last one varying fastest.

    Parameters
    ----------
    vary : mapping
        Names of options and the values to try.
    options : mapping
        Options that all settings share.
    reference : mapping, optional
        Values that the settings are compared to; options that it leaves out are those of the setting itself. Without it
        the first value of each.

    Returns
    -------
    list of Setting
        At least one.

    Raises
    ------
    ConfigError
        Nothing varies, an option cannot, a value breaks its option's rule or stands twice, or the reference is not in
        the grid.

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
        raise ConfigError(f"vary[{name!r}] must be a list of values to try; got {given!r}; pass [{given!r}, …]")
    values = tuple(_key(value) for value in given)  # type: ignore[attr-defined]  # arrays iterate too
    if not values:
        raise ConfigError(f"vary[{name!r}] must hold at least one value; got none; leave {name} out of vary")
    if twice := [value for at, value in enumerate(values) if value in values[:at]]:
        raise ConfigError(
            f"vary[{name!r}] must hold each value once; got {twice[0]!r} twice; use repeats= to ask again"
        )
    return values


def _key(value: object) -> Any:
    return value.item() if hasattr(value, "item") else value


def _check(values: Mapping[str, tuple[Any, ...]], options: Options) -> None:
    if not values:
        raise ConfigError("vary must name at least one option; got {}; pass vary={'dtype': ['float32', 'bfloat16']}")
    for name in values:
        if name in options:
            raise ConfigError(
                f"{name} must either vary or be the same for all settings; got both; pass it in vary only"
            )
        if name in _FIXED:
            raise ConfigError(f"vary must name options that change an answer or its cost; got {name!r}; pass {name}=…")
    samples = options.get("do_sample", False) or True in values.get("do_sample", ())
    if (idle := [name for name in values if name in _SAMPLING]) and not samples:
        raise ConfigError(
            f"vary[{idle[0]!r}] takes effect when sampling only; got do_sample=False; pass do_sample=True, and seed=0 "
            "for answers that can be had again"
        )


def _reference(values: Mapping[str, tuple[Any, ...]], reference: Mapping[str, object] | None) -> dict[str, Any]:
    if reference is None:
        return {name: tried[0] for name, tried in values.items()}
    for name, value in reference.items():
        if name not in values:
            raise ConfigError(f"reference must name varied options; got {name!r}; those are: {', '.join(values)}")
        if _key(value) not in values[name]:
            raise ConfigError(
                f"reference[{name!r}] must be one of the values tried; got {value!r}; those are: "
                f"{', '.join(map(repr, values[name]))}"
            )
    return {name: _key(value) for name, value in reference.items()}
