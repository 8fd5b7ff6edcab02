"""The frozen, validated options of one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, Unpack

from qwenvl_kit._warnings import warn
from qwenvl_kit.errors import ConfigError, UnknownOption
from qwenvl_kit.options.groups import FetchOptions, Group, ImageOptions, ModelOptions, RunOptions, SamplingOptions
from qwenvl_kit.options.keywords import ImageDecode, Options
from qwenvl_kit.options.table import FORMER_NAMES, names_of, option_names, suggest

_G = TypeVar("_G", bound=Group)


@dataclass(frozen=True, init=False, repr=False)
class Config(ModelOptions, SamplingOptions, ImageOptions, FetchOptions, RunOptions):
    """All options of a call, validated; each is an attribute here and in its group.

    Examples
    --------
    >>> config = Config(dtype="float32", batch_size=8)
    >>> config
    Config(dtype='float32', batch_size=8)
    >>> config.model.dtype, config.replace(batch_size=2).batch_size
    ('float32', 2)
    >>> Config(temperatur=0.5)
    Traceback (most recent call last):
    qwenvl_kit.errors.UnknownOption: Unknown option 'temperatur'. Did you mean 'temperature'?

    Raises
    ------
    ConfigError
        A value is invalid, or two options exclude each other.
    UnknownOption
        An option does not exist.
    """

    model: ModelOptions = field(init=False, compare=False)
    sampling: SamplingOptions = field(init=False, compare=False)
    image: ImageOptions = field(init=False, compare=False)
    fetch: FetchOptions = field(init=False, compare=False)
    run: RunOptions = field(init=False, compare=False)
    explicit: frozenset[str] = field(init=False, compare=False)
    """Names of the options that the caller passed."""

    def __init__(self, **options: Unpack[Options]) -> None:
        given = _current(dict(options))
        set_field = object.__setattr__  # the class is frozen
        set_field(self, "explicit", frozenset(given))
        set_field(self, "model", self._group(ModelOptions, given))
        set_field(self, "sampling", self._group(SamplingOptions, given))
        set_field(self, "image", self._group(ImageOptions, given))
        set_field(self, "fetch", self._group(FetchOptions, given))
        set_field(self, "run", self._group(RunOptions, given))
        if self.engine == "ray" and self.rank:
            raise ConfigError(
                f"rank={self.rank} is invalid with engine='ray', where each worker has its own GPUs. Use rank=0 or "
                "rank=None."
            )

    def _group(self, kind: type[_G], given: dict[str, Any]) -> _G:
        """Return a group, and copy its values to this config."""
        group = kind(**{name: given[name] for name in names_of(kind) if name in given})
        for name in names_of(kind):
            object.__setattr__(self, name, getattr(group, name))
        return group

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in option_names() if name in self.explicit}
        if shown.get("headers"):
            shown["headers"] = dict.fromkeys(shown["headers"], "***")  # they may hold a token
        return f"Config({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], Config], tuple[dict[str, Any]]]:
        return _rebuild, ({name: getattr(self, name) for name in self.explicit},)

    @property
    def decode(self) -> ImageDecode:
        """Former name of `image_decode`."""
        warn("Config.decode is now image_decode. Use the new name.", DeprecationWarning)
        return self.image_decode

    @property
    def beginning(self) -> str:
        """`start_with` without the spaces at its end; empty for none.

        The tokens of a vocabulary of words begin with the space before the word: a space of its own is one that a model
        seldom continues.
        """
        return (self.start_with or "").rstrip(" \t")

    def replace(self, **changes: Unpack[Options]) -> Config:
        """Return the config with `changes`, which count as explicit."""
        kept: dict[str, Any] = {name: getattr(self, name) for name in self.explicit}
        return Config(**{**kept, **changes})


def _rebuild(options: dict[str, Any]) -> Config:
    return Config(**options)


def _current(options: dict[str, Any]) -> dict[str, Any]:
    """Return options under their current names.

    Raises
    ------
    UnknownOption
        There is no such option.
    """
    current: dict[str, Any] = {}
    for name, value in options.items():
        if name in FORMER_NAMES and FORMER_NAMES[name] not in options:
            warn(f"The option {name} is now {FORMER_NAMES[name]}. Use the new name.", DeprecationWarning)
            current[FORMER_NAMES[name]] = value
        elif name in option_names():
            current[name] = value
        else:
            raise UnknownOption(f"Unknown option {name!r}. {suggest(name, option_names())}")
    return current
