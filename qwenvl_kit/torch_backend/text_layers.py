"""Layers of the language model, as the model runner calls them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.torch_backend.kv_cache import SlottedKVCache


class Layers(Protocol):
    """The layers of the language model."""

    def __call__(
        self,
        embedded: Tensor,
        positions: Tensor,
        masks: Mapping[str, Tensor | None],
        cache: SlottedKVCache,
        last: Tensor | None,
    ) -> Tensor:
        """Return hidden states (B, D) of token `last` (B,) of each row, or of its only one."""
        ...

    def all_states(
        self, embedded: Tensor, positions: Tensor, masks: Mapping[str, Tensor | None], cache: SlottedKVCache
    ) -> Tensor:
        """Return hidden states (B, T, D) of all tokens."""
        ...


class PlainText:
    """Run transformers' own forward, whose hooks accelerate relies on.

    Parameters
    ----------
    text : transformers.Qwen2_5_VLTextModel
    """

    def __init__(self, text: Any) -> None:
        self._text = text
        # transformers 5.24 renamed the argument
        self._cache_argument = "cache" if "cache" in inspect.signature(text.forward).parameters else "past_key_values"

    def __call__(
        self,
        embedded: Tensor,
        positions: Tensor,
        masks: Mapping[str, Tensor | None],
        cache: SlottedKVCache,
        last: Tensor | None,
    ) -> Tensor:
        """Return hidden states (B, D) of token `last` (B,) of each row, or of its only one."""
        states = self.all_states(embedded, positions, masks, cache)
        if last is None:
            return states[:, 0]
        last = last.to(states.device)
        return states[torch.arange(len(last), device=last.device), last]

    def all_states(
        self, embedded: Tensor, positions: Tensor, masks: Mapping[str, Tensor | None], cache: SlottedKVCache
    ) -> Tensor:
        """Return hidden states (B, T, D) of all tokens."""
        states: Tensor = self._text(
            inputs_embeds=embedded,
            position_ids=positions,
            attention_mask=masks,
            use_cache=True,
            **{self._cache_argument: cache},
        ).last_hidden_state
        return states
