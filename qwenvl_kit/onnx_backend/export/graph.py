"""Write ONNX graphs, operator by operator, with their weights in a file beside them.

Graphs are not traced. Tracing would lose the runtime's fast operators (attention over a shared cache, weights in
torch's order), warn of every shape that depends on data, and hold the weights in memory several times.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qwenvl_kit.onnx_backend.export.weights import (
    BLOCK_SIZE,
    WEIGHTS_FILE,
    Stored,
    StoredIntegers,
    StoredLinear,
    Tensors,
    WeightsWriter,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPSET = 23  # RotaryEmbedding with an angle per token came with it
MICROSOFT = "com.microsoft"  # operators that only ONNX Runtime has
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
}
_BITS = {"int8": 8, "int4": 4}  # blockwise; "w8a8" has integer activations too
_INT8_ACCUMULATION = 4  # MatMulNBits: activations are quantised to int8 as well, several times faster on CPUs
_LARGEST, _ZERO_POINT = 127, 128  # int8 stored as uint8, which MLAS' fastest kernels take


class GraphWriter:
    """Builder of one graph.

    Parameters
    ----------
    tensors : Tensors
        Source of the weights.
    writer : WeightsWriter
        Destination of the weights.
    quantize : callable
        Return the quantisation of a matrix, by its name: ``int8``, ``int4``, ``w8a8`` or None.
    """

    def __init__(self, tensors: Tensors, writer: WeightsWriter, quantize: Any) -> None:
        self._tensors, self._writer, self._quantize = tensors, writer, quantize
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._rounded: dict[str, tuple[str, str]] = {}  # by states: their integers, and the maximum of each row

    @property
    def dtype(self) -> str:
        """Type of activations and of weights that are not quantised."""
        return self._writer.dtype

    def input(self, name: str, dtype: str, shape: Sequence[str | int]) -> str:
        """Declare an input; strings in `shape` are dynamic axes."""
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], shape))
        return name

    def output(self, name: str, dtype: str, shape: Sequence[str | int]) -> str:
        """Declare an output."""
        self._outputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], shape))
        return name

    def add(
        self,
        operator: str,
        *inputs: str,
        outputs: Sequence[str] | None = None,
        n_outputs: int = 1,
        domain: str = "",
        **attributes: Any,
    ) -> Any:
        """Add an operator; return the name of its output, or a list of several."""
        number = len(self._nodes)
        names = list(outputs) if outputs is not None else [f"{operator}_{number}_{at}" for at in range(n_outputs)]
        self._nodes.append(
            helper.make_node(operator, inputs, names, name=f"{operator}_{number}", domain=domain, **attributes)
        )
        return names[0] if len(names) == 1 else names

    def constant(self, values: Any, dtype: str) -> str:
        """Add a small array inside the graph; return its name."""
        array = np.asarray(values, dtype=dtype)
        name = f"constant_{len(self._initializers)}"
        self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, *, shape: Sequence[int] | None = None) -> str:
        """Add a tensor of the checkpoint; return its name."""
        stored = self._writer.store(name, self._tensors.get(name), shape=shape)
        return self._external(name, stored)

    def linear(self, x: str, name: str, *, bias: bool = False, shape: Sequence[int] | None = None) -> str:
        """Add ``x @ W.T + b`` of x (T, K) for the layer `name`, W (N, K) in torch's order."""
        matrix = f"{name}.weight"
        biases = (self.weight(f"{name}.bias"),) if bias else ()
        scheme: str | None = self._quantize(matrix)
        if scheme is None:
            added: str = self.add("Gemm", x, self.weight(matrix, shape=shape), *biases, transB=1)
            return added
        if scheme == "w8a8":
            multiplied = self._multiply_integers(
                x, matrix, self._writer.store_integers(matrix, self._tensors.get(matrix))
            )
        else:
            stored = self._writer.store_linear(matrix, self._tensors.get(matrix), _BITS[scheme])
            multiplied = self._multiply_quantized(x, matrix, stored)
        if not bias:
            return multiplied
        summed: str = self.add("Add", multiplied, *biases)
        return summed

    def rms_norm(self, x: str, name: str, epsilon: float) -> str:
        """Add RMSNorm over the last axis."""
        normed: str = self.add(
            "SimplifiedLayerNormalization", x, self.weight(f"{name}.weight"), axis=-1, epsilon=epsilon, stash_type=1
        )
        return normed

    def add_then_rms_norm(
        self, x: str, residual: str, name: str, epsilon: float, *, bias_of: str | None = None
    ) -> tuple[str, str]:
        """Add RMSNorm of ``x + residual``, and the sum; also the bias of the layer `bias_of`, whose output is x.

        The bias costs nothing in this operator; a matrix product would write it over its whole output first.
        """
        at = len(self._nodes)
        outputs = [f"normed_{at}", "", "", f"sum_{at}"]
        weight = self.weight(f"{name}.weight")
        biases = () if bias_of is None else (self.weight(f"{bias_of}.bias"),)
        self.add(
            "SkipSimplifiedLayerNormalization",
            x,
            residual,
            weight,
            *biases,
            outputs=outputs,
            domain=MICROSOFT,
            epsilon=epsilon,
        )
        return outputs[0], outputs[3]

    def gated_mlp(self, x: str, name: str, *, bias: bool = False) -> str:
        """Add ``down(silu(gate(x)) * up(x))``, without a bias of down, which the next operator adds."""
        gate = self.linear(x, f"{name}.gate_proj", bias=bias)
        activated = self.add("QuickGelu", gate, domain=MICROSOFT, alpha=1.0)  # x · sigmoid(1 · x) is SiLU
        product = self.add("Mul", activated, self.linear(x, f"{name}.up_proj", bias=bias))
        return self.linear(product, f"{name}.down_proj")

    def save(self, file: Path, name: str) -> None:
        """Write the graph to `file`, with references to the weights."""
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, initializer=list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="qwenvl_kit", ir_version=10)
        file.write_bytes(model.SerializeToString())

    def _multiply_quantized(self, x: str, name: str, stored: StoredLinear) -> str:
        parts = (("packed", stored.packed), ("scales", stored.scales), ("zero_points", stored.zero_points))
        multiplied: str = self.add(
            "MatMulNBits",
            x,
            *(self._external(f"{name}.{part}", where) for part, where in parts),
            domain=MICROSOFT,
            K=stored.k,
            N=stored.n,
            bits=stored.bits,
            block_size=BLOCK_SIZE,
            accuracy_level=_INT8_ACCUMULATION,
        )
        return multiplied

    def _multiply_integers(self, x: str, name: str, stored: StoredIntegers) -> str:
        """Add the product of x's rows, each rounded to int8 by its own maximum, so that rows are independent."""
        rounded, largest = self._round_rows(x)
        product = self.add(
            "MatMulIntegerToFloat",
            rounded,
            self._external(f"{name}.codes", stored.codes),
            self.constant(1 / _LARGEST, "float32"),
            self._external(f"{name}.scales", stored.scales),
            self.constant(_ZERO_POINT, "uint8"),
            domain=MICROSOFT,
        )
        multiplied: str = self.add("Mul", product, largest)
        return multiplied

    def _round_rows(self, x: str) -> tuple[str, str]:
        """Add integers (T, K) of x (T, K) and the maximum magnitude (T, 1) of each row, once for all uses of x."""
        if x not in self._rounded:
            largest = self.add("ReduceMax", self.add("Abs", x), self.constant([-1], "int64"), keepdims=1)
            largest = self.add("Max", largest, self.constant(np.finfo(np.float32).tiny, "float32"))  # rows of zeros
            codes = self.add(
                "QuantizeLinear",
                self.add("Div", x, largest),
                self.constant(1 / _LARGEST, "float32"),
                self.constant(_ZERO_POINT, "uint8"),
            )
            self._rounded[x] = codes, largest
        return self._rounded[x]

    def _external(self, name: str, stored: Stored) -> str:
        if name not in self._initializers:
            tensor = onnx.TensorProto(name=name, data_type=_TYPES[stored.dtype], dims=stored.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", WEIGHTS_FILE), ("offset", stored.offset), ("length", stored.length)):
                tensor.external_data.add(key=key, value=str(value))
            self._initializers[name] = tensor
        return name


def angles(
    graph: GraphWriter, positions: str, frequencies: NDArray[np.float32], axis_of: Sequence[int]
) -> tuple[str, str]:
    """Add cosines and sines of a rotary embedding whose frequencies follow one of several positions each.

    Parameters
    ----------
    graph : GraphWriter
        The graph to extend.
    positions : str
        Name of int64 positions (n_axes, B, T).
    frequencies : float32 array (D/2,)
    axis_of : sequence of int (D/2,)
        Position axis of each frequency.

    Returns
    -------
    tuple of str
        Names of two arrays (B, T, D/2).
    """
    as_floats = graph.add("Cast", positions, to=TensorProto.FLOAT)
    chosen = graph.add("Gather", as_floats, graph.constant(axis_of, "int64"), axis=0)  # (D/2, B, T)
    turned = graph.add("Transpose", chosen, perm=[1, 2, 0])  # (B, T, D/2)
    angle = graph.add("Mul", turned, graph.constant(frequencies, "float32"))
    both = [graph.add("Cos", angle), graph.add("Sin", angle)]
    if graph.dtype != "float32":
        both = [graph.add("Cast", one, to=_TYPES[graph.dtype]) for one in both]
    return both[0], both[1]
