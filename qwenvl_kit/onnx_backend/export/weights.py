"""A checkpoint's tensors in, one file of weights out, a tensor at a time, so that memory holds one of them.

Every graph of an export points into that file, and so does the embedding table. What a tensor is for is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
)
from safetensors import safe_open

from qwenvl_kit.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

WEIGHTS_FILE = "weights.bin"
BLOCK_SIZE = 32  # weights that share a scale; what MLAS' kernels are fastest with on CPUs
_PAGE = 4096  # tensors begin on pages, so that they can be mapped into memory
# Published checkpoints name tensors as their authors did, those saved by transformers 5 as its modules are called.
_PREFIXES = (
    (re.compile(r"^model\.language_model\."), "text."),
    (re.compile(r"^(model\.)?visual\."), "vision."),
    (re.compile(r"^model\."), "text."),
)


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor stands in the file of weights.

    Attributes
    ----------
    dtype : str
        ``float32``, ``float16``, ``uint8`` or ``int8``.
    shape : tuple of int
    offset, length : int
        In bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class StoredLinear:
    """A matrix (N, K) as `MatMulNBits` takes it.

    Attributes
    ----------
    bits : int
        Per weight.
    packed, scales, zero_points : Stored
        Codes (N, blocks, bytes), scales (N, blocks) and zero points (N, bytes), block by block along K.
    n, k : int
        The matrix's shape.
    """

    bits: int
    packed: Stored
    scales: Stored
    zero_points: Stored
    n: int
    k: int


@dataclass(frozen=True, slots=True)
class StoredIntegers:
    """A matrix (N, K) as ONNX Runtime's integer products take it.

    Attributes
    ----------
    codes, scales : Stored
        Integers (K, N), and what one of them is worth in each column (N,).
    """

    codes: Stored
    scales: Stored


class Tensors:
    """The tensors of a checkpoint by one kind of names: ``text.…``, ``vision.…`` and ``lm_head.weight``.

    Parameters
    ----------
    files : sequence of Path
        Safetensors files, as `qwenvl_kit.checkpoints.weight_files` finds them.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._held = ExitStack()
        self._found: dict[str, tuple[object, str]] = {}
        for file in files:
            opened = self._held.enter_context(safe_open(file, framework="pt"))
            self._found |= {_plain_name(name): (opened, name) for name in opened.keys()}  # noqa: SIM118  # no mapping

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def names(self) -> list[str]:
        """All names."""
        return list(self._found)

    def get(self, name: str) -> Tensor:
        """One tensor, as it is stored.

        Raises
        ------
        CheckpointError
            The checkpoint has no such tensor.
        """
        try:
            opened, original = self._found[name]
        except KeyError:
            raise CheckpointError(
                f"the checkpoint has no tensor for {name!r}; its weights belong to another architecture or are partial"
            ) from None
        tensor: Tensor = opened.get_tensor(original)  # type: ignore[attr-defined]
        return tensor

    def close(self) -> None:
        """Close the files."""
        self._held.close()


class WeightsWriter:
    """Writes tensors behind each other and remembers where they stand.

    Parameters
    ----------
    file : binary file
        Opened for writing, empty.
    dtype : {"float32", "float16"}
        Of everything that is not quantised.
    """

    def __init__(self, file: BinaryIO, dtype: str) -> None:
        self.dtype = dtype
        self._file = file
        self._stored: dict[str, Stored] = {}

    def store(self, name: str, tensor: Tensor, *, shape: Sequence[int] | None = None) -> Stored:
        """Write a tensor once; a name that was written before is found again."""
        if name in self._stored:
            return self._stored[name]
        array = as_numpy(tensor, self.dtype)
        stored = self._stored[name] = self._append(array if shape is None else array.reshape(tuple(shape)))
        return stored

    def names(self) -> set[str]:
        """Names of what was written and not quantised."""
        return set(self._stored)

    def store_linear(self, name: str, tensor: Tensor, bits: int) -> StoredLinear:
        """Quantise a matrix (N, K) in blocks along K and write it."""
        packed, scales, zero_points = quantize(as_numpy(tensor, "float32"), bits)
        n, k = tensor.shape
        places = (self._append(packed), self._append(scales.astype(self.dtype)), self._append(zero_points))
        return StoredLinear(bits, *places, int(n), int(k))

    def store_integers(self, name: str, tensor: Tensor) -> StoredIntegers:
        """Round a matrix (N, K) to int8 with one scale per output and write it."""
        codes, scales = round_to_int8(as_numpy(tensor, "float32"))
        return StoredIntegers(self._append(np.ascontiguousarray(codes.T)), self._append(scales))

    def _append(self, array: NDArray[np.generic]) -> Stored:
        self._file.write(bytes(-self._file.tell() % _PAGE))
        offset = self._file.tell()
        for part in _parts(array):
            self._file.write(part.data)
        return Stored(str(array.dtype), array.shape, offset, array.nbytes)


def as_numpy(tensor: Tensor, dtype: str) -> NDArray[np.generic]:
    """A tensor as a contiguous array of `dtype` (numpy knows no bfloat16)."""
    array: NDArray[np.generic] = getattr(tensor, {"float32": "float", "float16": "half"}[dtype])().contiguous().numpy()
    return array


def quantize(
    matrix: NDArray[np.generic], bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Quantise a matrix blockwise with ONNX Runtime's own packing, so that its kernels read what it means.

    Parameters
    ----------
    matrix : float32 array (N, K)
        As torch keeps the weights of a linear layer.
    bits : {4, 8}

    Returns
    -------
    packed : uint8 array (N, blocks, bytes)
    scales : float32 array (N, blocks)
    zero_points : uint8 array (N, bytes)
    """
    quantizer = DefaultWeightOnlyQuantizer(
        DefaultWeightOnlyQuantConfig(block_size=BLOCK_SIZE, is_symmetric=False, bits=bits)
    )
    packed, scales, zero_points = quantizer.qbits_block_quant(np.ascontiguousarray(matrix.T))
    n = matrix.shape[0]
    return packed, scales.reshape(n, -1).astype(np.float32), zero_points.reshape(n, -1)


def round_to_int8(matrix: NDArray[np.generic]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric integers of a matrix (N, K) and what one of them is worth in each row (N,)."""
    scales = np.maximum(np.abs(matrix).max(axis=1), np.finfo(np.float32).tiny).astype(np.float32) / np.float32(127)
    codes: NDArray[np.int8] = np.clip(np.rint(matrix / scales[:, None]), -127, 127).astype(np.int8)
    return codes, scales


def _parts(array: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """Pieces of at most 64 MiB: a write of several GB at once fails on some systems."""
    flat = np.ascontiguousarray(array).reshape(-1)
    step = max(1, 64 * 2**20 // flat.itemsize)
    for start in range(0, flat.size, step):
        yield flat[start : start + step]


def _plain_name(name: str) -> str:
    for pattern, prefix in _PREFIXES:
        if pattern.match(name):
            return pattern.sub(prefix, name)
    return name
