"""Features and rows enter, what is to be made small leaves, with figures for the log."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from ._forward import GUIDED_HEADS, predict, run_text
from ._pictures import IGNORED, LABELS, PICTURE_TOKENS, PictureBatch
from ._rows import CAPTION_WEIGHT, RowBatch

Figures = dict[str, float]


class VisionHead(nn.Module):
    """Names what a merged token shows; it steers training and is thrown away."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, sum(len(names) for names in LABELS.values()))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Give logits for each kind of name."""
        logits = self.linear(F.layer_norm(features, features.shape[-1:]))
        parts = logits.split([len(names) for names in LABELS.values()], dim=-1)
        return dict(zip(LABELS, parts, strict=True))


def head_loss(head: VisionHead, features: Tensor, pictures: PictureBatch) -> tuple[Tensor, Figures]:
    """Compare what the head names with what the merged tokens show."""
    losses, accuracies = [], {}
    for name, logits in head(features).items():
        labels = pictures.labels[name]
        losses.append(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED))
        known = labels != IGNORED
        accuracies[name] = (logits.argmax(-1) == labels)[known].float().mean().item()
    return torch.stack(losses).sum(), accuracies


def row_loss(
    model: Qwen2_5_VLForConditionalGeneration, rows: RowBatch, features: Tensor, *, side_weight: float
) -> tuple[Tensor, Figures]:
    """Compare the predicted answers with the true ones.

    With a side weight the guided layer must predict the answers too, and its guided heads must look at the objects
    that an answer is read from: both help only to get started.
    """
    start = rows.picture_start
    words = model.model.language_model.embed_tokens(rows.tokens)
    embeddings = torch.cat([words[:, :start], features, words[:, start + PICTURE_TOKENS :]], dim=1)
    hidden = run_text(model, embeddings, rows.positions, rows.allowed)
    row, place = rows.where.unbind(1)
    logits = predict(model, hidden.last[row, place])
    loss = _weighted(F.cross_entropy(logits, rows.targets, reduction="none"), rows.weights)
    right = (logits.argmax(-1) == rows.targets).float()
    in_caption = rows.weights == CAPTION_WEIGHT
    figures = {
        "loss": loss.item(),
        "caption_tokens": right[in_caption].mean().item(),
        "answer_tokens": right[~in_caption].mean().item(),
    }
    if side_weight == 0:
        return loss, figures
    middle = predict(model, hidden.middle[row, place])
    middle_loss = _weighted(F.cross_entropy(middle, rows.targets, reduction="none"), rows.weights)
    guidance = _guidance(hidden.scores, rows)
    return loss + side_weight * (middle_loss + guidance), {**figures, "guidance": guidance.item()}


def _guidance(scores: Tensor, rows: RowBatch) -> Tensor:
    """Give the mean surprise that the guided heads look at what the answer is read from."""
    guided = rows.focus.any(dim=1)
    row, place = rows.where[guided].unbind(1)
    log_shares = scores[row, :, place].log_softmax(dim=-1)  # (G, heads, T)
    on_picture = log_shares[..., rows.picture_start : rows.picture_start + PICTURE_TOKENS]
    off_target = ~rows.focus[guided].unsqueeze(1).expand(-1, GUIDED_HEADS, -1)
    return -on_picture.masked_fill(off_target, -torch.inf).logsumexp(dim=-1).mean()


def _weighted(losses: Tensor, weights: Tensor) -> Tensor:
    return (losses * weights).sum() / weights.sum()
