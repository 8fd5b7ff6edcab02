"""Run the two graphs of an export on ONNX Runtime, as a `ModelRunner`.

The KV cache is torch tensors that the runtime reads and extends in place, without a copy between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from qwenvl_kit.checkpoints.checkpoint import read
from qwenvl_kit.checkpoints.loading import load_config
from qwenvl_kit.inference.cancellation import advance, stage
from qwenvl_kit.inference.packing import max_prefill_tokens, pack
from qwenvl_kit.onnx_backend.session import Graph
from qwenvl_kit.onnx_backend.vision_encoder import VisionEncoder

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.inference.model_runner import PrefillChunk
    from qwenvl_kit.onnx_backend.manifest import Export

_COPIES_BYTES = 256 * 2**20  # keys and values of a prompt whose labels are scored
ATTENTION_BYTES = 256 * 2**20  # attention scores of one layer in one pass; longer prompts are prefilled in parts


class OnnxModelRunner:
    """The decoder and the vision tower of an export, and one KV cache.

    Parameters
    ----------
    export : Export
        The export, already checked.
    provider : str
        Execution provider, such as ``CPUExecutionProvider``.
    rank : int
        Index of the GPU, for CUDA's provider.
    threads : int or None
        Threads of one operator; None for ONNX Runtime's default.
    """

    def __init__(
        self, export: Export, *, provider: str = "CPUExecutionProvider", rank: int = 0, threads: int | None = None
    ) -> None:
        config = load_config(read(export.path, weights="*.onnx"))
        self._text = config.text_config
        self._image_id: int = config.image_token_id
        self.dtype = torch.float16 if export.dtype == "float16" else torch.float32
        self.device = torch.device("cuda", rank) if provider.startswith("CUDA") else torch.device("cpu")
        self._decoder = Graph(export.path / "decoder.onnx", provider, self.device, threads)
        tower = Graph(export.path / "vision.onnx", provider, self.device, threads)
        self._vision = VisionEncoder(tower, config.vision_config, device=self.device, dtype=self.dtype)
        self._embeddings = torch.from_numpy(export.embeddings())  # (V, H), memory-mapped
        self._head = self._text.hidden_size // self._text.num_attention_heads
        self._caches: list[tuple[Tensor, Tensor]] = []  # keys and values of each layer, (slots, heads, capacity, D)
        self.resize_cache(1, 1)

    def encode_images(self, pixel_values: Tensor, grid: Tensor) -> list[Tensor]:
        """Return the visual tokens of images, those of one size in one pass."""
        return self._vision.encode(pixel_values, grid)

    def resize_cache(self, n_slots: int, capacity: int) -> None:
        """Resize the cache to `n_slots` slots of `capacity` tokens; contents are kept where they fit."""
        heads = self._text.num_key_value_heads
        old = self._caches
        if old and old[0][0].shape[0] == n_slots and old[0][0].shape[2] == capacity:
            return
        self._caches = [
            (_grown(old[layer][0] if old else None, shape, self), _grown(old[layer][1] if old else None, shape, self))
            for layer in range(self._text.num_hidden_layers)
            for shape in [(n_slots, heads, capacity, self._head)]
        ]

    def prefill(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        """Compute the chunks' keys and values, each in its slot; return logits (n_chunks, V) of their last tokens."""
        logits = torch.empty(len(chunks), self._text.vocab_size, device=self.device)
        order = sorted(range(len(chunks)), key=lambda at: chunks[at].slot)
        batches = [
            batch
            for run in _neighbours(order, [chunk.slot for chunk in chunks])
            for batch in pack(run, lambda batch: self._fits([chunks[at] for at in batch]))
        ]
        with stage("prefill", len(batches)):
            for batch in batches:
                advance()
                logits[torch.tensor(batch)] = self._prefill_neighbours([chunks[at] for at in batch])
        return logits

    def decode(self, ids: Tensor, positions: Tensor, lengths: Tensor, max_len: int) -> Tensor:
        """Append one token to each of the slots 0 to B-1; return logits (B, V); see `ModelRunner.decode`."""
        n_rows = len(ids)
        return self._decode(
            self._slots(0, n_rows),
            embeds=self._embed(ids).unsqueeze(1),  # (B, 1, H)
            positions=positions.expand(3, n_rows).unsqueeze(-1),  # (3, B, 1)
            lengths=lengths + 1,
            new_lengths=torch.ones(n_rows, dtype=torch.int64),
            total_len=max_len,
            wanted=torch.arange(n_rows),
        )

    def score(self, slot: int, cached_len: int, position: int, continuations: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return how likely tokens are to follow those of a slot, from passes over copies of it.

        The operator's attention is causal, so that branches cannot share a row.
        """
        longest = max(map(len, continuations))
        room = cached_len + longest  # one more than is read, see `_total_len`
        slot_bytes = sum(2 * keys[0, :, :1].nbytes for keys, _ in self._caches) * room
        n_rows = max(
            1, min(len(continuations), _COPIES_BYTES // slot_bytes, max_prefill_tokens(self.device) // longest)
        )
        caches = [tuple(_copies(one, slot, cached_len, n_rows, room) for one in pair) for pair in self._caches]
        scores: list[Tensor] = []
        for start in range(0, len(continuations), n_rows):
            batch = continuations[start : start + n_rows]
            rows = [(keys[: len(batch)], values[: len(batch)]) for keys, values in caches]
            scores += self._score_rows(rows, cached_len, position, batch)
        return scores

    def _score_rows(
        self,
        caches: Sequence[tuple[Tensor, Tensor]],
        cached_len: int,
        position: int,
        continuations: Sequence[Sequence[int]],
    ) -> list[Tensor]:
        sizes = torch.tensor([len(ids) - 1 for ids in continuations])
        n_rows, longest = len(continuations), int(sizes.max())
        ids = torch.tensor([[*tokens[:-1], *[0] * (longest + 1 - len(tokens))] for tokens in continuations])
        wanted = torch.cat([torch.arange(size) + row * longest for row, size in enumerate(sizes.tolist())])
        lengths = cached_len + sizes
        logits = self._decode(
            caches,
            embeds=self._embed(ids.flatten()).view(n_rows, longest, -1),
            positions=(position + torch.arange(longest)).expand(3, n_rows, -1).contiguous(),
            lengths=lengths,
            new_lengths=sizes,
            total_len=_total_len(lengths, sizes),
            wanted=wanted,
        )
        targets = torch.tensor([token for tokens in continuations for token in tokens[1:]], device=logits.device)
        picked = logits.log_softmax(dim=1).gather(1, targets[:, None])[:, 0]
        return list(torch.split(picked, sizes.tolist()))

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot to another."""
        for keys, values in self._caches:
            keys[target, :, :length] = keys[source, :, :length]
            values[target, :, :length] = values[source, :, :length]

    def zero_slot(self, slot: int) -> None:
        """Zero a slot."""
        for keys, values in self._caches:
            keys[slot].zero_()
            values[slot].zero_()

    def reorder(self, order: Tensor) -> None:
        """Replace the first B slots by the slots `order` (B,), for beam search."""
        for keys, values in self._caches:
            keys[: len(order)], values[: len(order)] = keys[order], values[order]

    def close(self) -> None:
        """Free weights and cache."""
        self._caches = []
        del self._decoder, self._vision, self._embeddings

    @property
    def _capacity(self) -> int:
        return self._caches[0][0].shape[2]

    def _fits(self, chunks: Sequence[PrefillChunk]) -> bool:
        """Return whether chunks fit one pass, padding included.

        The runtime pads every row to the longest, and refuses a pass where a row's cached tokens leave no room for it.
        """
        longest = max(len(chunk.ids) for chunk in chunks)
        cached = max(chunk.cached_len for chunk in chunks)
        return len(chunks) * longest <= max_prefill_tokens(self.device) and cached + longest <= self._capacity

    def _prefill_neighbours(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        """Prefill consecutive slots, in parts if attention's scores would not fit; return logits (n_chunks, V)."""
        lengths = [len(chunk.ids) for chunk in chunks]
        heads = self._text.num_attention_heads
        part = max(16, ATTENTION_BYTES // (4 * len(chunks) * heads * self._capacity))
        logits = torch.empty(len(chunks), self._text.vocab_size, device=self.device)
        embeds = [self._embed_chunk(chunk) for chunk in chunks]
        for start in range(0, max(lengths), part):
            going = [at for at, length in enumerate(lengths) if length > start]
            for run in _neighbours(going, range(len(chunks))):
                ends = [at for at in run if lengths[at] <= start + part]
                ended = self._prefill_part([chunks[at] for at in run], [embeds[at] for at in run], start, part)
                logits[torch.tensor(ends, dtype=torch.int64)] = ended
        return logits

    def _prefill_part(self, chunks: Sequence[PrefillChunk], embeds: Sequence[Tensor], start: int, most: int) -> Tensor:
        """Prefill tokens `start` to ``start + most`` of each chunk; return logits of the chunks that end there."""
        sizes = torch.tensor([min(len(chunk.ids) - start, most) for chunk in chunks])
        longest, n_rows = int(sizes.max()), len(chunks)
        joint = torch.zeros(n_rows, longest, self._text.hidden_size, dtype=self.dtype, device=self.device)
        positions = torch.zeros(3, n_rows, longest, dtype=torch.int64)
        for row, (chunk, vectors) in enumerate(zip(chunks, embeds, strict=True)):
            end = start + int(sizes[row])
            joint[row, : end - start] = vectors[start:end]
            positions[:, row, : end - start] = chunk.positions[:, start:end]
        ending = [row for row, chunk in enumerate(chunks) if len(chunk.ids) <= start + most]
        # The runtime allows no empty output: if no row ends, one row of logits is computed and dropped.
        wanted = [row * longest + int(sizes[row]) - 1 for row in ending] or [0]
        lengths = torch.tensor([chunk.cached_len + start for chunk in chunks]) + sizes
        logits = self._decode(
            self._slots(chunks[0].slot, n_rows),
            embeds=joint,
            positions=positions,
            lengths=lengths,
            new_lengths=sizes,
            total_len=_total_len(lengths, sizes),
            wanted=torch.tensor(wanted),
        )
        return logits[: len(ending)]

    def _slots(self, first: int, n_slots: int) -> list[tuple[Tensor, Tensor]]:
        rows = slice(first, first + n_slots)
        return [(keys[rows], values[rows]) for keys, values in self._caches]

    def _decode(
        self,
        caches: Sequence[tuple[Tensor, Tensor]],
        *,
        embeds: Tensor,
        positions: Tensor,
        lengths: Tensor,
        new_lengths: Tensor,
        total_len: int,
        wanted: Tensor,
    ) -> Tensor:
        """Run the decoder over the caches of its rows; return logits (K, V) of the tokens `wanted`."""
        inputs = {
            "inputs_embeds": embeds,
            "position_ids": positions,
            "lengths": (lengths - 1).int(),
            "total_length": torch.tensor(total_len, dtype=torch.int32),
            "new_lengths": new_lengths.int(),
            "logits_index": wanted,
        }
        logits = torch.empty(len(wanted), self._text.vocab_size, device=self.device)
        outputs: dict[str, Tensor] = {"logits": logits}
        for layer, (keys, values) in enumerate(caches):
            for name, cache in (("key", keys), ("value", values)):
                inputs[f"past_{name}_{layer}"] = outputs[f"present_{name}_{layer}"] = cache
        self._decoder.run(inputs, outputs)
        return logits

    def _embed(self, ids: Tensor) -> Tensor:
        return self._embeddings[ids.cpu()].to(self.device, self.dtype)

    def _embed_chunk(self, chunk: PrefillChunk) -> Tensor:
        """Return the embeddings (T, H) of a chunk's tokens, image features in their places."""
        vectors = self._embed(chunk.ids)
        if chunk.image_features is not None:
            places = (chunk.ids == self._image_id).nonzero().squeeze(-1)[: len(chunk.image_features)]
            vectors[places.to(self.device)] = chunk.image_features.to(self.dtype)
        return vectors


def _total_len(lengths: Tensor, new_lengths: Tensor) -> int:
    """Return the longest row's length, plus one if the operator would mistake the pass for a first prompt.

    It would drop the cached tokens if the longest chunk had as many new tokens as the longest row has in all
    (https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/contrib_ops/cpu/bert/group_query_attention_helper.h).
    """
    total = int(lengths.max())
    has_past = bool((lengths > new_lengths).any())
    return total + (has_past and int(new_lengths.max()) == total)


def _copies(cache: Tensor, slot: int, cached_len: int, n_rows: int, room: int) -> Tensor:
    """Return copies of a slot's first tokens, with room for others behind them."""
    made = cache.new_zeros(n_rows, cache.shape[1], room, cache.shape[3])
    made[:, :, :cached_len] = cache[slot, :, :cached_len]
    return made


def _grown(old: Tensor | None, shape: tuple[int, int, int, int], model_runner: OnnxModelRunner) -> Tensor:
    """Return a cache of `shape` with the contents of `old` that fit."""
    new = torch.zeros(shape, dtype=model_runner.dtype, device=model_runner.device)
    if old is not None:
        rows, tokens = min(old.shape[0], shape[0]), min(old.shape[2], shape[2])
        new[:rows, :, :tokens] = old[:rows, :, :tokens]
    return new


def _neighbours(order: Sequence[int], slots: Sequence[int]) -> list[list[int]]:
    """Split positions, ordered by slot, into runs of consecutive slots."""
    return pack(order, lambda run: slots[run[-1]] == slots[run[-2]] + 1)
