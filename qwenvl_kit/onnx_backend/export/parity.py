"""A checkpoint and its export in, a row-by-row comparison and a verdict out.

Rows go through torch one at a time, and through the export in batches of several sizes, left-padded, with pictures of
mixed sizes and several pictures in a row. At each step both are given torch's token, so that every step can be
compared: the export says the same when it would have chosen the same token each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2_5_VLForConditionalGeneration,
)

from qwenvl_kit.checkpoints.checkpoint import find, read
from qwenvl_kit.checkpoints.hf_logging import silence_transformers
from qwenvl_kit.checkpoints.loading import load_config
from qwenvl_kit.checkpoints.preflight import refuse_gaps
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.inference.preflight import check_checkpoint
from qwenvl_kit.onnx_backend.generate import OnnxQwenVL
from qwenvl_kit.options import Config

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    LoadedImage = Image.Image | NDArray[np.uint8]

BATCH_SIZES = (1, 3, 8)
TOLERANCE = 1e-4  # in the mean, on logits of up to _PLAIN_LOGIT, in float32; in proportion beyond
_FAR = 10  # times the tolerance: what single logits may differ by
_PLAIN_LOGIT = 10.0
_LEAST_AGREEMENT = 0.5  # of a float16 or quantised export: less is no rounding but a fault
_PROMPTS = (
    "Describe this picture.",
    "请给出这张图片的详细描述。",
    "What is in the picture, where is it, and which colour has it?",
)
_SIZES = ((112, 112), (84, 140), (224, 56), (100, 150), (168, 252), (61, 203), (280, 140), (336, 308))


@dataclass(frozen=True, slots=True)
class Parity:
    """How an export compares with its source.

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
        Why, in words.
    """

    frame: pd.DataFrame
    passed: bool
    reason: str

    def summary(self) -> dict[str, Any]:
        """The figures of the whole, as plain JSON values."""
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
        """A line per batch size, and the verdict."""
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
    pictures: Sequence[LoadedImage] | None = None,
    *,
    n_rows: int = 8,
    n_tokens: int = 64,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tolerance: float = TOLERANCE,
    threads: int | None = None,
) -> Parity:
    """Compare an export with its source.

    Parameters
    ----------
    torch_dir : str or path
        The checkpoint: a folder, or ``demo``.
    onnx_dir : path
        What `to_onnx` made of it.
    pictures : sequence of PIL images or uint8 arrays (H, W, 3), optional
        One per row; every third row shows the next one too. Drawn ones of mixed sizes where None.
    n_rows : int
        Rows, where `pictures` is None.
    n_tokens : int
        Steps of each row; an answer's end is passed over.
    batch_sizes : sequence of int
        Each row goes through the export once for each of them.
    tolerance : float
        Largest mean difference of a row's logits that passes where they are at most 10, for a float32 export without
        quantisation; where they are larger, it grows with them, as the spacing of float32 does. Single logits may
        differ by ten times as much: with 12 layers, transformers' own in float32 were up to 2.6e-4 from those in
        float64, and ONNX Runtime's 1.4e-4.
    threads : int, optional
        Of ONNX Runtime.

    Returns
    -------
    Parity

    Raises
    ------
    CheckpointError
        One of the folders is not what it should be.

    Examples
    --------
    >>> print(verify("demo", "demo-onnx"))  # doctest: +SKIP
    """
    if n_tokens < 1 or n_rows < 1 or not batch_sizes:
        raise ConfigError(f"n_rows and n_tokens must be 1 or more; got {n_rows} and {n_tokens}; leave them out")
    with torch.inference_mode(), silence_transformers():
        exported = OnnxQwenVL.from_pretrained(onnx_dir, threads=threads)
        rows = _rows(exported.processor, _drawn(n_rows) if pictures is None else pictures)
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
    passed, reason = _verdict(frame, tolerance) if exact else _rough_verdict(frame)
    return Parity(frame, passed, reason)


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    text: str
    images: list[Image.Image]


@dataclass(slots=True, eq=False)
class _Reference:
    """What torch says to a row: logits (n_tokens, V) and the tokens it chose."""

    logits: Tensor
    tokens: Tensor
    prompt_tokens: int


@dataclass(slots=True, eq=False)
class _Differences:
    """Largest and mean difference of each step, and whether the choice was the same, for each row of a batch."""

    largest: list[Tensor] = field(default_factory=list)
    mean: list[Tensor] = field(default_factory=list)
    same: list[Tensor] = field(default_factory=list)


class _Forced(LogitsProcessor):  # type: ignore[misc]  # transformers' bases are untyped
    """Compares each step's logits with the reference and leads generation along its tokens."""

    def __init__(self, references: Sequence[_Reference], seen: _Differences) -> None:
        self._logits = torch.stack([one.logits for one in references], dim=1)  # (T, B, V)
        self._tokens = torch.stack([one.tokens for one in references], dim=1)  # (T, B)
        self._seen = seen
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) that leave only torch's token."""
        wanted, token = self._logits[self._step], self._tokens[self._step]
        difference = (scores.float().cpu() - wanted).abs()
        self._seen.largest.append(difference.amax(dim=1))
        self._seen.mean.append(difference.mean(dim=1))
        self._seen.same.append(scores.argmax(dim=1).cpu() == token)
        self._step += 1
        forced = torch.full_like(scores, -torch.inf)
        return forced.scatter_(1, token[:, None].to(scores.device), 0.0)


