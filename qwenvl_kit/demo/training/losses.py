"""Compute the losses of the throwaway heads and of the predicted answers, with figures for the log."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from .forward import GUIDED_HEADS, Hidden, predict, run_text
from .images import IGNORED, IMAGE_TOKENS, LABELS, TOKEN_SIDE, ImageBatch
from .rows import FORMS, RowBatch

Figures = dict[str, float]

_N_EDGES = 4
_EDGE_WEIGHT = 4.0
_MOST_THINGS = 9


class VisionHead(nn.Module):
    """Classify each merged token, and measure how far the edges of its object are. It is not saved with the model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, sum(len(names) for names in LABELS.values()))
        self.edges = nn.Linear(width, _N_EDGES)

    def forward(self, features: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return logits for each kind of label, and left, top, right, bottom from the centre, in merged tokens."""
        normed = F.layer_norm(features, features.shape[-1:])
        parts = self.linear(normed).split([len(names) for names in LABELS.values()], dim=-1)
        return dict(zip(LABELS, parts, strict=True)), self.edges(normed)


class PlaceHead(nn.Module):
    """Tell within the text layers where the object of a merged token is. It is not saved with the model.

    Its code for an edge is compared with the embeddings of numbers, so that an answer need only copy it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.codes = nn.Linear(width, _N_EDGES * width)
        self.order = nn.Linear(width, _MOST_THINGS)

    def forward(self, hidden: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of numbers for each edge (K, 4, N), and of the object's place in raster order (K, 9)."""
        normed = F.layer_norm(hidden, hidden.shape[-1:])
        return self.codes(normed).view(len(hidden), _N_EDGES, -1) @ numbers.T, self.order(normed)


def head_loss(head: VisionHead, features: Tensor, images: ImageBatch) -> tuple[Tensor, Figures]:
    """Return the loss and the accuracies of the vision head; `edge_px` is its mean error at edges in pixels."""
    losses, figures = [], {}
    classes, edges = head(features)
    for name, logits in classes.items():
        labels = images.labels[name]
        known = labels != IGNORED
        n_known = max(1, int(known.sum()))  # a batch may be without any sign
        losses.append(F.cross_entropy(logits[known], labels[known], reduction="sum") / n_known)
        figures[name] = (logits.argmax(-1) == labels)[known].sum().item() / n_known
    owned = images.owners >= 0
    distances = (edges - (images.edges - images.centres()) / TOKEN_SIDE)[owned].abs()
    figures["edge_px"] = distances.mean().item() * TOKEN_SIDE
    return torch.stack(losses).sum() + _EDGE_WEIGHT * distances.mean(), figures


def row_loss(
    model: Qwen2_5_VLForConditionalGeneration,
    head: PlaceHead,
    rows: RowBatch,
    images: ImageBatch,
    features: Tensor,
    *,
    side_weight: float,
    spread: float,
) -> tuple[Tensor, Figures]:
    """Return the loss and the figures of the predicted answers.

    With a side weight the guided layer predicts the answers too, its guided heads attend to the objects that decide an
    answer, and the layer before tells where each object is. All help at the start of training only.

    Parameters
    ----------
    side_weight
        Of these losses.
    spread
        Part of a coordinate's target that its two neighbours share.
    """
    start = rows.image_start
    words = model.model.language_model.embed_tokens(rows.tokens)
    embeddings = torch.cat([words[:, :start], features, words[:, start + IMAGE_TOKENS :]], dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = run_text(model, embeddings, rows.positions, rows.allowed).float()
    row, place = rows.where.unbind(1)
    logits = predict(model, hidden.last[row, place])
    loss = _weighted(_losses(logits, rows, spread), rows.weights)
    figures = {"loss": loss.item(), **_accuracies(logits, rows)}
    if side_weight == 0:
        return loss, figures
    middle = predict(model, hidden.middle[row, place])
    middle_loss = _weighted(_losses(middle, rows, spread), rows.weights)
    guidance = _guidance(hidden.scores, rows)
    placed_loss, placed = _placed(model, head, hidden, images, rows)
    figures |= {"guidance": guidance.item(), **placed}
    return loss + side_weight * (middle_loss + guidance + placed_loss), figures


def _losses(logits: Tensor, rows: RowBatch, spread: float) -> Tensor:
    """Return the cross entropy of each prediction."""
    logs = logits.log_softmax(dim=-1)
    exact = logs.gather(1, rows.targets[:, None]).squeeze(1)
    beside = logs.gather(1, rows.beside).mean(dim=1)
    return -torch.lerp(exact, beside, spread)


def _accuracies(logits: Tensor, rows: RowBatch) -> Figures:
    """Return the share of right tokens of each form, and the mean error of coordinates in pixels."""
    chosen = logits.argmax(-1)
    right = (chosen == rows.targets).float()
    figures = {f"{form}_tokens": right[rows.forms == at].mean().item() for at, form in enumerate(FORMS)}
    places = {int(number): value for value, number in enumerate(rows.numbers)}
    is_number = rows.beside[:, 0] != rows.targets
    errors = [
        abs(places.get(int(given), 999) - places[int(true)])
        for given, true in zip(chosen[is_number], rows.targets[is_number], strict=True)
    ]
    figures["number_px"] = sum(min(error, 50) for error in errors) / max(1, len(errors))
    return figures


def _placed(
    model: Qwen2_5_VLForConditionalGeneration, head: PlaceHead, hidden: Hidden, images: ImageBatch, rows: RowBatch
) -> tuple[Tensor, Figures]:
    """Return the loss of the place head, whose target is shared by the two whole numbers around an edge."""
    owned = images.owners >= 0
    on_image = hidden.placed[:, rows.image_start : rows.image_start + IMAGE_TOKENS]
    logits, order = head(on_image[owned], model.lm_head.weight[rows.numbers])
    edges = images.edges[owned].clamp(0, len(rows.numbers) - 1.001)
    logs = logits.log_softmax(dim=-1)
    below, above = (logs.gather(2, (edges.long() + step)[..., None]).squeeze(2) for step in (0, 1))
    loss = -torch.lerp(below, above, edges.frac()).mean()
    ordered = F.cross_entropy(order, images.owners[owned])
    error = (logits.argmax(-1) - edges).abs().mean().item()
    right = (order.argmax(-1) == images.owners[owned]).float().mean().item()
    return loss + ordered, {"placed_px": error, "ordered": right}


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
