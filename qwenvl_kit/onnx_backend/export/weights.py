"""Write a checkpoint's tensors to one file of weights, one tensor in memory at a time.

All graphs of an export refer to that file, and so does the embedding table.
"""

from __future__ import annotations

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

from qwenvl_kit.checkpoints.weight_files import uniform_name
from qwenvl_kit.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from qwenvl_kit.checkpoints.lora import FoldedWeights

WEIGHTS_FILE = "weights.bin"
BLOCK_SIZE = 32  # weights that share a scale; MLAS' kernels on CPUs are fastest with 32
_PAGE = 4096  # tensors start on pages, so that they can be memory-mapped


@dataclass(frozen=True, slots=True)
class Stored:
    """Place of a tensor in the file of weights.

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
    """A matrix (N, K) in the form of `MatMulNBits`.

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
    """A matrix (N, K) in the form of ONNX Runtime's integer products.

    Attributes
    ----------
    codes, scales : Stored
        Integers (K, N), and the scale of each column (N,).
    """

    codes: Stored
    scales: Stored


class Tensors:
    """Tensors of a checkpoint by uniform names: ``text.…``, ``vision.…`` and ``lm_head.weight``.

    Parameters
    ----------
    files : sequence of Path
        Safetensors files, from `qwenvl_kit.checkpoints.weight_files`.
    folded : FoldedWeights, optional
        An adapter that is folded into them.
    """

    def __init__(self, files: Sequence[Path], folded: FoldedWeights | None = None) -> None:
        self._folded = folded
        self._held = ExitStack()
        self._found: dict[str, tuple[object, str]] = {}
        for file in files:
            opened = self._held.enter_context(safe_open(file, framework="pt"))
            self._found |= {uniform_name(name): (opened, name) for name in opened.keys()}  # noqa: SIM118  # no mapping

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def names(self) -> list[str]:
        """Return all names."""
        return list(self._found)

    def get(self, name: str) -> Tensor:
        """Return a tensor in its stored dtype, or in float32 where an adapter changes it.

        Raises
        ------
        CheckpointError
            The checkpoint has no such tensor.
        """
        try:
            opened, original = self._found[name]
        except KeyError:
            raise CheckpointError(
                f"The checkpoint has no tensor for {name!r}: its weights are partial or of another architecture. Copy "
                "or download it again."
            ) from None
        tensor: Tensor = opened.get_tensor(original)  # type: ignore[attr-defined]
        return tensor if self._folded is None else self._folded.fold(original, tensor)

    def close(self) -> None:
        """Close the files."""
        self._held.close()


class WeightsWriter:
    """Writer of tensors, one after the other, that records their places.

    Parameters
    ----------
    file : binary file
        Open for writing, empty.
    dtype : {"float32", "float16"}
        Of tensors that are not quantised.
    """

    def __init__(self, file: BinaryIO, dtype: str) -> None:
        self.dtype = dtype
        self._file = file
        self._stored: dict[str, Stored] = {}

    def store(self, name: str, tensor: Tensor, *, shape: Sequence[int] | None = None) -> Stored:
        """Write a tensor once; return its place, also on later calls with its name."""
        if name in self._stored:
            return self._stored[name]
        array = as_numpy(tensor, self.dtype)
        stored = self._stored[name] = self._append(array if shape is None else array.reshape(tuple(shape)))
        return stored

    def names(self) -> set[str]:
        """Return the names of tensors that were written without quantisation."""
        return set(self._stored)

    def store_linear(self, name: str, tensor: Tensor, bits: int) -> StoredLinear:
        """Quantise a matrix (N, K) in blocks along K, and write it."""
        packed, scales, zero_points = quantize(as_numpy(tensor, "float32"), bits)
        n, k = tensor.shape
        places = (self._append(packed), self._append(scales.astype(self.dtype)), self._append(zero_points))
        return StoredLinear(bits, *places, int(n), int(k))

    def store_integers(self, name: str, tensor: Tensor) -> StoredIntegers:
        """Round a matrix (N, K) to int8 with one scale per output, and write it."""
        codes, scales = round_to_int8(as_numpy(tensor, "float32"))
        return StoredIntegers(self._append(np.ascontiguousarray(codes.T)), self._append(scales))

    def _append(self, array: NDArray[np.generic]) -> Stored:
        self._file.write(bytes(-self._file.tell() % _PAGE))
        offset = self._file.tell()
        for part in _parts(array):
            self._file.write(part.data)
        return Stored(str(array.dtype), array.shape, offset, array.nbytes)


def as_numpy(tensor: Tensor, dtype: str) -> NDArray[np.generic]:
    """Convert a tensor to a contiguous array of `dtype` (numpy has no bfloat16)."""
    array: NDArray[np.generic] = getattr(tensor, {"float32": "float", "float16": "half"}[dtype])().contiguous().numpy()
    return array


def quantize(
    matrix: NDArray[np.generic], bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Quantise a matrix blockwise with ONNX Runtime's own packing, which its kernels expect.

    Parameters
    ----------
    matrix : float32 array (N, K)
        Weights of a linear layer, in torch's order.
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
    """Round a matrix (N, K) to symmetric integers with a scale per row (N,); return both."""
    scales = np.maximum(np.abs(matrix).max(axis=1), np.finfo(np.float32).tiny).astype(np.float32) / np.float32(127)
    codes: NDArray[np.int8] = np.clip(np.rint(matrix / scales[:, None]), -127, 127).astype(np.int8)
    return codes, scales


def _parts(array: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """Yield pieces of at most 64 MiB, because a single write of several GB fails on some systems."""
    flat = np.ascontiguousarray(array).reshape(-1)
    step = max(1, 64 * 2**20 // flat.itemsize)
    for start in range(0, flat.size, step):
        yield flat[start : start + step]