def _folder(torch_dir: str | Path) -> Path:
    folder = Path(torch_dir).expanduser()
    checkpoint = read(folder) if folder.is_dir() else find(Config(model_name=str(torch_dir)))
    check_checkpoint(checkpoint)
    return checkpoint.path


def _references(folder: Path, processor: Any, rows: Sequence[_Row], n_tokens: int) -> Iterator[_Reference]:
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
        inputs = _inputs(processor, [row])
        config = _greedy(n_tokens)
        config.output_logits = config.return_dict_in_generate = True
        made = model.generate(**inputs, generation_config=config)
        prompt_tokens = inputs["input_ids"].shape[1]
        yield _Reference(torch.cat(made.logits).float(), made.sequences[0, prompt_tokens:], prompt_tokens)


def _compare(
    exported: OnnxQwenVL, rows: Sequence[_Row], references: Sequence[_Reference], chosen: range, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Run one batch and describe each of its rows."""
    seen = _Differences()
    forced = _Forced([references[at] for at in chosen], seen)
    exported.generation_config = GenerationConfig()
    exported.generate(
        **_inputs(exported.processor, [rows[at] for at in chosen]),
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


def _verdict(frame: pd.DataFrame, tolerance: float) -> tuple[bool, str]:
    """The same tokens, ties aside, and logits within the tolerance."""
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


def _rough_verdict(frame: pd.DataFrame) -> tuple[bool, str]:
    """Rounded weights answer otherwise now and then; whether well enough is for a test on real pictures to tell."""
    agreement = float(np.average(frame["agreement"], weights=frame["new_tokens"]))
    largest = float(frame["max_diff"].max())
    verdict = f"{agreement:.1%} of tokens equal, largest difference of logits {largest:.1e}"
    return bool(np.isfinite(largest)) and agreement >= _LEAST_AGREEMENT, verdict


def _greedy(n_tokens: int) -> GenerationConfig:
    return GenerationConfig(do_sample=False, max_new_tokens=n_tokens, eos_token_id=None, pad_token_id=0)


def _inputs(processor: Any, rows: Sequence[_Row]) -> dict[str, Tensor]:
    made: dict[str, Tensor] = processor(
        text=[row.text for row in rows],
        images=[image for row in rows for image in row.images],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    return dict(made)


def _rows(processor: Any, pictures: Sequence[LoadedImage]) -> list[_Row]:
    images = [one if isinstance(one, Image.Image) else Image.fromarray(one) for one in pictures]
    rows = []
    for at, image in enumerate(images):
        shown = [image.convert("RGB")]
        if at % 3 == 2:
            shown.append(images[(at + 1) % len(images)].convert("RGB"))
        content = [*({"type": "image"} for _ in shown), {"type": "text", "text": _PROMPTS[at % len(_PROMPTS)]}]
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        rows.append(_Row(text, shown))
    return rows


def _drawn(n_pictures: int) -> list[Image.Image]:
    """Pictures of mixed sizes with something on them; the same ones each time."""
    rng = np.random.default_rng(0)
    return [_draw(*_SIZES[at % len(_SIZES)], rng) for at in range(n_pictures)]


def _draw(height: int, width: int, rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (width, height), tuple(map(int, rng.integers(0, 256, 3))))
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        left, top = rng.uniform(0, 0.7, 2) * (width, height)
        side = rng.uniform(0.15, 0.4) * min(width, height)
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((left, top, left + side, top + side), fill=tuple(map(int, rng.integers(0, 256, 3))))
    return image
