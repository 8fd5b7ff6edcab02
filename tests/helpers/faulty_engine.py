"""An engine with a planted fault: it decodes files itself, and runs a checkpoint on torch with a part replaced."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from qwenvl_kit import Config
from qwenvl_kit.conformance.cases import Round
from qwenvl_kit.conformance.engines import configured
from qwenvl_kit.executors.local import run_spec
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.torch_backend.model_runner import TorchModelRunner
from qwenvl_kit.types import Result

Patch = Callable[[pytest.MonkeyPatch], None]


def _as_it_is(given: Any) -> Any:
    return given


@dataclass(frozen=True)
class Fault:
    """What is broken, and the layer that must be named."""

    name: str
    layer: str
    patch: Patch | None = None
    config: Callable[[dict[str, Any]], None] | None = None
    pixels: Callable[[Image.Image], Image.Image] = _as_it_is
    images: Callable[[list[Image.Image]], list[Image.Image]] = _as_it_is
    turns: bool = True
    drops_system: bool = False
    drops_default_system: bool = False
    drops_penalty: bool = False
    in_batches: bool = False  # shows in batches only, so that rounds have to be asked as they say


class StaticBatches:
    """A backend that waits for all requests of a run, so that what shares a pass does not depend on time."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._requests: list[Any] = []

    def generate(self, queue: Any, resolved: Any, control: Any) -> Iterator[Result]:
        """Answer all requests of the queue."""
        while (some := queue.get(64, block=True)) is not None:
            self._requests += some
        self._requests.sort(key=lambda request: request.row)
        yield from self._backend.generate(self, resolved, control)

    def get(self, n: int, *, block: bool) -> list[Any] | None:
        """Return the next requests; None after the last."""
        some, self._requests = self._requests[:n], self._requests[n:]
        return some or None

    def close(self) -> None:
        """Free the model."""
        self._backend.close()


