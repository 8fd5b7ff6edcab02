"""Layers of the language model, as the model runner calls them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from qwenvl_kit.torch_backend.attention import masked_attention, watched_attention

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.inference.model_runner import PrefillChunk
    from qwenvl_kit.torch_backend.attention import Watch
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
        self,
        embedded: Tensor,
        positions: Tensor,
        masks: Mapping[str, Tensor | None],
        cache: SlottedKVCache,
        watch: Watch | None = None,
    ) -> Tensor:
        """Return hidden states (B, T, D) of all tokens, under masks of any form.

        `watch` is called with each layer's queries and keys.
        """
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
        states = self._all_states(embedded, positions, masks, cache)
        if last is None:
            return states[:, 0]
        last = last.to(states.device)
        return states[torch.arange(len(last), device=last.device), last]

    def all_states(
        self,
        embedded: Tensor,
        positions: Tensor,
        masks: Mapping[str, Tensor | None],
        cache: SlottedKVCache,
        watch: Watch | None = None,
    ) -> Tensor:
        """Return hidden states (B, T, D) of all tokens, under masks of any form."""
        with masked_attention(self._text) if watch is None else watched_attention(self._text, watch):
            return self._all_states(embedded, positions, masks, cache)

    def _all_states(
        self, embedded: Tensor, positions: Tensor, masks: Mapping[str, Tensor | None], cache: SlottedKVCache
    ) -> Tensor:
        states: Tensor = self._text(
            inputs_embeds=embedded,
            position_ids=positions,
            attention_mask=masks,
            use_cache=True,
            **{self._cache_argument: cache},
        ).last_hidden_state
        return states


def embed_chunks(
    text: Any, chunks: Sequence[PrefillChunk], image_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return embedded tokens (B, T, D), visual ones in their places, and positions (3, B, T), padded behind."""
    longest = max(len(chunk.ids) for chunk in chunks)
    ids = torch.zeros(len(chunks), longest, dtype=torch.long, device=device)  # (B, T)
    positions = torch.zeros(3, len(chunks), longest, dtype=torch.long, device=device)
    is_visual = torch.zeros(ids.shape, dtype=torch.bool, device=device)
    for row, chunk in enumerate(chunks):
        ids[row, : len(chunk.ids)] = chunk.ids
        positions[:, row, : len(chunk.ids)] = chunk.positions
        n_visual = 0 if chunk.image_features is None else len(chunk.image_features)
        is_visual[row, (chunk.ids == image_id).nonzero()[:n_visual, 0]] = True
    embedded: Tensor = text.embed_tokens(ids)
    visual = [chunk.image_features for chunk in chunks if chunk.image_features is not None]
    if visual:
        embedded[is_visual.to(embedded.device)] = torch.cat(visual).to(embedded)
    return embedded, positions


def device_of(layer: Any) -> torch.device | None:
    """Return where a layer computes; None where it holds no parameters in memory."""
    hooks = [module._hf_hook for module in layer.modules() if hasattr(module, "_hf_hook")]
    places = [place for hook in hooks if (place := getattr(hook, "execution_device", None)) is not None]
    if places:
        return torch.device("cuda", places[0]) if isinstance(places[0], int) else torch.device(places[0])
    return next((one.device for one in layer.parameters() if one.device.type != "meta"), None)
