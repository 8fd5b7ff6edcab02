"""How fast a store takes results and finds them again.

Run it by hand: ``python tests/reliability/store_speed.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from pathlib import Path

from qwenvl_kit.store import open_store
from qwenvl_kit.types import Result

WANTED_WRITES_PER_S, MOST_LOOKUP_S, MOST_GROWTH = 3000, 60, 50 * 2**20
TEXT = "白色背景上有三个物体。左上角：一个大的红色圆形。" * 3


def main() -> int:
    """Write, look up, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=int, default=1_000_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "speed.db") as store:
        started = time.perf_counter()
        for number in range(asked.results):
            store.put(_key(number), Result(0, "ok", text=TEXT, finish_reason="stop", prompt_tokens=300, new_tokens=60))
        writes_per_s = asked.results / (time.perf_counter() - started)
        before, started = _memory(), time.perf_counter()
        found = sum(store.get(_key(number)) is not None for number in range(asked.results))
        lookup_s, growth = time.perf_counter() - started, _memory() - before
        size = (Path(folder) / "speed.db").stat().st_size
    print(
        f"{asked.results} results, {size / 2**20:.0f} MiB: {writes_per_s:.0f} committed writes/s "
        f"(wanted: {WANTED_WRITES_PER_S}), all found again in {lookup_s:.1f} s (at most {MOST_LOOKUP_S}), "
        f"memory grew by {growth / 2**20:.1f} MiB"
    )
    good = writes_per_s >= WANTED_WRITES_PER_S and lookup_s <= MOST_LOOKUP_S and growth <= MOST_GROWTH
    return 0 if found == asked.results and good else 1


def _key(number: int) -> str:
    return hashlib.blake2b(number.to_bytes(8), digest_size=16).hexdigest()


def _memory() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
