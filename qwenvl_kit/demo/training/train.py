"""Train the embedded model: ``python -m qwenvl_kit.demo.training.train --out DIR``.

Two stages by the wall clock: first the vision tower with a head that classifies merged tokens, then the whole model.
Each process draws its own scenes; gradients are summed over processes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from qwenvl_kit.demo.scenes import WORLDS

from .trainer import Plan, Trainer


def main(arguments: list[str] | None = None) -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(prog="python -m qwenvl_kit.demo.training.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, state and log")
    parser.add_argument("--minutes", type=float, default=45.0, help="wall clock of the whole run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--world", choices=sorted(WORLDS), default="small")
    parser.add_argument("--vision-share", type=float, default=0.1, help="part of the time for the vision tower alone")
    parser.add_argument("--peak", type=float, default=1.0, help="factor on all learning rates")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--init", type=Path, help="checkpoint folder or state.pt to start from")
    parser.add_argument("--resume", action="store_true", help="continue from the state in --out")
    parser.add_argument("--port", type=int, default=29511, help="TCP port on this machine that connects the processes")
    asked = parser.parse_args(arguments)
    plan = Plan(
        out=asked.out,
        world=WORLDS[asked.world],
        minutes=asked.minutes,
        seed=asked.seed,
        vision_share=asked.vision_share,
        n_processes=asked.processes,
        init=asked.init,
        resume=asked.resume,
        peak=asked.peak,
        port=asked.port,
    )
    if plan.n_processes == 1:
        Trainer(plan).run()
    else:
        start_processes(_work, args=(plan,), nprocs=plan.n_processes, start_method="spawn")  # type: ignore[no-untyped-call]


def _work(rank: int, plan: Plan) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{plan.port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=plan.n_processes)
    Trainer(plan).run()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
