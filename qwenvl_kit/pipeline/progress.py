"""How far a run is, for people: pictures per second and time left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Tick = Callable[[int, int], None]


@contextlib.contextmanager
def progress_bar(n_rows: int, *, shown: bool) -> Iterator[Tick]:
    """Give a function that is told the rows done and the rows failed so far; a bar is drawn where `shown`.

    The time left is estimated by tqdm from the recent pace.
    """
    if not shown or not n_rows:
        yield lambda _done, _failed: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=n_rows, unit="picture", smoothing=0.1) as bar:

        def tick(done: int, failed: int) -> None:
            if failed:
                bar.set_postfix(errors=failed, refresh=False)
            bar.update(done - bar.n)

        yield tick
