"""Compare an export with its checkpoint, row by row and step by step.

Rows go through torch one at a time, and then through the export in batches of several sizes, left-padded. They show
images of mixed sizes, some rows several. At each step both models continue with torch's token, so every step is
compared. Only one of the two models is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from qwenvl_kit.checkpoints.checkpoint import read
from qwenvl_kit.checkpoints.hf_logging import silence_transformers
from qwenvl_kit.checkpoints.loading import load_config, load_processor
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.inference.oom import free_memory
from qwenvl_kit.onnx_backend.export.parity_bars import TOLERANCE, judge_exact, judge_rounded, rounding_bound
from qwenvl_kit.onnx_backend.export.parity_reference import Reference, greedy, references
from qwenvl_kit.onnx_backend.export.parity_rows import CompareRow, draw_images, images_of, make_rows, model_inputs
from qwenvl_kit.onnx_backend.generate import OnnxQwenVL
from qwenvl_kit.onnx_backend.manifest import read_export

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.onnx_backend.export.parity_rows import ImageInput

BATCH_SIZES = (1, 3, 8)


@dataclass(frozen=True, slots=True)
class Parity:
    """Comparison of an export with its source.

    Attributes
    ----------
    frame : DataFrame
        A row per row and batch size: ``batch_size, row, sizes, prompt_tokens, new_tokens, largest_logit, max_diff,
        mean_diff`` (of logits), ``relative_error`` (of logits, as part of their spread; the mean over steps),
        ``agreement`` (share of steps at which both choose the same token), ``ties`` (other
        choices where torch's two best logits lie within twice the largest difference), ``first_difference`` (step of
        the first other choice).
    passed : bool
        Whether the export may be used.
    reason : str
        Figures that decided it.
    """

    frame: pd.DataFrame
    passed: bool
    reason: str

    def summary(self) -> dict[str, Any]:
        """Return the figures over all rows, as plain JSON values."""
        return {
            "passed": self.passed,
            "reason": self.reason,
            "rows": len(self.frame),
            "batch_sizes": sorted({int(size) for size in self.frame["batch_size"]}),
            "new_tokens": int(self.frame["new_tokens"].sum()),
            "max_diff": float(self.frame["max_diff"].max()),
            "mean_diff": float(self.frame["mean_diff"].mean()),
            "relative_error": float(self.frame["relative_error"].mean()),
            "agreement": float(np.average(self.frame["agreement"], weights=self.frame["new_tokens"])),
            "ties": int(self.frame["ties"].sum()),
        }

    def __str__(self) -> str:
        """Return a line per batch size, and the verdict."""
        by_size = self.frame.groupby("batch_size").agg(
            rows=("row", "size"),
            max_diff=("max_diff", "max"),
            mean_diff=("mean_diff", "mean"),
            agreement=("agreement", "mean"),
            ties=("ties", "sum"),
        )
        shown = by_size.to_string(formatters={"max_diff": "{:.1e}".format, "mean_diff": "{:.1e}".format})
        return f"{shown}\n{'passed' if self.passed else 'FAILED'}: {self.reason}"


def verify(
    torch_dir: str | Path,
    onnx_dir: str | Path,
    images: Sequence[ImageInput] | None = None,
    *,
    n_rows: int = 8,
    n_tokens: int = 64,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tolerance: float = TOLERANCE,
    threads: int | None = None,
    pictures: Sequence[ImageInput] | None = None,
) -> Parity:
    """Compare an export with its source.

    Parameters
    ----------
    torch_dir : str or path
        The checkpoint: a folder, or ``demo``.
    onnx_dir : path
        The export that `to_onnx` wrote.
    images : sequence of PIL images or uint8 arrays (H, W, 3), optional
        One per row; every third row shows the next one too. None draws images of mixed sizes.
    n_rows : int
        Rows, where `images` is None.
    n_tokens : int
        Steps of each row; end tokens do not stop it.
    batch_sizes : sequence of int
        Each row goes through the export once per batch size.
    tolerance : float
        Largest mean difference of a row's logits that passes, for a float32 export without quantisation. It holds for
        logits of at most 10 and grows with larger ones, as the spacing of float32 does. Single logits may differ by
        ten times as much: with 12 layers, transformers' own in float32 were up to 2.6e-4 from those in float64, and
        ONNX Runtime's 1.4e-4.
    threads : int, optional
        Of ONNX Runtime.
    pictures : sequence, optional
        The former name of `images`.

    Returns
    -------
    Parity

    Raises
    ------
    CheckpointError
        One of the folders holds no usable checkpoint or export.
    ConfigError
        There is nothing to compare.

    Examples
    --------
    >>> print(verify("demo", "demo-onnx"))  # doctest: +SKIP
    """
    if n_tokens < 1 or n_rows < 1 or not batch_sizes:
        raise ConfigError(
            f"n_rows and n_tokens must be 1 or more, and batch_sizes not empty; got {n_rows}, {n_tokens} and "
            f"{batch_sizes!r}. Leave them out for the defaults."
        )
    images = images_of(images, pictures)
    export = read_export(Path(onnx_dir))
    with torch.inference_mode(), silence_transformers():
        processor = load_processor(read(export.path, weights="*.onnx"))
        rows = make_rows(processor, draw_images(n_rows) if images is None else images)
        answers = references(torch_dir, processor, rows, n_tokens)
        free_memory()  # of torch's model, before the export is loaded
        exported = OnnxQwenVL.from_pretrained(onnx_dir, threads=threads)
        frame = pd.DataFrame(
            one
            for batch_size in batch_sizes
            for start in range(0, len(rows), batch_size)
            for one in _compare(exported, rows, answers, range(start, min(start + batch_size, len(rows))), batch_size)
        )
    if export.dtype == "float32" and export.quantize is None:
        passed, reason = judge_exact(frame, tolerance)
    else:
        text = load_config(read(export.path, weights="*.onnx")).text_config
        passed, reason = judge_rounded(frame, rounding_bound(export.quantize or export.dtype, text.num_hidden_layers))
    return Parity(frame, passed, reason)


@dataclass(slots=True, eq=False)
class _Differences:
    """Of each step, for each row of a batch: differences of logits, and whether the tokens are equal."""

    largest: list[Tensor] = field(default_factory=list)
    mean: list[Tensor] = field(default_factory=list)
    relative: list[Tensor] = field(default_factory=list)
    same: list[Tensor] = field(default_factory=list)


class _Forced(LogitsProcessor):  # type: ignore[misc]  # transformers' bases are untyped
    """Compare each step's logits with the reference, and force its tokens."""

    def __init__(self, references: Sequence[Reference], seen: _Differences) -> None:
        self._logits = torch.stack([one.logits for one in references], dim=1)  # (T, B, V)
        self._tokens = torch.stack([one.tokens for one in references], dim=1)  # (T, B)
        self._seen = seen
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) that allow torch's token only."""
        wanted, token = self._logits[self._step], self._tokens[self._step]
        difference = scores.float().cpu() - wanted
        self._seen.largest.append(difference.abs().amax(dim=1))
        self._seen.mean.append(difference.abs().mean(dim=1))
        # softmax ignores what all logits have in common
        self._seen.relative.append(difference.std(dim=1) / wanted.std(dim=1))
        self._seen.same.append(scores.argmax(dim=1).cpu() == token)
        self._step += 1
        forced = torch.full_like(scores, -torch.inf)
        return forced.scatter_(1, token[:, None].to(scores.device), 0.0)


