"""What runs in a worker of Daft or Ray: a batch of work items in, their results out, on a model that stays loaded.

A row's fault is its result; what breaks the whole run goes back as a value, since exceptions lose their type on the
way through a process of Daft's. Where it runs, and what becomes of its answers, it does not know.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from qwenvl_kit.checkpoints.resolve import warn_ignored_options
from qwenvl_kit.executors import local
from qwenvl_kit.executors.serialization import BatchInfo, WorkItem, pack_error, to_fields
from qwenvl_kit.executors.specs import make_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qwenvl_kit.options import Config


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
            One per item: ``results`` with the fields of a `Result` per prompt; with the first, ``info`` has what
            ran, or ``failure`` what broke. After a failure, ``results`` is empty for items that are not finished.
        """
        items = [WorkItem.unpack(one) for one in packed]
        try:
            info, results, failure = self._run(items)
        except Exception as error:  # noqa: BLE001  # the driver raises it
            return self._answers([[] for _ in items], failure=pack_error(error))
        if failure is not None:
            return self._answers(results, failure=pack_error(failure))
        return self._answers(results, info=pickle.dumps(info))

    def _run(self, items: Sequence[WorkItem]) -> tuple[BatchInfo, list[list[dict[str, Any]]], BaseException | None]:
        resolved = make_spec(self._config).resolved
        if self._config.strict:
            warn_ignored_options(self._config, resolved)
        cells = [item.cell for item in items for _ in item.prompts]
        prompts = [prompt for item in items for prompt in item.prompts]
        run = local.execute(cells, prompts, self._config, warn_ignored=False, keeps_record=False)
        notes = run.record["effective"]["notes"][len(resolved.notes) :]
        results = iter(run.results)
        answers = [[next(results) for _ in one.prompts] for one in items]
        if run.failure is not None:  # rows that it cost have errors, which are no answers
            answers = [some if all(one.status in ("ok", "null_image") for one in some) else [] for some in answers]
        return BatchInfo(resolved, tuple(notes)), [[to_fields(one) for one in some] for some in answers], run.failure

    def _answers(self, results: list[list[dict[str, Any]]], **first: bytes) -> list[dict[str, Any]]:
        return [
            {"results": one, "info": None, "failure": None, **(first if position == 0 else {})}
            for position, one in enumerate(results)
        ]
