"""A cancelled run ends within a pass, between two layers, and long prompts are read in passes of bounded size."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qwenvl_kit import Config
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.inference.backend import RunControl, Stage
from qwenvl_kit.inference.cancellation import Cancelled, cancellable
from qwenvl_kit.inference.model_runner import PrefillChunk
from qwenvl_kit.torch_backend.model_runner import TorchModelRunner

pytestmark = pytest.mark.model
GRID = torch.tensor([[1, 8, 8]])


class Run:
    """A run that is cancelled after some steps of a stage."""

    def __init__(self, stage: Stage, most: int) -> None:
        self.seen: list[tuple[Stage, int, int]] = []
        self._at = stage, most
        self.control = RunControl(threading.Event(), report=self._report)

    def _report(self, stage: Stage, done: int, total: int) -> None:
        self.seen.append((stage, done, total))
        if (stage, done) == self._at:
            self.control.cancel.set()


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model_runner(published: Path, request: pytest.FixtureRequest) -> TorchModelRunner:
    return make_spec(_config(published, request.param)).load().model_runner  # type: ignore[attr-defined, no-any-return]


def _config(folder: Path, dtype: str) -> Config:
    return Config(model_name=str(folder), dtype=dtype, use_flash_attention_2=False, progress=False)


def _chunk(n_tokens: int) -> PrefillChunk:
    ids = torch.arange(n_tokens) % 50 + 5
    return PrefillChunk(0, ids, torch.arange(n_tokens).expand(3, -1))


def test_a_prompt_pass_ends_between_two_layers(model_runner: TorchModelRunner) -> None:
    model_runner.resize_cache(1, 128)
    run = Run("prefill", 2)

    with cancellable(run.control), pytest.raises(Cancelled):
        model_runner.prefill([_chunk(100)])

    n_layers = len(model_runner._text.layers)
    assert run.seen == [("prefill", 1, n_layers), ("prefill", 2, n_layers)]


def test_a_prompt_pass_ends_before_the_larger_half_of_a_layer(
    model_runner: TorchModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = RunControl(threading.Event())
    update = model_runner.cache.update

    def cancelled(*given: Any, **options: Any) -> Any:
        control.cancel.set()
        return update(*given, **options)

    monkeypatch.setattr(model_runner.cache, "update", cancelled)
    monkeypatch.setattr(model_runner._text.layers[0].mlp, "forward", lambda *_: pytest.fail("went on"))
    model_runner.resize_cache(1, 128)

    with cancellable(control), pytest.raises(Cancelled):
        model_runner.prefill([_chunk(100)])


def test_a_vision_pass_ends_between_two_blocks(model_runner: TorchModelRunner) -> None:
    run = Run("encode", 1)

    with cancellable(run.control), pytest.raises(Cancelled):
        model_runner.encode_images(torch.zeros(64, 1176), GRID)

    assert run.seen == [("encode", 1, len(model_runner._model.model.visual.blocks))]


@pytest.mark.parametrize(("dtype", "at"), [("float32", 1), ("float32", 40), ("bfloat16", 40)])
def test_loading_ends_between_two_tensors(published: Path, dtype: str, at: int) -> None:
    run = Run("load", at)

    with pytest.raises(Cancelled):
        make_spec(_config(published, dtype)).load(run.control)

    assert len(run.seen) < 60, "transformers' threads may have begun a few more"


def test_packing_ends_between_two_layers(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[Any] = []
    monkeypatch.setattr("qwenvl_kit.torch_backend.onednn.vision.OneDNNBlock", lambda block: packed.append(block))
    control = RunControl(threading.Event())
    monkeypatch.setattr("qwenvl_kit.torch_backend.loading.can_prepack", lambda *_: not control.cancel.set())

    with pytest.raises(Cancelled):
        make_spec(_config(published, "float32")).load(control)

    assert not packed


def test_no_pass_of_a_long_prompt_is_longer_than_the_limit(
    model_runner: TorchModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenvl_kit.torch_backend.model_runner.max_prefill_tokens", lambda _: 32)
    sizes: list[int] = []
    forward = model_runner._forward

    def measured(embedded: Any, *given: Any) -> Any:
        sizes.append(embedded.shape[0] * embedded.shape[1])
        return forward(embedded, *given)

    monkeypatch.setattr(model_runner, "_forward", measured)
    model_runner.resize_cache(1, 128)
    run = Run("prefill", -1)

    with cancellable(run.control):
        model_runner.prefill([_chunk(100)])

    assert sizes == [25, 25, 25, 25]
    assert run.seen[-1][1] == run.seen[-1][2], "the last step is the stage's last"


def test_a_run_cancelled_within_a_pass_returns_its_rows_as_cancelled(
    published: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    from qwenvl_kit import Control, unload

    control = Control()
    encode = TorchModelRunner.encode_images

    def cancelled(self: TorchModelRunner, *given: Any) -> Any:
        control.cancel.set()
        return encode(self, *given)

    monkeypatch.setattr(TorchModelRunner, "encode_images", cancelled)
    monkeypatch.setattr(TorchModelRunner, "prefill", None)  # would raise if the vision pass went on to its end
    run = pd.Series(pictures[:3]).vl.run(model_name=str(published), control=control, progress=False, num_beams=1)
    unload()

    assert run["status"].tolist() == ["cancelled"] * 3


def test_beams_cancelled_within_the_prompt_return_their_rows_as_cancelled(
    published: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    from qwenvl_kit import Control, unload
    from qwenvl_kit.torch_backend.beam_search import BeamSearch

    control = Control()
    collate = BeamSearch._collate

    def cancelled(self: BeamSearch, *given: Any) -> Any:
        control.cancel.set()
        return collate(self, *given)

    monkeypatch.setattr(BeamSearch, "_collate", cancelled)
    monkeypatch.setattr(BeamSearch, "_result", None)  # would raise if the pass went on to its end
    run = pd.Series(pictures[:2]).vl.run(model_name=str(published), control=control, progress=False, num_beams=2)
    unload()

    assert run["status"].tolist() == ["cancelled"] * 2
