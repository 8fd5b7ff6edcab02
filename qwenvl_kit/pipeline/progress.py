"""Show the progress of a run: rows per second and time left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Tick = Callable[[int, int], None]


@contextlib.contextmanager
def progress_bar(n_rows: int, *, shown: bool) -> Iterator[Tick]:
    """Yield a function of the numbers of rows that are done and that failed; it updates a bar where `shown`.

    tqdm estimates the time left from the recent pace.
    """
    if not shown or not n_rows:
        yield lambda _done, _failed: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=n_rows, unit="row", smoothing=0.1) as bar:

        def tick(done: int, failed: int) -> None:
            if failed:
                bar.set_postfix(errors=failed, refresh=False)
            bar.update(done - bar.n)

        yield tick
