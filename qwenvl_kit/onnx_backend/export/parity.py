"""Compare an export with its checkpoint, row by row and step by step.

Rows go through the export in batches of several sizes, left-padded, and then through torch one at a time. They show
images of mixed sizes, some rows several. At each step both models continue with the token that the export chose first,
so every step is compared. Only one of the two models is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from qwenvl_kit.onnx_backend.export.parity_reference import greedy, references
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
    adapter: str | None = None,
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
    adapter : str, optional
        The LoRA adapter that was folded into the export.
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
        exported = OnnxQwenVL.from_pretrained(onnx_dir, threads=threads)
        runs = [_run(exported, rows, batch_sizes[0], n_tokens, None)]
        tokens = list(runs[0].argmax(dim=-1))  # (T,) of each row
        runs += [_run(exported, rows, batch_size, n_tokens, tokens) for batch_size in batch_sizes[1:]]
        del exported
        free_memory()  # of the export, before torch's model is loaded
        wanted = references(torch_dir, processor, rows, tokens, adapter)
        prompts = [model_inputs(processor, [row])["input_ids"].shape[1] for row in rows]
        frame = pd.DataFrame(
            {"batch_size": batch_size, "row": at, "sizes": _sizes(row), "prompt_tokens": prompts[at]}
            | _differences(run[at], wanted[at])
            for batch_size, run in zip(batch_sizes, runs, strict=True)
            for at, row in enumerate(rows)
        )
    if export.dtype == "float32" and export.quantize is None:
        passed, reason = judge_exact(frame, tolerance)
    else:
        text = load_config(read(export.path, weights="*.onnx")).text_config
        passed, reason = judge_rounded(frame, rounding_bound(export.quantize or export.dtype, text.num_hidden_layers))
    return Parity(frame, passed, reason)


class _Recorder(LogitsProcessor):  # type: ignore[misc]  # transformers' bases are untyped
    """Record each step's logits, and force tokens (T, B), or without them the highest one that is no image's."""

    def __init__(self, tokens: Tensor | None, image_ids: Sequence[int]) -> None:
        self.logits: list[Tensor] = []
        self._tokens, self._image_ids = tokens, list(image_ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) that allow one token only."""
        step = scores.float().cpu()  # (B, V)
        step[:, self._image_ids] = -torch.inf  # torch's one pass would look for their images
        token = step.argmax(dim=1) if self._tokens is None else self._tokens[len(self.logits)]
        self.logits.append(step)
        forced = torch.full_like(scores, -torch.inf)
        return forced.scatter_(1, token[:, None].to(scores.device), 0.0)


def _run(
    exported: OnnxQwenVL, rows: Sequence[CompareRow], batch_size: int, n_tokens: int, tokens: Sequence[Tensor] | None
) -> Tensor:
    """Return the export's logits (n_rows, T, V), with -inf for tokens of images."""
    config = exported.config
    exported.generation_config = GenerationConfig()
    found = []
    for start in range(0, len(rows), batch_size):
        chosen = range(start, min(start + batch_size, len(rows)))
        forced = None if tokens is None else torch.stack([tokens[at] for at in chosen], dim=1)  # (T, B)
        seen = _Recorder(forced, (config.image_token_id, config.video_token_id))
        exported.generate(
            **model_inputs(exported.processor, [rows[at] for at in chosen]),
            generation_config=greedy(n_tokens),
            logits_processor=LogitsProcessorList([seen]),
        )
        found.append(torch.stack(seen.logits, dim=1))  # (B, T, V)
    return torch.cat(found)


def _differences(found: Tensor, wanted: Tensor) -> dict[str, Any]:
    """Return the figures of a row from logits (T, V)."""
    compared = found[0] != -torch.inf  # NaN is compared, and fails
    found, wanted = found[:, compared], wanted[:, compared]
    difference = found - wanted
    other = found.argmax(dim=1) != wanted.argmax(dim=1)
    best = wanted.topk(2, dim=1).values  # (T, 2)
    ties = other & (best[:, 0] - best[:, 1] <= 2 * difference.abs().max())
    return {
        "new_tokens": len(found),
        "largest_logit": float(wanted.abs().max()),
        "max_diff": float(difference.abs().max()),
        "mean_diff": float(difference.abs().mean()),
        # softmax ignores what all logits have in common
        "relative_error": float((difference.std(dim=1) / wanted.std(dim=1)).mean()),
        "agreement": 1 - float(other.float().mean()),
        "ties": int(ties.sum()),
        "first_difference": int(other.int().argmax()) if bool(other.any()) else None,
    }


def _sizes(row: CompareRow) -> str:
    return ", ".join(f"{image.width}×{image.height}" for image in row.images)