class FaultyEngine:
    """Answers rounds like a server: it gets encoded files."""

    def __init__(self, folder: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
        self._fault = fault
        self._config = Config(backend="torch", model_name=str(folder), dtype="float32", progress=False, logprobs=5)
        if fault.patch is not None:
            fault.patch(monkeypatch)
        self._backend = StaticBatches(make_spec(self._config).load())

    def ask(self, asked: Round) -> list[Result]:
        if not self._fault.in_batches:
            asked = replace(asked, in_flight=16)
        config = self._config_of(asked)
        cells = [self._decoded(case.files) for case in asked.cases]
        prompts = [case.prompt for case in asked.cases]
        run = run_spec(cells, prompts, config, make_spec(config), lambda _: nullcontext(self._backend))
        assert run.failure is None
        return list(run.results)

    def close(self) -> None:
        """Free the model."""
        self._backend.close()

    def _config_of(self, asked: Round) -> Config:
        if self._fault.drops_system or (self._fault.drops_default_system and asked.system is None):
            asked = replace(asked, system="")
        config = configured(self._config, asked)
        return config.replace(repetition_penalty=1.0) if self._fault.drops_penalty else config

    def _decoded(self, files: tuple[bytes, ...]) -> list[Any]:
        images = [Image.open(io.BytesIO(file)) for file in files]
        if self._fault.turns:
            images = [ImageOps.exif_transpose(image) for image in images]
        images = [self._fault.pixels(Image.fromarray(_array(image))) for image in images]
        return list(self._fault.images(images))


def _array(image: Image.Image) -> Any:
    """Return pixels alone: an image keeps its EXIF orientation, which the kit would obey."""
    return np.asarray(image.convert("RGB"))


# ---------------------------------------------------------------------- parts that are replaced


def swapped_sections(patch: pytest.MonkeyPatch) -> None:
    """Row and column sections of the rotary embedding change places."""
    _change_prefill(patch, lambda chunk: replace(chunk, positions=chunk.positions[[0, 2, 1]]))


def plain_positions(patch: pytest.MonkeyPatch) -> None:
    """Visual tokens are counted like text, as in engines that lack M-RoPE."""

    def counted(chunk: Any) -> Any:
        at = torch.arange(chunk.cached_len, chunk.cached_len + len(chunk.ids))
        return replace(chunk, positions=at.expand(3, -1))

    _change_prefill(patch, counted)
    decode = TorchModelRunner.decode
    patch.setattr(
        TorchModelRunner, "decode", lambda self, ids, _, lengths, most: decode(self, ids, lengths, lengths, most)
    )


def lost_token(patch: pytest.MonkeyPatch) -> None:
    """The last merged token of each image never arrives."""
    _change_features(patch, lambda one: torch.cat([one[:-1], torch.zeros_like(one[:1])]))


def overflow(patch: pytest.MonkeyPatch) -> None:
    """Features pass through float16 after a scale that only some of them stand."""
    _change_features(patch, lambda one: (one * 2e4).half().float() / 2e4)


def bleeding_features(patch: pytest.MonkeyPatch) -> None:
    """Each row of a batch gets a little of the next one's image."""
    prefill = TorchModelRunner.prefill

    def bleeding(self: TorchModelRunner, chunks: Any) -> Any:
        if len({len(chunk.ids) for chunk in chunks}) == 1 and len(chunks) > 1:
            features = [chunk.image_features for chunk in chunks]
            chunks = [
                replace(one, image_features=_mix(one.image_features, features[at - 1])) for at, one in enumerate(chunks)
            ]
        return prefill(self, chunks)

    patch.setattr(TorchModelRunner, "prefill", bleeding)


def right_padding(patch: pytest.MonkeyPatch) -> None:
    """Rows of a batch are padded behind to one length, and the padding is read as text."""
    prefill = TorchModelRunner.prefill

    def padded(self: TorchModelRunner, chunks: Any) -> Any:
        longest = max(len(chunk.ids) for chunk in chunks)
        return prefill(self, [_padded(chunk, longest) for chunk in chunks])

    patch.setattr(TorchModelRunner, "prefill", padded)


def without_windows(config: dict[str, Any]) -> None:
    config["vision_config"]["fullatt_block_indexes"] = list(range(config["vision_config"]["depth"]))


def no_stop(patch: pytest.MonkeyPatch) -> None:
    """The end of a turn is a token like any other."""
    from qwenvl_kit.inference.processor import Tokenization

    of = Tokenization.of

    def endless(*arguments: Any, **more: Any) -> Tokenization:
        return replace(of(*arguments, **more), eos_ids=(0,))

    patch.setattr(Tokenization, "of", endless)


def _padded(chunk: Any, length: int) -> Any:
    n = length - len(chunk.ids)
    if not n:
        return chunk
    ids = torch.cat([chunk.ids, chunk.ids.new_zeros(n)])
    last = chunk.positions[:, -1:]
    return replace(chunk, ids=ids, positions=torch.cat([chunk.positions, last + 1 + torch.arange(n)], dim=1))


def _mix(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    n = min(len(one), len(other))
    return torch.cat([one[:n] * 0.7 + other[:n] * 0.3, one[n:]])


def _change_prefill(patch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    prefill = TorchModelRunner.prefill
    patch.setattr(TorchModelRunner, "prefill", lambda self, chunks: prefill(self, list(map(change, chunks))))


def _change_features(patch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    encode = TorchModelRunner.encode_images
    patch.setattr(
        TorchModelRunner,
        "encode_images",
        lambda self, pixels, grid: [change(one) for one in encode(self, pixels, grid)],
    )


def swapped_channels(image: Image.Image) -> Image.Image:
    red, green, blue = image.split()
    return Image.merge("RGB", (blue, green, red))


def shrunk(image: Image.Image) -> Image.Image:
    """A client that keeps the longer side below 80 pixels, before the processor resizes again."""
    size = tuple(max(28, round(side * 80 / max(image.size))) for side in image.size)
    return image.resize(size, Image.Resampling.BILINEAR) if _is_unsized(image) else image


def _is_unsized(image: Image.Image) -> bool:
    return any(side % 28 for side in image.size)


HEALTHY = Fault("healthy", "")
FAULTS = (
    Fault("BGR", "preprocessing", pixels=swapped_channels),
    Fault("M-RoPE sections swapped", "M-RoPE", patch=swapped_sections),
    Fault("no M-RoPE", "M-RoPE", patch=plain_positions),
    Fault("no window attention", "window attention", config=without_windows),
    Fault("one merged token lost", "visual tokens", patch=lost_token),
    Fault("float16 overflow", "precision", patch=overflow),
    Fault("stop token unknown", "stop tokens", patch=no_stop),
    Fault("EXIF ignored", "EXIF", turns=False),
    Fault("resized twice", "resizing", pixels=shrunk),
    Fault("pictures swapped", "image order", images=lambda images: images[::-1]),
    Fault("batch bleeding", "batch isolation", patch=bleeding_features, in_batches=True),
    Fault("right padding", "padding", patch=right_padding, in_batches=True),
    Fault("penalty dropped", "repetition penalty", drops_penalty=True),
    Fault("no default system prompt", "chat template", drops_default_system=True),
    Fault("no system prompt", "chat template", drops_system=True),
)


@contextmanager
def planted(fault: Fault, folder: Path, place: Path) -> Iterator[FaultyEngine]:
    """Load the checkpoint of `folder` with a fault; a changed copy of it goes to `place`."""
    if fault.config is not None:
        folder = Path(shutil.copytree(folder, place))
        config = json.loads((folder / "config.json").read_text())
        fault.config(config)
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        engine = FaultyEngine(folder, fault, patch)
        try:
            yield engine
        finally:
            engine.close()
