"""The embedded model with a fault, so that answers of a faulty engine can be recognised."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_kit.conformance.cases import Case, Round, pixels_of, png
from qwenvl_kit.demo import model_dir
from qwenvl_kit.executors.specs import make_spec

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.inference.backend import Backend
    from qwenvl_kit.inference.model_runner import ModelRunner, PrefillChunk
    from qwenvl_kit.options import Config

_DEFAULT_SYSTEM = re.compile(r"\{% if loop\.first and message\['role'\] != 'system' %\}.*?\{% endif %\}", re.DOTALL)
_WITHOUT_SYSTEM = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"


@dataclass(frozen=True)
class Variant:
    """A fault, and how to have it.

    Attributes
    ----------
    layer : str
        Where it is.
    words : str
        What it is.
    case : callable
        Change what is asked.
    config : callable
        Change the parsed config.json.
    template : callable
        Change the chat template.
    runner : callable
        Wrap the loaded model.
    penalty : float or None
        Another repetition penalty.
    """

    layer: str
    words: str
    case: Callable[[Case], Case] = field(default=lambda case: case, repr=False)
    config: Callable[[dict[str, Any]], None] | None = field(default=None, repr=False)
    template: Callable[[str], str] | None = field(default=None, repr=False)
    runner: Callable[[Any], Any] | None = field(default=None, repr=False)
    penalty: float | None = None

    def changed(self, asked: Round) -> Round:
        """Return what the faulty engine answers when it is asked `asked`."""
        cases = tuple(map(self.case, asked.cases))
        return replace(asked, cases=cases, penalty=asked.penalty if self.penalty is None else self.penalty)

    @contextlib.contextmanager
    def loaded(self, config: Config) -> Iterator[Backend]:
        """Load the embedded model with this fault, for as long as the context lasts."""
        with tempfile.TemporaryDirectory(prefix="qwenvl_kit-conform-") as folder:
            changed = self._write(Path(folder))
            backend: Any = make_spec(config.replace(model_name=str(changed))).load()
            try:
                if self.runner is not None:
                    _wrap(backend, self.runner)
                yield backend
            finally:
                backend.close()

    def _write(self, folder: Path) -> Path:
        """Return the folder of the checkpoint, with the files that differ written into `folder`."""
        if self.config is None and self.template is None:
            return model_dir()
        for file in model_dir().iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        if self.config is not None:
            file = folder / "config.json"
            content = json.loads(file.read_text(encoding="utf-8"))
            self.config(content)
            file.write_text(json.dumps(content), encoding="utf-8")
        if self.template is not None:
            file = folder / "chat_template.jinja"
            file.write_text(self.template(file.read_text(encoding="utf-8")), encoding="utf-8")
        return folder


class _ChangedRunner:
    """A model runner whose positions or features are changed on their way."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


class _Positions(_ChangedRunner):
    """Temporal, row and column positions in another order."""

    def __init__(self, runner: ModelRunner, order: Sequence[int]) -> None:
        super().__init__(runner)
        self._order = list(order)

    def prefill(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        return self._runner.prefill([replace(one, positions=one.positions[self._order]) for one in chunks])


class _PlainPositions(_ChangedRunner):
    """Positions that count tokens, as of a model without M-RoPE."""

    def prefill(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        return self._runner.prefill([replace(one, positions=self._counted(one)) for one in chunks])

    def decode(self, ids: Tensor, _: Tensor, lengths: Tensor, max_len: int) -> Tensor:
        return self._runner.decode(ids, lengths, lengths, max_len)

    @staticmethod
    def _counted(chunk: PrefillChunk) -> Tensor:
        counted: Tensor = chunk.positions.new_tensor(range(chunk.cached_len, chunk.cached_len + len(chunk.ids)))
        return counted.expand(3, -1)


class _Lost(_ChangedRunner):
    """One visual token of each image lost; a shift of the others, or none, and zeros in the last place."""

    def __init__(self, runner: ModelRunner, at: int) -> None:
        super().__init__(runner)
        self._at = at

    def encode_images(self, pixel_values: Tensor, grid: Tensor) -> list[Tensor]:
        return [self._without(one) for one in self._runner.encode_images(pixel_values, grid)]

    def _without(self, features: Tensor) -> Tensor:
        at = self._at % len(features)
        changed = features.clone()
        changed[at:-1] = features[at + 1 :]
        changed[-1] = 0
        return changed


def _wrap(backend: Any, wrap: Callable[[Any], Any]) -> None:
    from qwenvl_kit.inference.encoder_cache import EncoderCache

    runner = wrap(backend.model_runner)
    patchify = functools.partial(backend.tokenization.processor.patchify, device=runner.device)
    backend.model_runner, backend.encoder_cache = runner, EncoderCache(runner, patchify)


def _swapped_channels(case: Case) -> Case:
    return replace(case, files=tuple(png(pixels_of(file)[:, :, ::-1].copy()) for file in case.files))


def _reversed_images(case: Case) -> Case:
    return replace(case, files=case.files[::-1])


def _without_windows(config: dict[str, Any]) -> None:
    config["vision_config"]["fullatt_block_indexes"] = list(range(config["vision_config"]["depth"]))


def _only_windows(config: dict[str, Any]) -> None:
    config["vision_config"]["fullatt_block_indexes"] = []


def _sections(order: tuple[int, int, int]) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        rope = config["text_config"]["rope_parameters"]
        rope["mrope_section"] = [rope["mrope_section"][at] for at in order]

    return change


def _without_system(template: str) -> str:
    return _WITHOUT_SYSTEM + _DEFAULT_SYSTEM.sub("", template)


def _positions(*order: int) -> Callable[[ModelRunner], Any]:
    return functools.partial(_Positions, order=order)


REVERSED = Variant("image order", "images are swapped", case=_reversed_images)
NO_PENALTY = Variant("repetition penalty", "no penalty is applied", penalty=1.0)

VARIANTS: tuple[Variant, ...] = (
    Variant("preprocessing", "red and blue are swapped (BGR)", case=_swapped_channels),
    Variant("chat template", "system prompts are dropped", template=_without_system),
    Variant("window attention", "every block of the vision tower attends to the whole image", config=_without_windows),
    Variant("window attention", "every block of the vision tower attends within windows", config=_only_windows),
    Variant("M-RoPE", "row and column positions are swapped", runner=_positions(0, 2, 1)),
    Variant("M-RoPE", "temporal and row positions are swapped", runner=_positions(1, 0, 2)),
    Variant("M-RoPE", "temporal and column positions are swapped", runner=_positions(2, 1, 0)),
    Variant("M-RoPE", "the first two sections are swapped", config=_sections((1, 0, 2))),
    Variant("M-RoPE", "the sections are in reverse order", config=_sections((2, 1, 0))),
    Variant("M-RoPE", "positions count tokens: there are no rows and columns", runner=_PlainPositions),
    Variant("visual tokens", "the last visual token of each image is lost", runner=functools.partial(_Lost, at=-1)),
    Variant("visual tokens", "the first visual token of each image is lost", runner=functools.partial(_Lost, at=0)),
)
"""Faults that change every answer, in the order in which they are tried."""
