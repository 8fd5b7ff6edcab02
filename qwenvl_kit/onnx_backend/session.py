"""Run ONNX graphs on tensors in place, with ONNX Runtime's fastest provider."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch

from qwenvl_kit.inference.cancellation import ended_by

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_SPIN_US = "200"
_NO_TILES = "ORT_GQA_DISABLE_FLASH_ATTENTION"
_NUMPY = {torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64, torch.int32: np.int32}


def execution_provider() -> str:
    """Return the fastest execution provider that is installed and works: CUDA's with a GPU, else the CPU's."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers() and torch.cuda.is_available():
        return "CUDAExecutionProvider"
    return "CPUExecutionProvider"


class Graph:
    """A loaded graph.

    Parameters
    ----------
    file : Path
        The graph, with its weights beside it.
    provider : str
        Execution provider, such as ``CPUExecutionProvider``.
    device : torch.device
        The provider's device.
    threads : int or None
        Threads of one operator; None for ONNX Runtime's own choice.
    """

    def __init__(self, file: Path, provider: str, device: torch.device, threads: int | None) -> None:
        self._device = device
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        # Threads that sleep between operators wake late; threads that spin between runs take cores from image loading
        # and sampling
        # (https://onnxruntime.ai/docs/performance/tune-performance/threading.html).
        options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
        settings = {"device_id": device.index} if device.type == "cuda" else {}
        with _plain_attention():
            self._session = onnxruntime.InferenceSession(file, options, providers=[(provider, settings)])

    def run(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Fill `outputs`; an input and an output may share memory, as a KV cache before and after does.

        In a `stage`, a cancelled run ends between two operators.
        """
        binding = self._session.io_binding()
        kept = [  # until the graph has run
            _bind(binding.bind_input, name, tensor.to(self._device).contiguous(), self._device)
            for name, tensor in inputs.items()
        ]
        kept += [_bind(binding.bind_output, name, tensor, self._device) for name, tensor in outputs.items()]
        if self._device.type == "cuda":  # the runtime has a stream of its own, which does not wait for torch's
            torch.cuda.current_stream(self._device).synchronize()
        options = onnxruntime.RunOptions()
        with ended_by(functools.partial(setattr, options, "terminate", True)):
            self._session.run_with_iobinding(binding, options)
        del kept


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Disable tiled attention on the CPU for sessions made within the context.

    Tiles of queries skip no causally masked scores, and rows of different lengths run one after the other: prefill took
    2.2 times as long, decode steps of different rows as long or longer. This variable is the runtime's only switch
    (https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/contrib_ops/cpu/bert/gqa_attention_base.h).
    """
    before = os.environ.get(_NO_TILES)
    os.environ[_NO_TILES] = before or "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_TILES]


def _bind(bind: Any, name: str, tensor: Tensor, device: torch.device) -> Tensor:
    bind(name, device.type, device.index or 0, _NUMPY[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
    return tensor