def _compare(
    exported: OnnxQwenVL, rows: Sequence[CompareRow], references: Sequence[Reference], chosen: range, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Run one batch; yield the figures of each of its rows."""
    seen = _Differences()
    forced = _Forced([references[at] for at in chosen], seen)
    exported.generation_config = GenerationConfig()
    exported.generate(
        **model_inputs(exported.processor, [rows[at] for at in chosen]),
        generation_config=greedy(len(references[chosen[0]].tokens)),
        logits_processor=LogitsProcessorList([forced]),
    )
    largest, mean, relative, same = (
        torch.stack(each) for each in (seen.largest, seen.mean, seen.relative, seen.same)
    )  # (T, B)
    for column, at in enumerate(chosen):
        best = references[at].logits.topk(2, dim=1).values  # (T, 2)
        other = ~same[:, column]
        ties = other & (best[:, 0] - best[:, 1] <= 2 * largest[:, column].max())
        yield {
            "batch_size": batch_size,
            "row": at,
            "sizes": ", ".join(f"{image.width}×{image.height}" for image in rows[at].images),
            "prompt_tokens": references[at].prompt_tokens,
            "new_tokens": len(same),
            "largest_logit": float(references[at].logits.abs().max()),
            "max_diff": float(largest[:, column].max()),
            "mean_diff": float(mean[:, column].mean()),
            "relative_error": float(relative[:, column].mean()),
            "agreement": float(same[:, column].float().mean()),
            "ties": int(ties.sum()),
            "first_difference": int(other.int().argmax()) if bool(other.any()) else None,
        }
