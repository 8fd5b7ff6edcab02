"""Show the progress of a run: rows per second and time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import Stage

Tick = Callable[[int, int, str], None]
_STAGES: dict[Stage, str] = {
    "load": "loading {}/{}",
    "encode": "image: layer {}/{}",
    "prefill": "prompt: layer {}/{}",
}
_SHOWN_AFTER_S = 1.0  # what is sooner done would only flicker
_REDRAWN_AFTER_S = 1.0  # the time that has passed, while no row is done


class StageProgress:
    """How far the model is within a row: `report` is called from its thread, `text` from the one that shows it.

    Examples
    --------
    >>> now = [0.0]
    >>> progress = StageProgress(lambda: now[0])
    >>> progress.report("encode", 1, 32)
    >>> progress.text()
    ''
    >>> now[0] = 2.0
    >>> progress.begin([17])
    >>> progress.report("encode", 12, 32)
    >>> progress.text()
    'row 17, image: layer 12/32'
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._started = clock, 0.0
        self._last: tuple[Stage, int, int] | None = None
        self._rows: Sequence[int] = ()

    def begin(self, rows: Sequence[int]) -> None:
        """Keep which rows the next images and prompts belong to."""
        self._rows = rows

    def report(self, stage: Stage, done: int, total: int) -> None:
        """Keep how many steps of a stage are done or under way."""
        if self._last is None or self._last[0] != stage or done <= self._last[1]:
            self._started = self._clock()
        self._last = stage, done, total

    def text(self) -> str:
        """Return the rows, the stage and its steps; empty where it ends soon, or there is none."""
        last, rows = self._last, self._rows
        if last is None or last[1] >= last[2] or self._clock() - self._started < _SHOWN_AFTER_S:
            return ""
        stage, done, total = last
        steps = _STAGES[stage].format(done, total)
        return steps if stage == "load" or not rows else f"{_named(rows)}, {steps}"


def _named(rows: Sequence[int]) -> str:
    first = min(rows)
    return f"row {first}" if len(rows) == 1 else f"row {first} and {len(rows) - 1} more"


@contextlib.contextmanager
def progress_bar(n_rows: int, *, shown: bool) -> Iterator[Tick]:
    """Yield a function of the rows that are done, of those that failed and of a text; it updates a bar where `shown`.

    tqdm estimates the time left from the recent pace.
    """
    if not shown or not n_rows:
        yield lambda _done, _failed, _text: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=n_rows, unit="row", smoothing=0.1) as bar:
        shown_before, drawn = "", time.monotonic()

        def tick(done: int, failed: int, text: str) -> None:
            nonlocal shown_before, drawn
            words = ", ".join([*([f"errors={failed}"] if failed else []), *([text] if text else [])])
            bar.set_postfix_str(words, refresh=False)
            if done > bar.n:  # an update by 0 moves tqdm's clock without counting, and its pace is far too high then
                bar.update(done - bar.n)
            elif words != shown_before or time.monotonic() - drawn >= _REDRAWN_AFTER_S:
                bar.refresh()
                drawn = time.monotonic()
            shown_before = words

        yield tick
