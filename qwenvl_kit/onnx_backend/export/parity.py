"""Compare an export with its checkpoint, row by row and step by step.

Rows go through torch one at a time, and through the export in batches of several sizes, left-padded. They show images
of mixed sizes, some rows several. At each step both models continue with torch's token, so every step is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, Qwen2_5_VLForConditionalGeneration

from qwenvl_kit.checkpoints.checkpoint import find, read
from qwenvl_kit.checkpoints.hf_logging import silence_transformers
from qwenvl_kit.checkpoints.loading import load_config
from qwenvl_kit.checkpoints.preflight import refuse_gaps
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.inference.preflight import check_checkpoint
from qwenvl_kit.onnx_backend.export.parity_rows import CompareRow, draw_images, images_of, make_rows, model_inputs
from qwenvl_kit.onnx_backend.generate import OnnxQwenVL
from qwenvl_kit.options import Config

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.onnx_backend.export.parity_rows import ImageInput

BATCH_SIZES = (1, 3, 8)
TOLERANCE = 1e-4  # in the mean, on logits of up to _PLAIN_LOGIT, in float32; in proportion beyond
_FAR = 10  # times the tolerance: what single logits may differ by
_PLAIN_LOGIT = 10.0
_LEAST_AGREEMENT = 0.5  # of a float16 or quantised export: less is no rounding but a fault


@dataclass(frozen=True, slots=True)
class Parity:
    """Comparison of an export with its source.

    Attributes
    ----------
    frame : DataFrame
        A row per row and batch size: ``batch_size, row, sizes, prompt_tokens, new_tokens, largest_logit, max_diff,
        mean_diff`` (of logits), ``agreement`` (share of steps at which both choose the same token), ``ties`` (other
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
    with torch.inference_mode(), silence_transformers():
        exported = OnnxQwenVL.from_pretrained(onnx_dir, threads=threads)
        rows = make_rows(exported.processor, draw_images(n_rows) if images is None else images)
        references = list(_references(_folder(torch_dir), exported.processor, rows, n_tokens))
        found = [
            one
            for batch_size in batch_sizes
            for start in range(0, len(rows), batch_size)
            for one in _compare(
                exported, rows, references, range(start, min(start + batch_size, len(rows))), batch_size
            )
        ]
        frame = pd.DataFrame(found)
    exact = exported.export.dtype == "float32" and exported.export.quantize is None
    passed, reason = judge_exact(frame, tolerance) if exact else judge_rounded(frame)
    return Parity(frame, passed, reason)


@dataclass(slots=True, eq=False)
class _Reference:
    """torch's answer to a row: logits (n_tokens, V) and the tokens of the highest ones."""

    logits: Tensor
    tokens: Tensor
    prompt_tokens: int


@dataclass(slots=True, eq=False)
class _Differences:
    """Of each step, for each row of a batch: largest and mean difference, and whether the tokens are equal."""

    largest: list[Tensor] = field(default_factory=list)
    mean: list[Tensor] = field(default_factory=list)
    same: list[Tensor] = field(default_factory=list)


class _Forced(LogitsProcessor):  # type: ignore[misc]  # transformers' bases are untyped
    """Compare each step's logits with the reference, and force its tokens."""

    def __init__(self, references: Sequence[_Reference], seen: _Differences) -> None:
        self._logits = torch.stack([one.logits for one in references], dim=1)  # (T, B, V)
        self._tokens = torch.stack([one.tokens for one in references], dim=1)  # (T, B)
        self._seen = seen
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) that allow torch's token only."""
        wanted, token = self._logits[self._step], self._tokens[self._step]
        difference = (scores.float().cpu() - wanted).abs()
        self._seen.largest.append(difference.amax(dim=1))
        self._seen.mean.append(difference.mean(dim=1))
        self._seen.same.append(scores.argmax(dim=1).cpu() == token)
        self._step += 1
        forced = torch.full_like(scores, -torch.inf)
        return forced.scatter_(1, token[:, None].to(scores.device), 0.0)


