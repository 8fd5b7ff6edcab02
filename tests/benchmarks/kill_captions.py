"""Kill ``qwenvl-kit caption --sidecar`` at random instants, and look at the files: python kill_captions.py 1000 20.

After each kill the captions on disk are marked; an image that is asked again loses its mark.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

COMMAND = "import sys; from qwenvl_kit.cli import main; sys.exit(main())"
_WAIT_S = 120.0


def draw_images(folder: Path, n_images: int) -> None:
    """Write images that differ in one pixel's colour."""
    for number in range(n_images):
        Image.new("RGB", (28, 28), (number % 256, number // 256, 0)).save(folder / f"{number:04}.png")


def kill_repeatedly(folder: Path, n_kills: int, *, longest_s: float, seed: int) -> list[int]:
    """Start the command and kill it so many times; return how many captions there were after each.

    A kill comes up to `longest_s` after the first caption of its run. Raises an AssertionError for a part of a caption,
    or one that was asked for twice.
    """
    clock = random.Random(seed)
    known: dict[str, str] = {}
    counts: list[int] = []
    for _ in range(n_kills):
        process = subprocess.Popen([sys.executable, "-c", COMMAND, *words(folder)], stderr=subprocess.DEVNULL)
        started = time.monotonic()
        while len(list(folder.glob("*.txt"))) == len(known) and process.poll() is None:
            assert time.monotonic() - started < _WAIT_S, "no caption"
            time.sleep(0.002)
        time.sleep(clock.uniform(0, longest_s))
        process.kill()
        process.wait()
        known = _mark(folder, known)
        counts.append(len(known))
    return counts


def words(folder: Path) -> list[str]:
    """Return the command line: the echo takes 5 ms an image."""
    options = ["--sidecar", ".txt", "--backend", "echo", "--model-name", "echo-5ms", "--batch-size", "1"]
    return ["caption", str(folder), *options, "--no-progress"]


def captions(folder: Path) -> dict[str, str]:
    """Return the text files of a folder."""
    return {path.name: path.read_text("utf-8") for path in folder.glob("*.txt")}


def _mark(folder: Path, known: dict[str, str]) -> dict[str, str]:
    written = captions(folder)
    assert all(text.endswith("]") for text in written.values()), "a part of a caption"
    assert {name: written[name] for name in known} == known, "asked again"
    for name in written.keys() - known.keys():
        (folder / name).write_text(f"marked {written[name]}")
    return captions(folder)


def _main(n_images: int, n_kills: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw_images(folder, n_images)
        counts = kill_repeatedly(folder, n_kills, longest_s=0.5, seed=0)
        before = captions(folder)
        subprocess.run([sys.executable, "-c", COMMAND, *words(folder)], check=True)
        after = captions(folder)
        assert {name: after[name] for name in before} == before, "asked again"
        left = sorted(path.name for path in folder.iterdir() if path.suffix not in (".png", ".txt"))
        print(f"{n_images} images, killed {n_kills} times after {counts} captions")
        print(
            f"{len(after)} captions in the end, no part of one, {len(before)} not asked again, {len(left)} other files"
        )


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:3]))
