"""Check that ONNX Runtime multiplies 8-bit integers exactly on this CPU, which exports in ``w8a8`` require."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from qwenvl_kit.onnx_backend.manifest import Export

_K = 64  # summands of one product, all at their maximum in the worst case


def require_exact_products(export: Export) -> None:
    """Raise if this CPU would compute wrong answers from an export.

    Raises
    ------
    ConfigError
        It is quantised as ``w8a8``, and int8 products saturate on this CPU.
    """
    if export.quantize == "w8a8" and not products_are_exact():
        raise ConfigError(
            f"{export.path} is quantised as w8a8, and ONNX Runtime's int8 products saturate on this CPU, which lacks "
            "VNNI. Export with quantize='int8', whose products do not."
        )


@functools.cache
def products_are_exact() -> bool:
    """Return whether sums of the largest uint8 times the largest int8 are exact.

    On x86 without VNNI the runtime adds pairs of products in 16 bits, which overflow
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "When and why do I need to try
    U8U8?").
    """
    weights = np.full((_K, 16), 127, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [4, _K])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [4, 16])],
        initializer=[numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.full((4, _K), 255, np.uint8)})
    return bool((found == 255 * 127 * _K).all())
