"""Daft's two runners, the one on this machine and the one on Ray: started, and asked for no more than there is.

Daft keeps to its first runner for the whole life of a process.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from qwenvl_kit.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from qwenvl_kit.options import Config


def import_daft() -> Any:
    """The library.

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
    """Bring up Daft with the runner of an engine, and give the library.

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
        # Daft refuses a second call, also for the same runner; what it runs on tells which of both this was.
        there = daft.get_or_infer_runner_type()
        if there != wanted:
            other = "ray" if there == "ray" else "daft"
            raise ConfigError(
                f"engine={engine!r} needs Daft's {wanted} runner, but this process has used the other one, and Daft "
                f"keeps to its first; pass engine={other!r}, or start a new process (in a notebook, a new kernel)"
            ) from error
    return daft


def check_gpus(daft: Any, num_gpus: float | None, concurrency: int | None = None) -> None:
    """Refuse at once what Daft would ignore on one machine, and what Ray would wait for in vain.

    Raises
    ------
    ConfigError
        The workers want more GPUs than there are.
    """
    if not num_gpus:
        return
    there = gpus_of_cluster(daft) if daft.get_or_infer_runner_type() == "ray" else _gpus_here()
    wanted = num_gpus * (concurrency or 1)
    if there < wanted:
        each = f" for each of {concurrency} workers" if concurrency and concurrency > 1 else ""
        raise ConfigError(
            f"num_gpus={num_gpus:g}{each} asks for more GPUs than there are ({there:g}); pass num_gpus=0 and "
            "rank=None to run on the CPU"
        )


def check_cluster(config: Config, n_workers: int) -> None:
    """Refuse what a cluster cannot do, before anything waits for it.

    Raises
    ------
    ConfigError
        There are fewer CPUs than workers; or a store, which is a file of one machine, and several machines.
    """
    ray = _import_ray()
    there = float(ray.cluster_resources().get("CPU", 0))
    if there < n_workers:
        raise ConfigError(
            f"concurrency={n_workers} asks for more workers than the cluster has CPUs ({there:g}); pass "
            f"concurrency={max(1, int(there))} or fewer"
        )
    n_nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    if config.store is not None and n_nodes > 1:
        raise ConfigError(
            f"store={config.store!r} is a file of one machine; got a cluster of {n_nodes}; leave the store out, or run "
            "on one machine"
        )


def gpus_of_cluster(daft: Any) -> float:
    """GPUs of the whole cluster."""
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
