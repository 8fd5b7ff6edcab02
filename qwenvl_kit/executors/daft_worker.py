"""Answer batches of work items in a worker of Daft or Ray, on a model that stays loaded.

A row's fault is its result. An error that ends the run is returned as a value, since exceptions lose their type on the
way through a process of Daft's.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
from typing import TYPE_CHECKING, Any

from qwenvl_kit.checkpoints.resolve import warn_ignored_options
from qwenvl_kit.errors import StoreError
from qwenvl_kit.executors.local import run_spec
from qwenvl_kit.executors.model_cache import model_cache
from qwenvl_kit.executors.serialization import BatchInfo, WorkItem, pack_error, to_fields
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qwenvl_kit.inference.backend import BackendSpec
    from qwenvl_kit.options import Config
    from qwenvl_kit.pipeline import Run
    from qwenvl_kit.types import Result


class Worker:
    """Answer work items.

    Parameters
    ----------
    config : Config
        For a run in one process.

    Examples
    --------
    >>> from qwenvl_kit import Config
    >>> (answer,) = Worker(Config(backend="echo", progress=False)).answer([WorkItem("missing.png", ("What?",)).pack()])
    >>> answer["results"][0]["stage"]
    'fetch'
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def answer(self, packed: Sequence[bytes]) -> list[dict[str, Any]]:
        """Answer a batch.

        Returns
        -------
        list of dict
            One per item: ``results`` with the fields of a `Result` per prompt. With the first, ``info`` says what ran,
            or ``failure`` what broke. After a failure, ``results`` is empty for items that are not finished.
        """
        items = [WorkItem.unpack(one) for one in packed]
        try:
            with model_cache.running():
                spec = make_spec(self._config)
                if self._config.strict:
                    warn_ignored_options(self._config, spec.resolved)
                run = self._run(items, spec)
        except Exception as error:  # noqa: BLE001  # the driver raises it
            return _answers([[] for _ in items], failure=pack_error(error))
        results = _by_item(items, run)
        if run.failure is not None:
            return _answers(results, failure=pack_error(run.failure))
        return _answers(results, info=pickle.dumps(BatchInfo(spec.resolved, run.notes)))

    def _run(self, items: Sequence[WorkItem], spec: BackendSpec) -> Run:
        cells = [item.cell for item in items for _ in item.prompts]
        prompts = [prompt for item in items for prompt in item.prompts]
        acquire = functools.partial(model_cache.acquire, spec)
        with self._opened_store() as store:
            return run_spec(cells, prompts, self._config, spec, acquire, store=store)

    @contextlib.contextmanager
    def _opened_store(self) -> Iterator[SqliteStore | None]:
        if self._config.store is None:
            yield None
            return
        store = SqliteStore(self._config.store)
        try:
            yield store
        finally:
            with contextlib.suppress(StoreError):  # each result is committed by now
                store.close()


def _by_item(items: Sequence[WorkItem], run: Run) -> list[list[Result]]:
    results = iter(run.results)
    grouped = [[next(results) for _ in item.prompts] for item in items]
    if run.failure is not None:  # rows that it cost have errors, which are no answers
        return [some if all(one.status in ("ok", "null_image") for one in some) else [] for some in grouped]
    return grouped


def _answers(results: list[list[Result]], **first: bytes) -> list[dict[str, Any]]:
    return [
        {
            "results": [to_fields(one) for one in some],
            "info": None,
            "failure": None,
            **(first if position == 0 else {}),
        }
        for position, some in enumerate(results)
    ]
