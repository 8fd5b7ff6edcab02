"""Read a finished answer again: with its attention watched, with visual tokens hidden, or with gradients."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

import torch

from qwenvl_kit.inference.packing import max_prefill_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.inference.sequence import Sequence
    from qwenvl_kit.torch_backend.model_runner import TorchModelRunner

_QUERIES = 32  # whose weights over all tokens are in memory at a time: 33 MB for 16 heads and 16,000 tokens
_LOGIT_ROWS = 64


def attention_weights(queries: Tensor, keys: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Return the weights of an attention, as transformers' eager attention computes them.

    Parameters
    ----------
    queries : Tensor (B, H, T, d)
        Rotated.
    keys : Tensor (B, G, L, d)
        Rotated; H / G heads share each.
    mask : bool Tensor (B, 1, T, L) or None
        None is no mask.
    scaling : float
        Factor of the products.

    Returns
    -------
    float32 Tensor (B, H, T, L)
    """
    n_rows, n_heads, n_queries, head_dim = queries.shape
    groups = queries.reshape(n_rows, keys.shape[1], -1, head_dim)  # (B, G, H/G · T, d)
    scores = (groups @ keys.transpose(-1, -2)).view(n_rows, n_heads, n_queries, -1).float() * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1)


class AttentionRecorder:
    """Keep the mean attention of some heads to visual tokens, layer by layer.

    Parameters
    ----------
    visual : int64 Tensor (n_visual,)
        Places of the visual tokens.
    layers : sequence of int
        Layers to keep.
    heads : sequence of int or None
        Heads to keep; None is all.

    Attributes
    ----------
    weights : dict of int to Tensor (T, n_visual)
        Of each layer, float32.
    """

    def __init__(self, visual: Tensor, layers: Seq[int], heads: Seq[int] | None) -> None:
        self._visual, self._layers, self._heads = visual, frozenset(layers), heads
        self.weights: dict[int, Tensor] = {}

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, mask: Tensor | None, scaling: float) -> None:
        """Record a layer's attention of one row."""
        if layer not in self._layers:
            return
        visual, n_queries = self._visual.to(keys.device), queries.shape[2]
        blocks = []
        for start in range(0, n_queries, _QUERIES):
            some = slice(start, start + _QUERIES)
            weights = attention_weights(queries[:, :, some], keys, None if mask is None else mask[:, :, some], scaling)
            kept = weights[0] if self._heads is None else weights[0, list(self._heads)]  # (H, t, L)
            blocks.append(kept.mean(dim=0)[:, visual])
        self.weights[layer] = torch.cat(blocks)


class Replay:
    """A finished sequence, whose prompt is in a slot of a model runner.

    Parameters
    ----------
    model_runner : TorchModelRunner
        Its cache holds the prompt.
    sequence : Sequence
        Prompt and answer.
    slot : int
        The slot.
    """

    def __init__(self, model_runner: TorchModelRunner, sequence: Sequence, slot: int) -> None:
        self._runner, self._slot = model_runner, slot
        device = model_runner.device
        self._n_prompt, self._n_answer = len(sequence.prompt_ids), len(sequence.output_ids)
        self._ids, self._positions = sequence.ids.to(device), sequence.positions().to(device)
        self.visual = torch.tensor(sequence.visual_indices, device=device)

    @torch.inference_mode()
    def watched(self, recorder: AttentionRecorder) -> Tensor:
        """Record the attention of the tokens that predict the answer; return its log-probabilities (T,)."""
        start, n_tokens = self._n_prompt - 1, self._n_answer
        at = torch.arange(start + n_tokens, device=self._runner.device)
        mask = at <= at[start:, None]  # (T, L)
        embedded = self._runner.embed_tokens(self._ids[start:-1])[None]
        states = self._runner.branch(
            self._slot, start, embedded, self._positions[:, None, start:-1], mask[None, None], at, recorder
        )
        return self._logprobs(states)[0]

    @torch.inference_mode()
    def without(self, hidden: Tensor, features: Tensor) -> Tensor:
        """Return the log-probabilities of the answer's tokens while no later token attends to some visual tokens.

        All tokens from the first visual one on are read again: what they know of hidden ones would else remain. Their
        positions stay.

        Parameters
        ----------
        hidden : bool Tensor (N, n_visual)
            The hidden ones of each reading.
        features : Tensor (n_visual, D)
            The visual tokens.

        Returns
        -------
        float32 Tensor (N, T)
        """
        start = int(self.visual[0])
        at = torch.arange(len(self._ids) - 1, device=self._runner.device)  # (L,)
        causal, itself = at <= at[start:, None], at == at[start:, None]  # (T, L)
        embedded = self._runner.embed_tokens(self._ids[start:-1])
        embedded[self.visual - start] = features.to(embedded)
        positions = self._positions[:, None, start:-1]
        found = []
        for some in torch.split(hidden, max(1, max_prefill_tokens(self._runner.device) // len(embedded))):
            seen = torch.ones(len(some), len(at), dtype=torch.bool, device=at.device)
            seen[:, self.visual] = ~some.to(at.device)
            mask = (causal & seen[:, None]) | itself  # (B, T, L)
            rows, places = embedded.expand(len(some), -1, -1), positions.expand(-1, len(some), -1)
            found.append(self._logprobs(self._runner.branch(self._slot, start, rows, places, mask[:, None], at)))
        return torch.cat(found)

    def gradients(self, groups: Seq[Seq[int]], features: Tensor) -> tuple[Tensor, Tensor]:
        """Return input times gradient of visual tokens, and log-probabilities of the answer's tokens.

        Parameters
        ----------
        groups : sequence of sequence of int
            Tokens of the answer, whose log-probabilities are summed.
        features : Tensor (n_visual, D)
            The visual tokens.

        Returns
        -------
        Tensor (n_groups, n_visual), Tensor (T,)
            float32.
        """
        with torch.inference_mode(mode=False), torch.enable_grad():
            visual = features.clone().requires_grad_()
            embedded = self._runner.embed_tokens(self._ids[:-1]).detach()
            embedded = embedded.index_put((self.visual,), visual.to(embedded))
            states = self._runner.differentiable_states(embedded[None], self._positions[:, None, :-1])
            logprobs = self._logprobs(states)[0]
            sums = [logprobs[list(tokens)].sum() for tokens in groups]
            found = [torch.autograd.grad(one, visual, retain_graph=True)[0] for one in sums]
            weights = torch.stack([(one * visual).sum(dim=1) for one in found])
        return weights.detach().float(), logprobs.detach()

    def _logprobs(self, states: Tensor) -> Tensor:
        """Return log-probabilities (B, T) of the answer, given states (B, …, D) whose last T predict it."""
        answer = self._ids[self._n_prompt :]
        last = states[:, -self._n_answer :].flatten(0, 1)  # (B · T, D)
        targets = answer.repeat(len(states))
        found = [
            self._runner.logits(rows).log_softmax(dim=1).gather(1, picked[:, None])[:, 0]
            for rows, picked in zip(torch.split(last, _LOGIT_ROWS), torch.split(targets, _LOGIT_ROWS), strict=True)
        ]
        return torch.cat(found).view(len(states), -1)