def _folder(torch_dir: str | Path) -> Path:
    """Return the folder of a checkpoint that passed its checks."""
    folder = Path(torch_dir).expanduser()
    checkpoint = read(folder) if folder.is_dir() else find(Config(model_name=str(torch_dir)))
    check_checkpoint(checkpoint)
    return checkpoint.path


def _references(folder: Path, processor: Any, rows: Sequence[CompareRow], n_tokens: int) -> Iterator[_Reference]:
    """Yield torch's answer to each row."""
    # As the torch backend loads: no pickles, no attention kernel that a config names on the hub.
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder,
        config=load_config(read(folder)),
        dtype=torch.float32,
        attn_implementation="sdpa",
        generation_config=GenerationConfig(),  # the checkpoint's own penalties would hide the logits
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    refuse_gaps(folder, info)
    model.eval()
    for row in rows:
        inputs = model_inputs(processor, [row])
        config = _greedy(n_tokens)
        config.output_logits = config.return_dict_in_generate = True
        made = model.generate(**inputs, generation_config=config)
        prompt_tokens = inputs["input_ids"].shape[1]
        yield _Reference(torch.cat(made.logits).float(), made.sequences[0, prompt_tokens:], prompt_tokens)


def _compare(
    exported: OnnxQwenVL, rows: Sequence[CompareRow], references: Sequence[_Reference], chosen: range, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Run one batch; yield the figures of each of its rows."""
    seen = _Differences()
    forced = _Forced([references[at] for at in chosen], seen)
    exported.generation_config = GenerationConfig()
    exported.generate(
        **model_inputs(exported.processor, [rows[at] for at in chosen]),
        generation_config=_greedy(len(references[chosen[0]].tokens)),
        logits_processor=LogitsProcessorList([forced]),
    )
    largest, mean, same = torch.stack(seen.largest), torch.stack(seen.mean), torch.stack(seen.same)  # (T, B)
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
            "agreement": float(same[:, column].float().mean()),
            "ties": int(ties.sum()),
            "first_difference": int(other.int().argmax()) if bool(other.any()) else None,
        }


def judge_exact(frame: pd.DataFrame, tolerance: float) -> tuple[bool, str]:
    """Return whether all tokens are equal, ties aside, and logits within the tolerance; and the figures in words."""
    largest, ties = float(frame["max_diff"].max()), int(frame["ties"].sum())
    others = round(float(((1 - frame["agreement"]) * frame["new_tokens"]).sum())) - ties
    n_tokens = int(frame["new_tokens"].sum())
    verdict = (
        f"{n_tokens - others} of {n_tokens} tokens equal ({ties} ties), largest difference of logits {largest:.1e}"
    )
    if not np.isfinite(largest):
        return False, f"{verdict}; some logits are not finite"
    if others:
        return False, verdict
    mean = float(frame["mean_diff"].max())
    allowed = tolerance * max(1.0, float(frame["largest_logit"].max()) / _PLAIN_LOGIT)
    verdict += f" of at most {_FAR * allowed:.1e}, mean {mean:.1e} of at most {allowed:.1e}"
    return mean <= allowed and largest <= _FAR * allowed, verdict


def judge_rounded(frame: pd.DataFrame) -> tuple[bool, str]:
    """Return whether an export of rounded weights is free of faults; only real images show how good it is."""
    agreement = float(np.average(frame["agreement"], weights=frame["new_tokens"]))
    largest = float(frame["max_diff"].max())
    verdict = f"{agreement:.1%} of tokens equal, largest difference of logits {largest:.1e}"
    return bool(np.isfinite(largest)) and agreement >= _LEAST_AGREEMENT, verdict


def _greedy(n_tokens: int) -> GenerationConfig:
    return GenerationConfig(do_sample=False, max_new_tokens=n_tokens, eos_token_id=None, pad_token_id=0)
