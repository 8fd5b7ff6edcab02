"""Decode images in a process of its own, which `qwenvl_kit.images.decode_pool` starts, feeds and ends.

Started as a script, without the package's ``__init__``: it needs NumPy and Pillow alone, and is ready in 0.1 s.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import warnings
from typing import TYPE_CHECKING, Any

from PIL import AvifImagePlugin, Image, ImageFile

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.decode import decode_resized

if TYPE_CHECKING:
    from qwenvl_kit.images.resize import Sizing

LENGTH = struct.Struct("<Q")
MIN_MEMORY, MEMORY_PER_BYTE, MAX_MEMORY = 512 * 2**20, 64, 2 * 2**30


def max_memory(n_bytes: int) -> int:
    """Return the bytes that decoding a file of `n_bytes` may take: a lossless JPEG 2000 takes about 10 a byte."""
    return min(MIN_MEMORY + MEMORY_PER_BYTE * n_bytes, MAX_MEMORY)


def main() -> None:
    """Serve requests from standard input on standard output until it ends."""
    jobs, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # what a library prints must not stand between the answers
    warnings.simplefilter("ignore")  # Pillow's, of odd metadata; nobody reads them here
    # The pool runs as many processes as there are CPUs; a decoder's own threads would take address space and time.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    while (job := receive(jobs)) is not None and (data := receive(jobs)) is not None:
        for part in _answer(data, *pickle.loads(job)):
            send(answers, part)


def send(pipe: int, part: Any) -> None:
    """Write bytes, or an array of them, behind their length to a file descriptor."""
    view = memoryview(part)
    body = view.cast("B") if view.nbytes else memoryview(b"")
    for piece in (memoryview(LENGTH.pack(len(body))), body):
        while piece:
            piece = piece[os.write(pipe, piece) :]


def receive(pipe: int) -> bytearray | None:
    """Read what `send` wrote; None where the other end is closed."""
    head = _read(pipe, LENGTH.size)
    return None if head is None else _read(pipe, *LENGTH.unpack(head))


def _read(pipe: int, length: int) -> bytearray | None:
    body = bytearray(length)
    left = memoryview(body)
    while left:
        n_read = os.readv(pipe, [left])
        if not n_read:
            return None
        left = left[n_read:]
    return body


def _answer(
    data: bytearray, label: str, sizing: Sizing, max_image_pixels: int, of_pillow: tuple[int | None, bool]
) -> tuple[Any, Any]:
    """A pickled head, and the pixels."""
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = of_pillow
    _limit_memory(max_memory(len(data)))
    try:
        pixels, source_size = decode_resized(bytes(data), label, sizing, max_image_pixels=max_image_pixels)
    except RowError as error:
        return pickle.dumps(("error", error.stage, error.message)), b""
    return pickle.dumps(("ok", pixels.shape, source_size)), pixels


def _limit_memory(n_bytes: int) -> None:
    """Let the process grow by so much: more is a MemoryError, which is the image's fault alone."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # there are no such limits on Windows
        import resource

        with open("/proc/self/statm") as statm:
            now = int(statm.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = now + n_bytes
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))
