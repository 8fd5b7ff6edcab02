"""A `ModelRunner` over transformers' Qwen2.5-VL: pictures, prompts and steps through the model's own layers.

So accelerate's hooks (device maps, offloading) and every attention that transformers knows keep working. Only where
keys and values are kept is ours. Requests, sampling and answers are unknown here.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from qwenvl_kit.inference.model_runner import PrefillChunk
from qwenvl_kit.inference.packing import max_image_patches, max_prefill_tokens, pack, pack_sizes
from qwenvl_kit.torch_backend.compiled_decode import CompiledSteps, attend_packed
from qwenvl_kit.torch_backend.kv_cache import DecodeWrite, ExtendWrite, KVWrite, PrefillWrite, SlottedKVCache
from qwenvl_kit.torch_backend.onednn.text import OneDNNLayer, OneDNNText

if TYPE_CHECKING:
    from torch import Tensor

_MIN_FILL = 0.75  # a prompt shorter than this part of the longest has a pass of its own


class TorchModelRunner:
    """Steps of a loaded model.

    Parameters
    ----------
    model : transformers.Qwen2_5_VLForConditionalGeneration
        In evaluation mode, with ``sdpa`` or ``flash_attention_2``.
    compiles : bool
        Compile decode steps; the attention must be ``sdpa``, and the layers transformers' own.

    Attributes
    ----------
    max_prefill_tokens, max_image_patches : int
        Most tokens (padding included) and patches of one pass.
    """

    def __init__(self, model: Any, *, compiles: bool = False) -> None:
        self._model = model
        self._text = model.model.language_model
        self._cache = SlottedKVCache()
        self.max_prefill_tokens, self.max_image_patches = (
            max_prefill_tokens(self.device),
            max_image_patches(self.device),
        )
        self._image_id = int(model.config.image_token_id)
        self._is_flash = self._text.config._attn_implementation.startswith("flash")
        is_packed = isinstance(self._text.layers[0], OneDNNLayer)
        self._run: _Run = OneDNNText(self._text) if is_packed else _PlainText(self._text)
        window = self._text.config.sliding_window if self._text.has_sliding_layers else None
        self._window: int | None = window
        self._compiled: CompiledSteps | None = None
        if compiles:
            attend_packed(self._text)
            self._compiled = CompiledSteps(self._advance)

    @property
    def warm_up_s(self) -> float:
        """Seconds spent on compiling and recording steps so far."""
        return self._compiled.warm_up_s if self._compiled else 0.0

    @property
    def device(self) -> torch.device:
        """The device of the first weights that are in memory; offloaded ones are on "meta"."""
        for parameter in self._model.parameters():  # a loop, which torch.compile follows in every release
            device: torch.device = parameter.device
            if device.type != "meta":
                return device
        return torch.device("cpu")

    @torch.inference_mode()
    def encode_images(self, pixel_values: Tensor, grid: Tensor) -> list[Tensor]:
        """Visual tokens (n_visual, hidden) of each picture."""
        device = self.device
        sizes: list[int] = grid.prod(dim=1).tolist()
        starts = [0, *itertools.accumulate(sizes)]
        encoded: list[Tensor] = []
        for batch in pack_sizes(sizes, self.max_image_patches):
            first, end = batch[0], batch[-1] + 1
            patches = _upload(pixel_values[starts[first] : starts[end]], device)
            features = self._model.model.get_image_features(patches, grid[first:end].to(device), return_dict=True)
            encoded += features.pooler_output
        return encoded

    def resize_cache(self, n_slots: int, capacity: int) -> None:
        """Change the size of the cache."""
        if self._compiled:
            n_slots = self._compiled.resize_cache(n_slots, capacity)
        with torch.inference_mode():
            self._cache.resize_cache(n_slots, capacity)

    @torch.inference_mode()
    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of a slot to another."""
        self._cache.copy_slot(source, target, length)

    @torch.inference_mode()
    def zero_slot(self, slot: int) -> None:
        """Forget what a slot holds: a masked token still takes part in sums, where NaN times nothing is NaN."""
        self._cache.zero_slot(slot)

    @torch.inference_mode()
    def prefill(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        """Logits (n_chunks, V) of each chunk's last token, read in passes of like length."""
        logits: list[Tensor] = [torch.empty(0)] * len(chunks)
        for batch in _pack_chunks(chunks, self.max_prefill_tokens, one_by_one=self._is_flash):
            for at, row in zip(batch, self._prefill_batch([chunks[at] for at in batch]), strict=True):
                logits[at] = row
        return torch.stack(logits)

    @torch.inference_mode()
    def decode(self, ids: Tensor, positions: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, V) after one more token in each of the first slots."""
        if self._compiled:
            return self._compiled(ids, positions, lengths)
        return self._advance(ids, positions, lengths, int(lengths.max()) + 1)

    def close(self) -> None:
        """Free the model and the cache."""
        self._cache.resize_cache(0, 0)
        del self._model, self._text, self._run, self._compiled

    def _advance(self, ids: Tensor, positions: Tensor, lengths: Tensor, n_most: int) -> Tensor:
        """A step whose rows attend to `n_most` places of their slots at most; logits (B, V)."""
        columns = torch.arange(n_most, device=lengths.device)
        mask = (columns <= lengths[:, None])[:, None, None]  # (B, 1, 1, L)
        hidden = self._forward(
            self._text.embed_tokens(ids[:, None]),  # (B, 1, D)
            positions[None, :, None].expand(3, -1, -1),  # (3, B, 1)
            DecodeWrite(lengths, n_most),
            mask,
            lengths[:, None],
        )
        return self._logits(hidden)

    def _prefill_batch(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        lengths = [len(chunk.ids) for chunk in chunks]
        longest, device = max(lengths), self.device
        ids = torch.zeros(len(chunks), longest, dtype=torch.long, device=device)  # (B, T), padded behind
        positions = torch.zeros(3, len(chunks), longest, dtype=torch.long, device=device)
        is_visual = torch.zeros(ids.shape, dtype=torch.bool, device=device)
        for row, chunk in enumerate(chunks):
            ids[row, : lengths[row]] = chunk.ids
            positions[:, row, : lengths[row]] = chunk.positions
            n_visual = 0 if chunk.image_features is None else len(chunk.image_features)
            is_visual[row, (chunk.ids == self._image_id).nonzero()[:n_visual, 0]] = True
        embedded = self._text.embed_tokens(ids)  # (B, T, D)
        visual = [chunk.image_features for chunk in chunks if chunk.image_features is not None]
        if visual:
            embedded[is_visual.to(embedded.device)] = torch.cat(visual).to(embedded)
        last = torch.tensor(lengths, device=device) - 1
        slots, pasts = [chunk.slot for chunk in chunks], [chunk.cached_len for chunk in chunks]
        if any(pasts):
            rest = ExtendWrite(slots, pasts, lengths)
            at = torch.tensor(pasts, device=device)[:, None] + torch.arange(longest, device=device)  # (B, T)
            columns = torch.arange(max(p + n for p, n in zip(pasts, lengths, strict=True)), device=device)
            hidden = self._forward(embedded, positions, rest, (columns <= at[:, :, None])[:, None], at, last)
        else:
            at = torch.arange(longest, device=device).expand(len(chunks), -1)
            hidden = self._forward(embedded, positions, PrefillWrite(slots, lengths), None, at, last)
        return self._logits(hidden)

    def _forward(
        self,
        embedded: Tensor,
        positions: Tensor,
        write: KVWrite,
        mask: Tensor | None,
        at: Tensor,
        last: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, D) of each row's token `last`, or of its only one.

        A mask of None is causal; `at` (B, T) are the tokens' places in their slots.
        """
        self._cache.write = write
        masks = {"full_attention": self._fit(mask), "sliding_attention": self._fit(self._near(mask, at))}
        return self._run(embedded, positions, masks, self._cache, last)

    def _fit(self, mask: Tensor | None) -> Tensor | None:
        """Flash attention takes masks of keys, (B, L), and is causal by itself."""
        return mask[:, 0, -1] if mask is not None and self._is_flash else mask

    def _near(self, mask: Tensor | None, at: Tensor) -> Tensor | None:
        """The mask of layers that see a window of tokens only; flash attention is told of it by the layer."""
        if self._window is None or self._is_flash:
            return mask
        columns = torch.arange(at.shape[1] if mask is None else mask.shape[-1], device=at.device)
        near = (columns <= at[:, None, :, None]) & (columns > at[:, None, :, None] - self._window)  # (B, 1, T, L)
        return near if mask is None else near & mask

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._model.lm_head(hidden)
        return logits.to(self.device, torch.float32)


_Run = Callable[["Tensor", "Tensor", Mapping[str, "Tensor | None"], SlottedKVCache, "Tensor | None"], "Tensor"]


class _PlainText:
    """From embedded tokens to hidden states by transformers' own forward, whose hooks accelerate relies on."""

    def __init__(self, text: Any) -> None:
        self._text = text
        # transformers 5.24 renamed the argument
        self._named = "cache" if "cache" in inspect.signature(text.forward).parameters else "past_key_values"

    def __call__(
        self,
        embedded: Tensor,
        positions: Tensor,
        masks: Mapping[str, Tensor | None],
        cache: SlottedKVCache,
        last: Tensor | None,
    ) -> Tensor:
        """Hidden states (B, D) of token `last` (B,) of each row, or of its only one."""
        states: Tensor = self._text(
            inputs_embeds=embedded,
            position_ids=positions,
            attention_mask=masks,
            use_cache=True,
            **{self._named: cache},
        ).last_hidden_state
        if last is None:
            return states[:, 0]
        last = last.to(states.device)
        return states[torch.arange(len(last), device=last.device), last]


def _upload(patches: Tensor, device: torch.device) -> Tensor:
    """To a GPU from pinned memory, so that the CPU goes on while they travel."""
    return patches.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else patches.to(device)


def _pack_chunks(chunks: Sequence[PrefillChunk], n_tokens: int, *, one_by_one: bool) -> list[list[int]]:
    """Split the indices of chunks into passes of up to `n_tokens` with little padding.

    Flash attention expects padding before tokens that follow cached ones. With it (`one_by_one`) such a chunk has a
    pass of its own.
    """

    def fits(batch: list[int]) -> bool:
        longest, shortest = chunks[batch[0]], chunks[batch[-1]]
        return (
            (longest.cached_len > 0) == (shortest.cached_len > 0)
            and not (one_by_one and shortest.cached_len)
            and len(shortest.ids) >= _MIN_FILL * len(longest.ids)
            and len(batch) * len(longest.ids) <= n_tokens
        )

    return pack(sorted(range(len(chunks)), key=lambda at: (chunks[at].cached_len > 0, -len(chunks[at].ids))), fits)
