"""Run transformers' Qwen2.5-VL as a `ModelRunner`, through the model's own layers.

So accelerate's hooks (device maps, offloading) and transformers' attentions keep working; only the KV cache is ours.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from qwenvl_kit.inference.cancellation import points_before, stage
from qwenvl_kit.inference.model_runner import PrefillChunk, in_pieces, pack_chunks
from qwenvl_kit.inference.packing import max_image_patches, max_prefill_tokens, pack_sizes
from qwenvl_kit.inference.patches import upload
from qwenvl_kit.inference.token_trie import TokenTrie
from qwenvl_kit.torch_backend.attention import AttentionMasks, Watch, step_attention
from qwenvl_kit.torch_backend.compiled_decode import CompiledSteps
from qwenvl_kit.torch_backend.cuda_graphs import RecordedSteps
from qwenvl_kit.torch_backend.kv_cache import (
    BranchWrite,
    DecodeWrite,
    ExtendWrite,
    KVWrite,
    NoWrite,
    PrefillWrite,
    SlottedKVCache,
)
from qwenvl_kit.torch_backend.onednn.text import OneDNNLayer, OneDNNText
from qwenvl_kit.torch_backend.slot_attention import kernel_fault
from qwenvl_kit.torch_backend.text_layers import Layers, PlainText, device_of, embed_chunks

if TYPE_CHECKING:
    from torch import Tensor

_LOGIT_ROWS = 64  # whose logits are in memory at a time: 39 MB over a vocabulary of 152,000


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
    def n_layers(self) -> int:
        """Layers of the language model."""
        return len(self._text.layers)

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
        return Counter(device_of(layer) or self.device for layer in self._text.layers)

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
            for batch in pack_chunks([piece for _, piece in turn], limit, one_by_one=self._masks.is_flash)
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
        embedded = self._text.embed_tokens(trie.tokens[None].to(device))
        positions = (position + depths).expand(3, 1, -1)
        states = self.branch(slot, cached_len, embedded, positions, mask[None, None], at)[0]  # (N, D)
        return trie.split(self._token_logprobs(states, trie))

    @torch.inference_mode()
    def branch(
        self,
        slot: int,
        cached_len: int,
        embedded: Tensor,
        positions: Tensor,
        mask: Tensor,
        at: Tensor,
        watch: Watch | None = None,
    ) -> Tensor:
        """Return hidden states (B, T, D) of tokens that follow those of a slot, which is left as it is.

        Parameters
        ----------
        slot, cached_len : int
            The slot, and its number of tokens to attend to.
        embedded : Tensor (B, T, D)
            The tokens; each row follows the slot by itself.
        positions : int64 Tensor (3, B, T)
            Their M-RoPE positions.
        mask : bool Tensor (B, 1, T, cached_len + T)
            Which tokens each attends to.
        at : int64 Tensor (cached_len + T,)
            Places of all tokens of a row.
        watch : callable, optional
            Called with the queries and keys of each layer.
        """
        self.cache.write = BranchWrite(slot, cached_len)
        masks = self._masks.of_branches(mask, at)
        with stage("prefill", len(self._text.layers)), points_before(self._text.layers):
            return self._layers.all_states(embedded, positions, masks, self.cache, watch)

    def differentiable_states(self, embedded: Tensor, positions: Tensor) -> Tensor:
        """Return hidden states (1, T, D) of a whole row (1, T, D), without the cache; gradients flow through."""
        masks = self._masks.of(None, torch.arange(embedded.shape[1], device=self.device)[None])
        with self.other_cache(SlottedKVCache()):
            self.cache.write = NoWrite()
            return self._layers.all_states(embedded, positions, masks, self.cache)

    @contextlib.contextmanager
    def other_cache(self, cache: SlottedKVCache) -> Iterator[None]:
        """Use another cache than the sequences' within the context."""
        own, self.cache = self.cache, cache
        try:
            yield
        finally:
            self.cache = own

    def _token_logprobs(self, states: Tensor, trie: TokenTrie) -> Tensor:
        """Return the log-probabilities (K,) of a tree's predictions, from logits of some nodes at a time."""
        found = torch.empty(len(trie.nodes), device=self.device)
        for start in range(0, len(states), _LOGIT_ROWS):
            logits = self.logits(states[start : start + _LOGIT_ROWS])
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
        return self.logits(hidden)

    def _prefill_batch(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        device, lengths = self.device, [len(chunk.ids) for chunk in chunks]
        embedded, positions = embed_chunks(self._text, chunks, self._image_id, device)
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
        return self.logits(self._forward(embedded, positions, write, self._masks.of(mask, at), last))

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Return embedded tokens (…, D) of ids, visual ones as any other."""
        embedded: Tensor = self._text.embed_tokens(ids)
        return embedded

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

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits (…, V) of hidden states (…, D)."""
        logits: Tensor = self._model.lm_head(hidden)
        return logits.to(self.device, torch.float32)
