"""Rules of option values, as data: what an option allows, in words and as a check."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, get_args
from urllib.parse import urlsplit

from qwenvl_kit.errors import ConfigError

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")  # https://www.rfc-editor.org/rfc/rfc3986#section-3.1, in lower case
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
_CONNECTION_HEADERS = frozenset({"host", "connection", "content-length", "transfer-encoding"})
_BASE_URL = re.compile(r"https?://[\x21-\x7e]+")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEVICE = re.compile(r"auto|balanced|balanced_low_0|sequential|(cpu|cuda|mps|xpu|npu|hpu)(:\d+)?")


class Rule(Protocol):
    """The rule of one option."""

    @property
    def allowed(self) -> str:
        """The allowed values, in words that follow "Use"."""
        ...

    def accepts(self, value: Any) -> bool:
        """Return whether a value is allowed."""
        ...


@dataclass(frozen=True, slots=True)
class Integer:
    """Integers from `minimum` to `maximum`, and None where `none` names its meaning."""

    minimum: int
    maximum: int | None = None
    none: str = ""
    unit: str = ""

    @property
    def allowed(self) -> str:
        """The range in words."""
        bounds = f"from {self.minimum} to {self.maximum}" if self.maximum else f"of at least {self.minimum}"
        return _in_words(f"an integer {bounds}", self.unit, self.none)

    def accepts(self, value: Any) -> bool:
        """Return whether a value is an integer in the range."""
        if value is None:
            return bool(self.none)
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return is_integer and self.minimum <= value and (self.maximum is None or value <= self.maximum)


@dataclass(frozen=True, slots=True)
class Number:
    """Finite numbers above `above`, up to `maximum`, and None where `none` names its meaning."""

    above: float | None = None
    maximum: float | None = None
    none: str = ""
    unit: str = ""

    @property
    def allowed(self) -> str:
        """The range in words."""
        if self.above is None:
            bounds = ""
        else:
            bounds = f" above {self.above:g}" if self.maximum is None else f" in ({self.above:g}, {self.maximum:g}]"
        return _in_words(f"a number{bounds}", self.unit, self.none)

    def accepts(self, value: Any) -> bool:
        """Return whether a value is a finite number in the range."""
        if value is None:
            return bool(self.none)
        above = -math.inf if self.above is None else self.above
        return is_number(value) and above < value <= (math.inf if self.maximum is None else self.maximum)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the strings of a `Literal`."""

    literal: Any

    @property
    def values(self) -> tuple[str, ...]:
        """The allowed strings."""
        return get_args(self.literal)

    @property
    def allowed(self) -> str:
        """The allowed strings, listed."""
        return f"{', '.join(self.values[:-1])} or {self.values[-1]}"

    def accepts(self, value: Any) -> bool:
        """Return whether a value is one of the strings."""
        return value in self.values


@dataclass(frozen=True, slots=True)
class Custom:
    """Values that a function accepts."""

    allowed: str
    accepts: Callable[[Any], bool]
    is_secret: bool = False
    """Whether the value is left out of messages."""


def check(name: str, value: object, rule: Rule) -> None:
    """Check a value against its rule.

    Raises
    ------
    ConfigError
        The rule does not accept the value.
    """
    if rule.accepts(value):
        return
    what = f"{name} is invalid." if isinstance(rule, Custom) and rule.is_secret else f"{name}={value!r} is invalid."
    near = difflib.get_close_matches(str(value), rule.values, n=1, cutoff=0.4) if isinstance(rule, Choice) else []
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{what} Use {rule.allowed}.{hint}")


def is_number(value: object) -> bool:
    """Return whether a value is a finite number, not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _in_words(allowed: str, unit: str, none: str) -> str:
    return allowed + (f", in {unit}" if unit else "") + (f", or None for {none}" if none else "")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value == value.encode("utf-8", "replace").decode()


def _is_gpu_share(value: Any) -> bool:
    return is_number(value) and (0 <= value <= 1 or (value > 1 and value == int(value)))


def _is_device_map(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, str) and _DEVICE.fullmatch(value) is not None)


def _are_schemes(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, str) and _SCHEME.fullmatch(one) for one in value)


def _are_headers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(text, str)
        and _HEADER_NAME.fullmatch(name) is not None
        and _HEADER_VALUE.fullmatch(text) is not None
        and name.lower() not in _CONNECTION_HEADERS
        for name, text in value.items()
    )


def _is_base_url(value: Any) -> bool:
    try:
        parts = urlsplit(value)
        return bool(
            _BASE_URL.fullmatch(value)
            and parts.hostname
            and not (parts.username or parts.password or parts.query or parts.fragment)
            and parts.port != 0
        )
    except ValueError:  # a port that is no number, or half an IPv6 address
        return False


def _is_body(value: Any) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    try:
        json.dumps(dict(value), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        return False
    return True


FLAG = Custom("True or False", lambda v: isinstance(v, bool))
NAME = Custom("a non-empty string", lambda v: isinstance(v, str) and v != "")
ADAPTER = Custom("a non-empty string, or None", lambda v: v is None or (_is_text(v) and v != ""))
TEXT = Custom("a string without unpaired surrogates, or None", lambda v: v is None or _is_text(v))
LOCAL_PATHS = Custom("True, False or a folder", lambda v: isinstance(v, bool) or (_is_text(v) and v != ""))
SCHEMES = Custom("a list of schemes without '://', such as ['oss']", _are_schemes)
HEADERS = Custom(
    "a dict of header names and single-line values, such as {'User-Agent': 'survey/1.0 (me@example.org)'}, without "
    "Host, Connection, Content-Length and Transfer-Encoding, or None",
    lambda v: v is None or _are_headers(v),
    is_secret=True,  # may hold a token
)
DEVICE_MAP = Custom(
    "auto, balanced, balanced_low_0, sequential, a device such as cuda:1, a dict, or None",
    lambda v: v is None or _is_device_map(v),
)
MAX_MEMORY = Custom(
    "a dict such as {0: '20GiB', 'cpu': '60GiB'}, or None", lambda v: v is None or isinstance(v, Mapping)
)
ROWS_IN_FLIGHT = Custom(
    "an integer of at least 1, 'auto' to size them from free memory, or None for the default",
    lambda v: v is None or (isinstance(v, str) and v == "auto") or Integer(1).accepts(v),
)
GPU_SHARE = Custom(
    "a fraction of one GPU, a whole number of GPUs, or None for the default", lambda v: v is None or _is_gpu_share(v)
)
BASE_URL = Custom(
    "an http or https URL such as http://localhost:8000/v1, without user name, password, query and fragment (the key "
    "belongs into the environment: api_key_env), or None",
    lambda v: v is None or (isinstance(v, str) and _is_base_url(v)),
    is_secret=True,  # may hold a password
)
ENVIRONMENT_NAME = Custom(
    "the name of an environment variable, such as OPENAI_API_KEY, and not the key itself",
    lambda v: isinstance(v, str) and _ENVIRONMENT_NAME.fullmatch(v) is not None,
    is_secret=True,  # may be the key
)
EXTRA_BODY = Custom(
    "a dict of names and JSON values, such as {'min_p': 0.1}, or None", lambda v: v is None or _is_body(v)
)
