"""Compute the losses of the vision head and of the predicted answers, with figures for the log."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from .forward import GUIDED_HEADS, predict, run_text
from .images import IGNORED, IMAGE_TOKENS, LABELS, ImageBatch
from .rows import CAPTION_WEIGHT, RowBatch

Figures = dict[str, float]


class VisionHead(nn.Module):
    """Classify each merged token. It guides training and is not saved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, sum(len(names) for names in LABELS.values()))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return logits for each kind of label."""
        logits = self.linear(F.layer_norm(features, features.shape[-1:]))
        parts = logits.split([len(names) for names in LABELS.values()], dim=-1)
        return dict(zip(LABELS, parts, strict=True))


def head_loss(head: VisionHead, features: Tensor, images: ImageBatch) -> tuple[Tensor, Figures]:
    """Return the loss and the accuracies of the head."""
    losses, accuracies = [], {}
    for name, logits in head(features).items():
        labels = images.labels[name]
        losses.append(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED))
        known = labels != IGNORED
        accuracies[name] = (logits.argmax(-1) == labels)[known].float().mean().item()
    return torch.stack(losses).sum(), accuracies


def row_loss(
    model: Qwen2_5_VLForConditionalGeneration, rows: RowBatch, features: Tensor, *, side_weight: float
) -> tuple[Tensor, Figures]:
    """Return the loss and the figures of the predicted answers.

    With a side weight the guided layer predicts the answers too, and its guided heads attend to the objects that
    decide an answer. Both help at the start of training only.
    """
    start = rows.image_start
    words = model.model.language_model.embed_tokens(rows.tokens)
    embeddings = torch.cat([words[:, :start], features, words[:, start + IMAGE_TOKENS :]], dim=1)
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
    """Return the mean negative log of the attention that guided heads give to the objects that decide the answer."""
    guided = rows.focus.any(dim=1)
    row, place = rows.where[guided].unbind(1)
    log_shares = scores[row, :, place].log_softmax(dim=-1)  # (G, heads, T)
    on_image = log_shares[..., rows.image_start : rows.image_start + IMAGE_TOKENS]
    off_target = ~rows.focus[guided].unsqueeze(1).expand(-1, GUIDED_HEADS, -1)
    return -on_image.masked_fill(off_target, -torch.inf).logsumexp(dim=-1).mean()


def _weighted(losses: Tensor, weights: Tensor) -> Tensor:
    return (losses * weights).sum() / weights.sum()
