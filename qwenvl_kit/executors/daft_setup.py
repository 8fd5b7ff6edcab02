"""Start one of Daft's two runners, on this machine or on Ray, and check what is asked of it.

A process cannot change Daft's runner.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from qwenvl_kit.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from qwenvl_kit.options import Config


def import_daft() -> Any:
    """Return the library.

    Raises
    ------
    MissingExtra
        It is not installed.
    """
    try:
        import daft
    except ImportError as error:
        raise MissingExtra("running on Daft", "daft") from error
    return daft


def start(engine: str) -> Any:
    """Start Daft with the runner of an engine, and return the library.

    Raises
    ------
    MissingExtra
        Daft or Ray is not installed.
    ConfigError
        This process already uses Daft's other runner.
    """
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")  # the run shows its own
    daft = import_daft()
    wanted = "ray" if engine == "ray" else "native"
    if wanted == "ray":
        _import_ray()
    try:
        (daft.set_runner_ray if wanted == "ray" else daft.set_runner_native)()
    except Exception as error:
        # Daft refuses a second call, also for the same runner: compare with the one in use.
        there = daft.get_or_infer_runner_type()
        if there != wanted:
            other = "ray" if there == "ray" else "daft"
            raise ConfigError(
                f"engine={engine!r} needs Daft's {wanted} runner, but this process uses the {there} runner, which Daft "
                f"cannot change. Pass engine={other!r}, or start a new process (in a notebook, a new kernel)."
            ) from error
    return daft


def check_gpus(daft: Any, num_gpus: float | None, concurrency: int | None = None) -> None:
    """Check that there are as many GPUs as asked: Daft would ignore that on one machine, and Ray wait forever.

    Raises
    ------
    ConfigError
        There are fewer.
    """
    if not num_gpus:
        return
    there = gpus_of_cluster(daft) if daft.get_or_infer_runner_type() == "ray" else _gpus_here()
    wanted = num_gpus * (concurrency or 1)
    if there < wanted:
        each = f" for each of {concurrency} workers" if concurrency and concurrency > 1 else ""
        raise ConfigError(
            f"num_gpus={num_gpus:g}{each} exceeds the GPUs that there are ({there:g}). Pass num_gpus=0 and rank=None "
            "to run on the CPU."
        )


def check_cluster(config: Config, n_workers: int) -> None:
    """Check that a Ray cluster can run the workers, and that it can use the store.

    Raises
    ------
    ConfigError
        There are fewer CPUs than workers; or a store, which is a file of one machine, and several machines.
    """
    ray = _import_ray()
    there = float(ray.cluster_resources().get("CPU", 0))
    if there < n_workers:
        raise ConfigError(
            f"concurrency={n_workers} exceeds the CPUs of the cluster ({there:g}). Pass "
            f"concurrency={max(1, int(there))} or fewer."
        )
    n_nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    if config.store is not None and n_nodes > 1:
        raise ConfigError(
            f"store={config.store!r} is a file of one machine, but the cluster has {n_nodes}. Leave store out, or run "
            "on one machine."
        )


def gpus_of_cluster(daft: Any) -> float:
    """Return the number of GPUs of the whole cluster."""
    ray = _import_ray()
    if not ray.is_initialized():
        daft.get_or_create_runner()
    return float(ray.cluster_resources().get("GPU", 0))


def _gpus_here() -> float:
    import torch

    return float(torch.cuda.device_count())


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("running on Ray", "daft") from error
    return ray
