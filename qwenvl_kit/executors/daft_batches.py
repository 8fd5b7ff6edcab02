"""Send work items to Daft's workers in batches, and yield the answers as they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qwenvl_kit.executors.daft_setup import check_cluster, check_gpus, gpus_of_cluster, start
from qwenvl_kit.executors.daft_worker import Worker
from qwenvl_kit.executors.serialization import result_kinds

if TYPE_CHECKING:
    from qwenvl_kit.options import Config

_N_TURNS, _N_LEAST = (
    4,
    16,
)  # rows in flight and work items per batch: with fewer the model waits for the next
_ROWS_IN_FLIGHT = 16  # where each worker sizes them itself: those of a CPU
_MAX_PARTITIONS = 256


class DaftWorkers:
    """The workers of one run; each loads the model once.

    Parameters
    ----------
    config : Config
        What was asked.

    Attributes
    ----------
    config : Config
        That of each worker.

    Raises
    ------
    ConfigError
        The cluster cannot do what is asked.
    MissingExtra
        Daft or Ray is not installed.
    """

    def __init__(self, config: Config) -> None:
        self.config = config.replace(engine="local", concurrency=None, num_gpus=None, progress=False, on_error="keep")
        self._on_ray = config.engine == "ray"
        self._n_workers = config.concurrency or 1
        self._n_each = max(_N_LEAST, _rows_in_flight(config) * _N_TURNS)
        self._daft = start(config.engine)
        self._gpus = _gpus_each(self._daft, config, self._n_workers) if self._on_ray else 0.0

    def answers(self, packed: Mapping[int, bytes]) -> Iterator[dict[str, Any]]:
        """Yield batches: under ``at`` the keys of work items, under ``answer`` those of `Worker.answer`."""
        daft = self._daft
        frame = daft.from_pydict({"at": list(packed), "item": list(packed.values())})
        if self._on_ray and len(packed) > self._n_each:
            # A partition comes back as a whole, so that one for all would bring nothing before the end.
            frame = frame.into_partitions(min(_MAX_PARTITIONS, -(-len(packed) // self._n_each)))
        answers = frame.select("at", self._method()(daft.col("item")).alias("answer"))
        for batch in answers.to_arrow_iter(results_buffer_size=None):
            yield batch.to_pydict()

    def _method(self) -> Any:
        daft, config = self._daft, self.config

        class Qwen:  # a class of its own for each run, since Daft marks it
            def __init__(self) -> None:
                self._worker = Worker(config)

            @daft.method.batch(return_dtype=_dtype(daft), batch_size=self._n_each)  # type: ignore[untyped-decorator]
            def answer(self, packed: Any) -> list[dict[str, Any]]:
                return self._worker.answer(packed.to_pylist())

        # With a number of workers given, Daft runs each in a process of its own, on both runners.
        return daft.cls(Qwen, gpus=self._gpus, max_concurrency=self._n_workers, name_override="QwenVL")().answer


def _rows_in_flight(config: Config) -> int:
    if isinstance(config.rows_in_flight, int):
        return config.rows_in_flight
    is_named = config.rows_in_flight is None and "batch_size" in config.explicit
    return config.batch_size if is_named else _ROWS_IN_FLIGHT


def _gpus_each(daft: Any, config: Config, n_workers: int) -> float:
    check_cluster(config, n_workers)
    computes = config.backend != "openai"  # a worker that asks a server needs no GPU
    gpus = config.num_gpus if config.num_gpus is not None else float(computes and gpus_of_cluster(daft) > 0)
    check_gpus(daft, gpus, n_workers)
    return gpus


def _dtype(daft: Any) -> Any:
    """Return the type of an answer of `Worker.answer`."""
    kinds = daft.DataType
    types = {
        "text": kinds.string(),
        "whole": kinds.int64(),
        "number": kinds.float64(),
        "truth": kinds.bool(),
        "pickled": kinds.binary(),
    }
    result = kinds.struct({name: types[kind] for name, kind in result_kinds().items()})
    return kinds.struct({"results": kinds.list(result), "info": kinds.binary(), "failure": kinds.binary()})
