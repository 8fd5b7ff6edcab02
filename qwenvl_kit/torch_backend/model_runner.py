"""Run transformers' Qwen2.5-VL as a `ModelRunner`, through the model's own layers.

So accelerate's hooks (device maps, offloading) and transformers' attentions keep working; only the KV cache is ours.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from qwenvl_kit.inference.cancellation import points_before, stage
from qwenvl_kit.inference.model_runner import PrefillChunk, in_pieces
from qwenvl_kit.inference.packing import max_image_patches, max_prefill_tokens, pack, pack_sizes
from qwenvl_kit.inference.patches import upload
from qwenvl_kit.inference.token_trie import TokenTrie
from qwenvl_kit.torch_backend.attention import AttentionMasks, masked_attention, step_attention
from qwenvl_kit.torch_backend.compiled_decode import CompiledSteps
from qwenvl_kit.torch_backend.cuda_graphs import RecordedSteps
from qwenvl_kit.torch_backend.kv_cache import (
    BranchWrite,
    DecodeWrite,
    ExtendWrite,
    KVWrite,
    PrefillWrite,
    SlottedKVCache,
)
from qwenvl_kit.torch_backend.onednn.text import OneDNNLayer, OneDNNText
from qwenvl_kit.torch_backend.slot_attention import kernel_fault
from qwenvl_kit.torch_backend.text_layers import Layers, PlainText

if TYPE_CHECKING:
    from torch import Tensor

_LOGIT_ROWS = 64  # whose logits are in memory at a time: 39 MB over a vocabulary of 152,000
_MIN_FILL = 0.75  # a prompt shorter than this part of the longest has a pass of its own


class TorchModelRunner:
    """Encode, prefill and decode with a loaded model.

    Parameters
    ----------
    model : transformers.Qwen2_5_VLForConditionalGeneration
        In evaluation mode, with ``sdpa`` or ``flash_attention_2``.
    compiles : bool
        Compile decode steps; the attention must be ``sdpa``, and the layers transformers' own.

    Attributes
    ----------
    cache : SlottedKVCache
        Keys and values of all slots.
    step_kernel_fault : str or None
        Why decode steps run on SDPA; None where they run on torch's flash kernel.
    """

    def __init__(self, model: Any, *, compiles: bool = False) -> None:
        self._model = model
        self._text = model.model.language_model
        self._image_id = int(model.config.image_token_id)
        is_prepacked = isinstance(self._text.layers[0], OneDNNLayer)
        self._layers: Layers = OneDNNText(self._text) if is_prepacked else PlainText(self._text)
        self.step_kernel_fault = "steps are compiled" if compiles else kernel_fault(self._text)
        uses_kernel = self.step_kernel_fault is None
        self.cache = SlottedKVCache(is_token_major=uses_kernel)
        self._masks = AttentionMasks(self._text, in_slots=uses_kernel)
        self._steps = self._make_steps(compiles=compiles)

    @property
    def device(self) -> torch.device:
        """Device of the first weights that are in memory; offloaded ones are on "meta"."""
        for parameter in self._model.parameters():  # a loop, which torch.compile follows in every release
            device: torch.device = parameter.device
            if device.type != "meta":
                return device
        return torch.device("cpu")

    def cache_devices(self) -> Counter[torch.device]:
        """Return how many layers have their keys and values on each device: accelerate's, where its hooks run one."""
        return Counter(_device_of(layer) or self.device for layer in self._text.layers)

    @torch.inference_mode()
    def encode_images(self, pixel_values: Tensor, grid: Tensor) -> list[Tensor]:
        """Return the visual tokens (n_visual, hidden) of each image."""
        device = self.device
        sizes: list[int] = grid.prod(dim=1).tolist()
        starts = [0, *itertools.accumulate(sizes)]
        encoded: list[Tensor] = []
        blocks = self._model.model.visual.blocks
        for batch in pack_sizes(sizes, max_image_patches(device)):
            first, end = batch[0], batch[-1] + 1
            patches = upload(pixel_values[starts[first] : starts[end]], device)
            with stage("encode", len(blocks)), points_before(blocks):
                features = self._model.model.get_image_features(patches, grid[first:end].to(device), return_dict=True)
            encoded += features.pooler_output
        return encoded

    def take_notes(self) -> list[str]:
        """Return what is to be on record of the decode steps since the last call."""
        return self._steps.take_notes() if self._steps else []

    def resize_cache(self, n_slots: int, capacity: int) -> None:
        """Resize the cache; compiled steps need a slot more than a single one."""
        if self._steps:
            n_slots = self._steps.resize_cache(n_slots, capacity)
        with torch.inference_mode():
            self.cache.resize_cache(n_slots, capacity)

    @torch.inference_mode()
    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of a slot to another."""
        self.cache.copy_slot(source, target, length)

    @torch.inference_mode()
    def zero_slot(self, slot: int) -> None:
        """Zero a slot: masked tokens still take part in sums, where 0 · NaN is NaN."""
        self.cache.zero_slot(slot)

    @torch.inference_mode()
    def prefill(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        """Return logits (n_chunks, V) of each chunk's last token, from passes over chunks of like length.

        A chunk that is too long for a pass is prefilled in pieces, which bounds the memory of activations.
        """
        limit = max_prefill_tokens(self.device)
        logits: list[Tensor] = [torch.empty(0)] * len(chunks)
        passes = [
            [turn[at] for at in batch]
            for turn in in_pieces(chunks, limit, image_id=self._image_id)
            for batch in _pack_chunks([piece for _, piece in turn], limit, one_by_one=self._masks.is_flash)
        ]
        layers = self._text.layers  # of a 3B with 640 tokens: 0.1 TFLOP, most of it in the gated network
        points = points_before(layers, [layer.mlp for layer in layers])
        with stage("prefill", len(passes) * len(layers)), points:
            for batch in passes:
                for (at, _), row in zip(batch, self._prefill_batch([piece for _, piece in batch]), strict=True):
                    logits[at] = row
        return torch.stack(logits)

    @torch.inference_mode()
    def decode(self, ids: Tensor, positions: Tensor, lengths: Tensor, max_len: int) -> Tensor:
        """Append a token to each of the first slots and return logits (B, V); see `ModelRunner.decode`."""
        if not isinstance(self._steps, CompiledSteps):
            return (self._steps or self._eager_step)(ids, positions, lengths, max_len)
        with step_attention(self._text):  # outside of what is compiled
            return self._steps(ids, positions, lengths, max_len)

    @torch.inference_mode()
    def score(self, slot: int, cached_len: int, position: int, continuations: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return how likely tokens are to follow those of a slot, from one pass over their tree."""
        trie, device = TokenTrie(continuations), self.device
        depths = trie.depths.to(device)
        at = torch.cat([torch.arange(cached_len, device=device), cached_len + depths])  # (L,)
        mask = torch.cat([trie.sees.new_ones(len(depths), cached_len), trie.sees], dim=1).to(device)  # (N, L)
        self.cache.write = BranchWrite(slot, cached_len)
        with stage("prefill", len(self._text.layers)), points_before(self._text.layers), masked_attention(self._text):
            states = self._layers.all_states(
                self._text.embed_tokens(trie.tokens[None].to(device)),
                (position + depths).expand(3, 1, -1),
                self._masks.of_branches(mask[None, None], at),
                self.cache,
            )[0]  # (N, D)
        return trie.split(self._token_logprobs(states, trie))

    def _token_logprobs(self, states: Tensor, trie: TokenTrie) -> Tensor:
        """Return the log-probabilities (K,) of a tree's predictions, from logits of some nodes at a time."""
        found = torch.empty(len(trie.nodes), device=self.device)
        for start in range(0, len(states), _LOGIT_ROWS):
            logits = self._logits(states[start : start + _LOGIT_ROWS])
            picked = (trie.nodes >= start) & (trie.nodes < start + _LOGIT_ROWS)
            logprobs = logits.log_softmax(dim=1)
            found[picked] = logprobs[trie.nodes[picked] - start, trie.targets[picked]]
        return found

    def close(self) -> None:
        """Free the model and the cache."""
        self.cache.resize_cache(0, 0)
        del self._model, self._text, self._layers, self._steps

    def _make_steps(self, *, compiles: bool) -> CompiledSteps | RecordedSteps | None:
        """Return what runs decode steps, if not `_step` by itself: graphs cannot hold accelerate's hooks."""
        device = self.device
        if compiles:
            return CompiledSteps(self._step, uses_graphs=device.type == "cuda")
        is_hooked = any(hasattr(module, "_hf_hook") for module in self._model.modules())
        if device.type != "cuda" or is_hooked or any(one.device != device for one in self._model.parameters()):
            return None
        return RecordedSteps(self._eager_step, reads_whole_slots=self.step_kernel_fault is None)

    def _eager_step(self, ids: Tensor, positions: Tensor, lengths: Tensor, max_len: int) -> Tensor:
        """Run `_step` with the attention of steps, which takes 65 µs to set; prepacked layers have their own."""
        with step_attention(self._text) if isinstance(self._layers, PlainText) else contextlib.nullcontext():
            return self._step(ids, positions, lengths, max_len)

    def _step(self, ids: Tensor, positions: Tensor, lengths: Tensor, max_len: int) -> Tensor:
        """Decode a step whose rows attend to the first `max_len` tokens of their slots; logits (B, V)."""
        hidden = self._forward(
            self._text.embed_tokens(ids[:, None]),  # (B, 1, D)
            positions[None, :, None].expand(3, -1, -1),  # (3, B, 1)
            DecodeWrite(lengths, max_len if self.step_kernel_fault else None),
            self._masks.of_step(lengths, max_len, self.cache.capacity),
        )
        return self._logits(hidden)

    def _prefill_batch(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        device, lengths = self.device, [len(chunk.ids) for chunk in chunks]
        embedded, positions = self._embed(chunks, max(lengths))
        last = torch.tensor(lengths, device=device) - 1
        slots, cached = [chunk.slot for chunk in chunks], [chunk.cached_len for chunk in chunks]
        if any(cached):
            at = torch.tensor(cached, device=device)[:, None] + torch.arange(max(lengths), device=device)  # (B, T)
            columns = torch.arange(max(p + n for p, n in zip(cached, lengths, strict=True)), device=device)
            mask = (columns <= at[:, :, None])[:, None]  # (B, 1, T, L)
            write: KVWrite = ExtendWrite(slots, cached, lengths)
        else:
            at, mask = torch.arange(max(lengths), device=device).expand(len(chunks), -1), None
            write = PrefillWrite(slots, lengths)
        return self._logits(self._forward(embedded, positions, write, self._masks.of(mask, at), last))

    def _embed(self, chunks: Sequence[PrefillChunk], longest: int) -> tuple[Tensor, Tensor]:
        """Return embedded tokens (B, T, D), visual ones in their places, and positions (3, B, T), padded behind."""
        ids = torch.zeros(len(chunks), longest, dtype=torch.long, device=self.device)  # (B, T)
        positions = torch.zeros(3, len(chunks), longest, dtype=torch.long, device=self.device)
        is_visual = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
        for row, chunk in enumerate(chunks):
            ids[row, : len(chunk.ids)] = chunk.ids
            positions[:, row, : len(chunk.ids)] = chunk.positions
            n_visual = 0 if chunk.image_features is None else len(chunk.image_features)
            is_visual[row, (chunk.ids == self._image_id).nonzero()[:n_visual, 0]] = True
        embedded = self._text.embed_tokens(ids)
        visual = [chunk.image_features for chunk in chunks if chunk.image_features is not None]
        if visual:
            embedded[is_visual.to(embedded.device)] = torch.cat(visual).to(embedded)
        return embedded, positions

    def _forward(
        self,
        embedded: Tensor,
        positions: Tensor,
        write: KVWrite,
        masks: Mapping[str, Tensor | None],
        last: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states (B, D) of each row's token `last`, or of its only one."""
        self.cache.write = write
        return self._layers(embedded, positions, masks, self.cache, last)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._model.lm_head(hidden)
        return logits.to(self.device, torch.float32)


def _device_of(layer: Any) -> torch.device | None:
    """Return where a layer computes; None where it holds no parameters in memory."""
    hooks = [module._hf_hook for module in layer.modules() if hasattr(module, "_hf_hook")]
    places = [place for hook in hooks if (place := getattr(hook, "execution_device", None)) is not None]
    if places:
        return torch.device("cuda", places[0]) if isinstance(places[0], int) else torch.device(places[0])
    return next((one.device for one in layer.parameters() if one.device.type != "meta"), None)


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
