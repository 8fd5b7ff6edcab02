"""Say in a few lines where answers come from, and find the record of a column that lost it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.pipeline.run_record import digest_of
from qwenvl_kit.store import open_store

_FINGERPRINT_CHARACTERS = 12
_LONGEST_PROMPT = 300
_ALWAYS_SAID = ("backend", "model", "fingerprint", "dtype", "device", "attention", "max_caption_length", "do_sample")
_SAID_IF_GIVEN = ("quantization", "provider", "base_url", "resized_height", "resized_width", "min_pixels", "max_pixels")
_SAID_OF_SAMPLES = ("temperature", "top_k", "top_p", "seed")


class Recorded(Protocol):
    """A result with its record, such as a `Comparison`."""

    @property
    def record(self) -> dict[str, Any]:
        """What ran, as JSON values."""


def stamp(found: pd.Series | pd.DataFrame | Recorded) -> str:
    """Return where answers come from: version, date, model, options that took effect, prompts and packages.

    Parameters
    ----------
    found : Series, DataFrame or Comparison
        What a call returned.

    Returns
    -------
    str
        Lines of text, to be put under a table or a figure.

    Raises
    ------
    ConfigError
        `found` has no record. pandas drops that of a series in ``df["caption"] = …``: see `restamp`.

    Examples
    --------
    >>> import pandas as pd, qwenvl_kit
    >>> df = pd.DataFrame({"image": [None]})
    >>> print(qwenvl_kit.stamp(df.vl.caption("image", backend="echo", progress=False)))  # doctest: +ELLIPSIS
    qwenvl_kit ...
    backend echo, model echo, ...
    """
    record = _record(found)
    if "effective" not in record and "settings" not in record:
        raise ConfigError(
            f"This {type(found).__name__} has no record of a run. Pass what a call returned; for a column of a frame, "
            "which pandas strips of its record, qwenvl_kit.restamp(column, store=…) finds it."
        )
    ran = record.get("effective") or _common(record["settings"].values())
    versions = dict(record.get("versions", {}))
    lines = [f"qwenvl_kit {versions.pop('qwenvl_kit', '')}, {record.get('started', '')}", _options(ran)]
    if varied := getattr(found, "varied", ()):
        lines.append(f"varied: {', '.join(varied)}")
    lines += [f"prompt: {_short(prompt)}" for prompt in record.get("prompts", ())]
    if "rows" in record:
        lines.append(f"rows: {', '.join(f'{n} {status}' for status, n in record['rows'].items())}")
    lines.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    return "\n".join(lines)


def restamp(column: pd.Series, *, store: str | Path) -> pd.Series:
    """Return a column of answers with the record of the run that gave them, as ``attrs``.

    ``df["caption"] = df.vl.caption(…)`` drops the record, as pandas keeps no ``attrs`` of a column. The store keeps the
    record of every run, and finds it by the answers, in whatever order the rows are now.

    Parameters
    ----------
    column : Series
        All answers of a call with one prompt per row.
    store : str or Path
        The ``store`` of that call.

    Raises
    ------
    ConfigError
        No run in the store gave these answers.
    StoreError
        The store cannot be read.

    Examples
    --------
    >>> import pandas as pd, qwenvl_kit, tempfile
    >>> df = pd.DataFrame({"image": [None]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = f"{folder}/answers.db"
    ...     df["caption"] = df.vl.caption("image", backend="echo", store=store, progress=False)
    ...     qwenvl_kit.restamp(df["caption"], store=store).attrs["effective"]["backend"]
    'echo'
    """
    wanted = digest_of(None if pd.isna(text) else str(text) for text in column)
    with open_store(store, access="read") as opened:
        records = [record for record in opened.runs() if record.get("digest") == wanted]
    if not records:
        raise ConfigError(
            f"No run in store={str(store)!r} gave exactly these {len(column)} answers. Pass all rows of one call, "
            "unaltered; runs of earlier versions, and calls with several prompts per row, cannot be found."
        )
    stamped = column.copy()
    stamped.attrs.update(records[-1])
    return stamped


def _record(found: object) -> Mapping[str, Any]:
    record: Any = getattr(found, "record", None) or getattr(found, "attrs", {})
    return record if isinstance(record, Mapping) else {}


def _common(settings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the options that all settings share."""
    first, *others = settings
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def _options(ran: Mapping[str, Any]) -> str:
    names = [name for name in _ALWAYS_SAID if name in ran]
    names += [name for name in _SAID_IF_GIVEN if ran.get(name) is not None]
    names += _SAID_OF_SAMPLES if ran.get("do_sample") else ()
    return ", ".join(f"{name} {_value(name, ran[name])}" for name in names if name in ran)


def _value(name: str, value: object) -> str:
    if name == "model":
        return Path(str(value)).name  # a path says more of a machine than of a model
    return str(value)[:_FINGERPRINT_CHARACTERS] if name == "fingerprint" else str(value)


def _short(prompt: str) -> str:
    one_line = " ".join(prompt.split())
    return one_line if len(one_line) <= _LONGEST_PROMPT else f"{one_line[:_LONGEST_PROMPT]}…"
