"""A plan that fits, fits: the run ends within a limit of just the memory that the plan states."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.checkpoints import make_published

pytestmark = [pytest.mark.model, pytest.mark.slow]
_ROOTS = ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max"))
CHILD = textwrap.dedent(
    """
    import sys
    import numpy as np, pandas as pd, torch
    import qwenvl_kit
    folder, dtype, n_rows, side = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    images = [np.random.default_rng(at).integers(0, 256, (side, side, 3), dtype=np.uint8) for at in range(n_rows)]
    cells = pd.Series(images)
    options = dict(model_name=folder, dtype=dtype, rows_in_flight=n_rows, max_caption_length=4, progress=False)
    plan = cells.vl.plan(**options)
    mapped = plan.memory.loc[plan.memory["part"] == "weight files while loading", "bytes"].sum()
    print(plan.peak["cpu"] - mapped, flush=True)
    sys.stdin.readline()
    found = cells.vl.run(**options)
    print(found["status"].tolist(), found.attrs["effective"]["notes"], flush=True)
    """
)


@pytest.fixture
def group() -> Iterator[tuple[Path, Path]]:
    """A new group of control, and the file of its limit."""
    for root, limit in _ROOTS:
        folder = root / f"qwenvl_kit-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / limit).is_file():
            try:
                yield folder, folder / limit
            finally:
                folder.rmdir()
            return
        with contextlib.suppress(OSError):
            folder.rmdir()
    pytest.skip("no group of control can be made here, as root on Linux can")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 M parameters: 0.2 GB in bfloat16, 0.4 GB in float32."""
    return make_published(
        tmp_path_factory.mktemp("wide"),
        hidden=768,
        layers=10,
        vocab_size=16384,
        max_pixels=1_003_520,
        text={"intermediate_size": 2560, "num_attention_heads": 12, "rope_scaling": _rope(64)},
        vision={"hidden_size": 768, "intermediate_size": 2048, "num_heads": 12, "depth": 4},
    )


def _rope(head: int) -> dict[str, object]:
    return {"type": "mrope", "mrope_section": [head // 8, head // 16 * 3, head // 16 * 3]}


@pytest.mark.parametrize(
    ("dtype", "n_rows", "side"), [("bfloat16", 8, 336), ("float32", 8, 336), ("float32", 1, 980), ("bfloat16", 1, 980)]
)
def test_a_run_ends_within_the_memory_of_its_plan(
    group: tuple[Path, Path], checkpoint: Path, dtype: str, n_rows: int, side: int
) -> None:
    folder, limit = group
    command = [sys.executable, "-c", CHILD, str(checkpoint), dtype, str(n_rows), str(side)]
    enter = f'echo $$ > {folder / "cgroup.procs"} && exec "$@"'
    with subprocess.Popen(
        ["sh", "-c", enter, "sh", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        planned = int(child.stdout.readline())
        limit.write_text(str(planned))
        child.stdin.write("go\n")
        child.stdin.flush()
        told = child.stdout.read()
        status = child.wait()

    assert status == 0, f"the system ended the run at {planned >> 20} MiB, of a plan of as many"
    assert told.count("'ok'") == n_rows  # perhaps of fewer rows at once: the cache leaves room for mapped files too
