"""Serve decoding in a process of its own, which `qwenvl_kit.images.decode_process` starts.

Started as a script, without the package's ``__init__``: it needs NumPy and Pillow alone, and is ready in 0.1 s.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import pickle
import struct
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import AvifImagePlugin, Image, ImageFile

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.decode import decode_resized_image
from qwenvl_kit.images.heap import blocks_returned, trim_heap
from qwenvl_kit.images.pixels import bands

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwenvl_kit.images.resize import TargetSize

_Buffer = TypeVar("_Buffer", bytearray, "NDArray[np.uint8]")
LENGTH = struct.Struct("<Q")
_BASE_MEMORY = 96 * 2**20  # a HEIF file of 64×64 pixels takes 40 MiB, all others 8 or less
_MAX_MEMORY = 2 * 2**30
_USUAL_RESULT = 40 * 2**20  # 37 MiB under a checkpoint's own limits
_LARGE_MEMORY = 200 * 2**20  # what 24 megapixels take
_MAPPED_BYTES = 2**20  # fewer are quicker from the heap
_KEPT_MEMORY = 64 * 2**20  # after an image, for the next one: getting it anew would cost a tenth of the time


def max_memory(n_file_bytes: int, n_image_bytes: int, n_result_bytes: int = 0) -> int:
    """Return the memory limit of decoding.

    Parameters
    ----------
    n_file_bytes : int
        Bytes of the file: a lossless JPEG 2000 takes about 10 a byte.
    n_image_bytes : int
        What decoding is expected to take by the file's header (`Probe.bytes_per_pixel`); 0 where it has no size.
        Files of 12 megapixels took 0.3 to 0.9 times that, WebP 2.3 times.
    n_result_bytes : int
        What the resized image takes beside the other one; more than usual where the caller asks for a larger size.
    """
    by_header = 3 * n_image_bytes + 16 * n_file_bytes
    # A header is easily made to name a large image: the largest one of 4 bytes a pixel and its bands take 400 MiB.
    most = 320 * 2**20 + 64 * n_file_bytes + max(0, n_result_bytes - _USUAL_RESULT)
    return min(_BASE_MEMORY + (min(by_header, most) if n_image_bytes else most), _MAX_MEMORY)


def main() -> None:
    """Serve requests from standard input on standard output until it ends."""
    jobs, responses = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # a library's prints must not mix with the responses
    warnings.simplefilter("ignore")  # Pillow's, of odd metadata; no caller sees them here
    # The pool runs as many processes as there are CPUs; a decoder's own threads would take address space and time.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    at_start = _address_space()
    while (job := receive(jobs)) is not None and (data := _receive_bytes(jobs)) is not None:
        sizing, max_image_pixels, of_pillow, n_image_bytes, n_result_bytes = pickle.loads(job)
        is_large = not 0 < n_image_bytes <= _LARGE_MEMORY
        # Else an image would get what earlier ones left in the heap beside its own limit.
        if _address_space() > at_start + (0 if is_large else _KEPT_MEMORY):
            trim_heap()
        n_most_bytes = max_memory(len(data), n_image_bytes, n_result_bytes)
        _respond(responses, data, sizing, max_image_pixels, of_pillow, n_most_bytes, is_large)
        del data


def send(pipe: int, part: bytes) -> None:
    """Write the length of bytes, then the bytes, to a file descriptor."""
    _write(pipe, LENGTH.pack(len(part)))
    _write(pipe, part)


def receive(pipe: int) -> bytearray | None:
    """Read what `send` wrote; None where the other end is closed."""
    length = _length(pipe)
    return None if length is None else _read(pipe, bytearray(length))


def _receive_bytes(pipe: int) -> bytes | None:
    """Read what `send` wrote; the buffer that it was read into is gone on return."""
    part = receive(pipe)
    return None if part is None else bytes(part)


def receive_pixels(pipe: int) -> NDArray[np.uint8] | None:
    """Read pixels as `receive` reads bytes, into memory that no heap keeps once they are freed."""
    length = _length(pipe)
    if length is None:
        return None
    return _read(pipe, np.empty(length, np.uint8) if length < _MAPPED_BYTES else _mapped(length))


def _mapped(length: int) -> NDArray[np.uint8]:
    try:
        return np.frombuffer(mmap.mmap(-1, length), np.uint8)
    except OSError as error:
        raise MemoryError from error


def _length(pipe: int) -> int | None:
    head = _read(pipe, bytearray(LENGTH.size))
    return None if head is None else int(LENGTH.unpack(head)[0])


def _write(pipe: int, part: Any) -> None:
    left = memoryview(part).cast("B") if len(part) else memoryview(b"")
    while left:
        left = left[os.write(pipe, left) :]


def _read(pipe: int, buffer: _Buffer) -> _Buffer | None:
    left = memoryview(buffer).cast("B") if len(buffer) else memoryview(b"")  # type: ignore[arg-type]  # NumPy's too
    while left:
        n_read = os.readv(pipe, [left])
        if not n_read:
            return None
        left = left[n_read:]
    return buffer


def _respond(
    pipe: int,
    data: bytes,
    sizing: TargetSize,
    max_image_pixels: int,
    of_pillow: tuple[int | None, bool],
    n_most_bytes: int,
    is_large: bool,
) -> None:
    """Write a pickled head and the pixels, some rows at a time."""
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = of_pillow
    failure = None
    try:
        with blocks_returned() if is_large else contextlib.nullcontext(), _limited_memory(n_most_bytes):
            image, source_size = decode_resized_image(data, sizing, max_image_pixels=max_image_pixels)
    except RowError as error:
        failure = error.stage, error.message
    if failure is not None:  # sent when the exception is gone, whose frames hold the image
        send(pipe, pickle.dumps(("error", *failure)))
        send(pipe, b"")
        return
    shape = (image.height, image.width, 3)
    send(pipe, pickle.dumps(("ok", shape, source_size)))
    _write(pipe, LENGTH.pack(math.prod(shape)))
    for band in bands(image):
        _write(pipe, band)


@contextlib.contextmanager
def _limited_memory(n_bytes: int) -> Iterator[None]:
    """Let the process grow by `n_bytes` within: more is a MemoryError, and thus this image's row error.

    The limit ends with the image, so that the next one can be received, however large its file is.
    """
    now = _address_space()
    if not now:
        yield
        return
    import resource  # which Windows lacks

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = now + n_bytes
    try:
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _address_space() -> int:
    """Return the bytes of address space of this process, 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[0]) * mmap.PAGESIZE
    except OSError:
        return 0
