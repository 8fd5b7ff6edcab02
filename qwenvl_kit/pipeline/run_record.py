"""Make the record of a run, as plain JSON values, and the results of rows that were not answered."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwenvl_kit.errors import RowError
from qwenvl_kit.types import Prompt, Result

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.types import RowPrompt

_MOST_PROMPTS = 20  # a record stays small where each row has a prompt of its own
_DISTRIBUTIONS = ("qwenvl_kit", "torch", "transformers", "accelerate", "pillow", "pandas", "numpy")


@dataclass(frozen=True, slots=True)
class RunClock:
    """When a run began: by the calendar, and by a clock that is never set, for its length.

    Attributes
    ----------
    started : float
        Seconds since 1970.
    began : float
        Of ``time.monotonic``.
    """

    started: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)

    @property
    def started_at(self) -> str:
        """The start in UTC, as ISO 8601 writes it."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started))


def make_record(
    asked: Mapping[str, Any],
    prompts: Sequence[RowPrompt],
    resolved: ResolvedConfig,
    results: Sequence[Result],
    notes: Sequence[str],
    clock: RunClock,
) -> dict[str, Any]:
    """Return what was asked, what ran and how it went, as plain JSON values."""
    ran = resolved.record()
    return {
        "asked": dict(asked),
        "prompts": distinct_prompts(prompts),
        "effective": {**ran, "notes": [*ran["notes"], *notes]},
        "rows": dict(Counter(result.status for result in results)),
        "cached": sum(result.cached for result in results),
        "digest": digest_of(result.text for result in results),
        "started": clock.started_at,
        "seconds": round(time.monotonic() - clock.began, 3),
        "versions": versions(),
    }


def digest_of(texts: Iterable[str | None]) -> str:
    """Return a digest of answers that does not depend on their order.

    Examples
    --------
    >>> digest_of(["a cat", None]) == digest_of([None, "a cat"]) != digest_of(["a cat"])
    True
    """
    each = (json.dumps(text).encode() for text in texts)
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(one).digest() for one in each))).hexdigest()


def distinct_prompts(prompts: Sequence[RowPrompt]) -> list[str]:
    """Return the texts of the distinct prompts, in the order of their first rows; of many, the first and their number.

    Examples
    --------
    >>> distinct_prompts(["Describe it.", None, "Describe it.", Prompt("Is it red?")])
    ['Describe it.', 'Is it red?']
    """
    texts = [prompt.text if isinstance(prompt, Prompt) else prompt for prompt in prompts]
    distinct = list(dict.fromkeys(text for text in texts if isinstance(text, str)))
    n_more = len(distinct) - _MOST_PROMPTS
    return [*distinct[:_MOST_PROMPTS], *([f"… and {n_more} more prompts"] if n_more > 0 else [])]


def missing(row: int, *, failure: BaseException | None) -> Result:
    """Return the result of a row that was not answered: an error after a `failure`, else cancelled."""
    if failure is None:
        return Result(row, "cancelled")
    return Result.failed(row, RowError("generate", f"The backend failed before this row was answered: {failure}"))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that answers depend on."""
    return dict(_versions())


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = [("python", platform.python_version())]
    for name in _DISTRIBUTIONS:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return tuple(found)
