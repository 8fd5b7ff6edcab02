"""A decode step on a GPU waits for nothing, transfers once each way, and has as many operators for any number of rows.

The GPU is a fake: its tensors have shapes and a device, and no data that a step could wait for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.fake_model_runner import TOKENIZATION, ListQueue, PlainProcessor, requests_of, resolved_of
from helpers.needs import fake_cuda
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

import qwenvl_kit.torch_backend.model_runner as runners
from qwenvl_kit.demo import model_dir
from qwenvl_kit.inference import engine, sampling_rows
from qwenvl_kit.inference.backend import RunControl
from qwenvl_kit.inference.encoder_cache import EncoderCache
from qwenvl_kit.inference.engine import Engine
from qwenvl_kit.inference.sequence import Sequence
from qwenvl_kit.torch_backend.compiled_decode import CompiledSteps
from qwenvl_kit.torch_backend.cuda_graphs import RecordedSteps
from qwenvl_kit.torch_backend.model_runner import TorchModelRunner

GPU = torch.device("cuda:0")
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9}


class Ops(TorchDispatchMode):
    """Count the operators that run on the fake GPU, and transfers."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not str(op).startswith("prim."):
            self.counts[str(op)] += 1
        return op(*args, **(kwargs or {}))


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Transfers between the CPU and the fake GPU; tokens come back as 5."""
    seen: Counter[str] = Counter()

    def upload(tensor: Tensor, device: torch.device) -> Tensor:
        seen["in"] += 1
        return tensor.to(device)

    def tolist(tensor: FakeTensor) -> list[int]:
        seen["out"] += 1
        return [5] * len(tensor)

    monkeypatch.setattr(engine, "upload", upload)
    monkeypatch.setattr(sampling_rows, "upload", upload)
    monkeypatch.setattr(FakeTensor, "tolist", tolist)
    return seen


@pytest.fixture
def gpu() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def make_model() -> Any:
    config = AutoConfig.from_pretrained(model_dir())
    with torch.device(GPU):
        model = Qwen2_5_VLForConditionalGeneration._from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    return model.eval()


def sequences_of(n: int) -> list[Sequence]:
    sequences = [PlainProcessor().encode(request) for request in requests_of([(row, row % 5, 40) for row in range(n)])]
    for sequence in sequences:
        sequence.append_token(5, (), stop_repetition=False)
    return sequences


def count_step(runner: TorchModelRunner, sequences: list[Sequence], penalty: float, options: dict[str, Any]) -> Any:
    """Return the operators of a step whose rows are those of the step before."""
    resolved = replace(resolved_of(batch_size=len(sequences), **options), repetition_penalty=penalty)
    cache = EncoderCache(runner, PlainProcessor().patchify)  # type: ignore[arg-type]
    one = Engine(runner, cache, TOKENIZATION, ListQueue([]), resolved, RunControl())
    runner.resize_cache(0, 0)
    runner.resize_cache(len(sequences), 128)
    for step in range(2):
        with Ops() as ops:
            _, tokens = one._decode(sequences)
        for token, sequence in zip(tokens, sequences, strict=True):
            sequence.append_token(token, (), stop_repetition=False)
        assert step or tokens == [5] * len(sequences)
    return ops.counts


@fake_cuda()
@pytest.mark.parametrize("penalty", [1.0, 1.05])
@pytest.mark.parametrize("options", [{}, SAMPLING], ids=["greedy", "sampling"])
@pytest.mark.parametrize("fault", [None, "a reason"], ids=["flash", "sdpa"])
def test_a_step_transfers_once_each_way_and_costs_the_same_for_all_rows(
    penalty: float,
    options: dict[str, Any],
    fault: str | None,
    transfers: Counter[str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runners, "kernel_fault", lambda _: fault)
    batches = [sequences_of(n) for n in (4, 32)]
    request.getfixturevalue("gpu")
    runner = TorchModelRunner(make_model())
    monkeypatch.setattr(runner, "_steps", None)  # what is recorded, without a graph
    counts = []
    for sequences in batches:
        transfers.clear()
        counts.append(count_step(runner, sequences, penalty, options))
        # two steps, and once the rows' tokens and seeds
        assert transfers == {"in": 2 + (penalty != 1 or bool(options)), "out": 2}

    assert counts[0] == counts[1]
    n_layers = len(runner.cache.layers)
    assert counts[0]["aten._flash_attention_forward.default"] == (0 if fault else n_layers)
    assert counts[0]["aten.scaled_dot_product_attention.default"] == (n_layers if fault else 0)


@fake_cuda()
def test_steps_on_one_gpu_are_recorded_unless_hooks_or_devices_are_in_the_way(
    gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "kernel_fault", lambda _: "a reason")
    model = make_model()

    assert isinstance(TorchModelRunner(model)._steps, RecordedSteps)
    assert isinstance(TorchModelRunner(model, compiles=True)._steps, CompiledSteps)
    model.lm_head._hf_hook = None
    assert TorchModelRunner(model)._steps is None
    del model.lm_head._hf_hook
    model.lm_head = torch.nn.Linear(4, 4, device="cuda:1")
    assert TorchModelRunner(model)._steps is None
