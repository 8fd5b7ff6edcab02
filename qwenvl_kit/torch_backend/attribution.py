"""Trace the words of answers to visual tokens, on torch."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from qwenvl_kit.attribution import AnswerMaps, Attribution, WordMap
from qwenvl_kit.errors import RowError
from qwenvl_kit.inference.model_runner import PrefillChunk
from qwenvl_kit.inference.words import Word, words_of
from qwenvl_kit.torch_backend.curves import curves_of
from qwenvl_kit.torch_backend.kv_cache import SlottedKVCache
from qwenvl_kit.torch_backend.occlusion import group_masks, spread_drops
from qwenvl_kit.torch_backend.replay import AttentionRecorder, Replay
from qwenvl_kit.types import LoadedImage

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.inference.encoder_cache import EncoderCache
    from qwenvl_kit.inference.processor import Tokenization
    from qwenvl_kit.inference.sequence import Sequence
    from qwenvl_kit.torch_backend.model_runner import TorchModelRunner

_GREY = 127  # of the image without content
_MAX_BLANKS = 4  # prompts over grey images whose keys are kept


class TorchExplainer:
    """Trace answers with a model runner, whose cache holds their prompts.

    Parameters
    ----------
    model_runner : TorchModelRunner
        The model.
    encoder_cache : EncoderCache
        Over the same model runner.
    tokenization : Tokenization
        The checkpoint's.
    """

    def __init__(self, model_runner: TorchModelRunner, encoder_cache: EncoderCache, tokenization: Tokenization) -> None:
        self._runner, self._encoder_cache, self._tokenization = model_runner, encoder_cache, tokenization
        self._blanks: OrderedDict[tuple[object, ...], SlottedKVCache] = OrderedDict()

    def explain(self, sequence: Sequence, slot: int) -> AnswerMaps:
        """Return the maps of a finished answer; see `Explainer.explain`."""
        attribution, merge = sequence.request.attribution, self._tokenization.processor.merge
        assert attribution is not None, "the engine calls for such requests only"
        words = words_of(sequence.output_ids, self._tokenization.decode)
        layers = chosen_layers(attribution, self._runner.n_layers) if attribution.method == "attention" else ()
        replay = Replay(self._runner, sequence, slot)
        found = self._word_maps(attribution, words, layers, replay, sequence) if words else ()
        return AnswerMaps(
            found,
            tuple((rows // merge, columns // merge) for _, rows, columns in sequence.grid.tolist()),
            tuple(image.source_size for image in sequence.request.images),
            layers,
        )

    def _word_maps(
        self,
        attribution: Attribution,
        words: list[Word],
        layers: tuple[int, ...],
        replay: Replay,
        sequence: Sequence,
    ) -> tuple[WordMap, ...]:
        if attribution.method == "attention":
            weights, logprobs = self._attention(attribution, words, layers, replay, sequence)
        elif attribution.method == "occlusion":
            weights, logprobs = self._occlusion(attribution, words, replay, sequence)
        else:
            by_word, logprobs = replay.gradients([word.tokens for word in words], self._features(sequence))
            weights = by_word[:, None]
        each = weights.float().cpu().numpy()  # (W, L, n_visual)
        sums = [float(logprobs[list(word.tokens)].sum()) for word in words]
        curves = (
            curves_of(each.mean(axis=1), words, attribution.n_steps, replay, self._features(sequence))
            if attribution.n_steps
            else [None] * len(words)
        )
        return tuple(
            WordMap(word.text, word.begin, word.end, logprob, some, curve)
            for word, logprob, some, curve in zip(words, sums, each, curves, strict=True)
        )

    def _attention(
        self,
        attribution: Attribution,
        words: list[Word],
        layers: tuple[int, ...],
        replay: Replay,
        sequence: Sequence,
    ) -> tuple[Tensor, Tensor]:
        """Return weights (W, L, n_visual) and the log-probabilities (T,) of the answer's tokens."""
        own = AttentionRecorder(replay.visual, layers, attribution.heads)
        logprobs = replay.watched(own)
        weights = self._stacked(own, layers)  # (L, T, n_visual)
        if attribution.correct:
            weights = weights - self._stacked(self._blank_attention(attribution, layers, sequence), layers)
        if attribution.layers != "all":
            weights = weights.mean(dim=0, keepdim=True)
        return torch.stack([weights[:, list(word.tokens)].mean(dim=1) for word in words]), logprobs

    def _stacked(self, recorder: AttentionRecorder, layers: tuple[int, ...]) -> Tensor:
        return torch.stack([recorder.weights[layer].to(self._runner.device) for layer in layers])

    def _blank_attention(
        self, attribution: Attribution, layers: tuple[int, ...], sequence: Sequence
    ) -> AttentionRecorder:
        """Return the attention to grey images of the same sizes, for the same answer."""
        key = (tuple(sequence.prompt_ids), tuple(map(tuple, sequence.grid.tolist())))
        cache = self._blanks.get(key)
        if cache is None:
            cache = self._blanks[key] = self._prefilled(sequence)
            if len(self._blanks) > _MAX_BLANKS:
                self._blanks.popitem(last=False)
        with self._runner.other_cache(cache):
            replay = Replay(self._runner, sequence, 0)
            recorder = AttentionRecorder(replay.visual, layers, attribution.heads)
            replay.watched(recorder)
        return recorder

    def _prefilled(self, sequence: Sequence) -> SlottedKVCache:
        """Return a cache of one slot with a sequence's prompt over grey images."""
        images = tuple(_blank(image.size) for image in sequence.request.images)
        features = self._features(self._tokenization.processor.encode(replace(sequence.request, images=images)))
        n_prompt, device = len(sequence.prompt_ids), self._runner.device
        ids, positions = sequence.ids[:n_prompt].to(device), sequence.positions()[:, :n_prompt].to(device)
        cache = SlottedKVCache()
        with torch.inference_mode(), self._runner.other_cache(cache):
            cache.resize_cache(1, n_prompt)
            self._runner.prefill([PrefillChunk(0, ids, positions, 0, features)])
        return cache

    def _occlusion(
        self, attribution: Attribution, words: list[Word], replay: Replay, sequence: Sequence
    ) -> tuple[Tensor, Tensor]:
        """Return what each word's log-probability loses (W, 1, n_visual), and log-probabilities (T,) of all tokens."""
        merge = self._tokenization.processor.merge
        grids = [(rows // merge, columns // merge) for _, rows, columns in sequence.grid.tolist()]
        groups = torch.from_numpy(group_masks(grids, attribution.grid))  # (N, n_visual)
        readings = torch.cat([torch.zeros_like(groups[:1]), groups])
        logprobs = replay.without(readings, self._features(sequence)).cpu()  # (1 + N, T)
        drops = logprobs[0] - logprobs[1:]  # (N, T)
        by_word = torch.stack([drops[:, list(word.tokens)].sum(dim=1) for word in words])  # (W, N)
        weights = spread_drops(by_word.numpy(), groups.numpy())
        return torch.from_numpy(weights)[:, None], logprobs[0]

    def _features(self, sequence: Sequence) -> Tensor:
        features = self._encoder_cache.encode([sequence])[0]
        if isinstance(features, Exception):
            raise features
        return features


def chosen_layers(attribution: Attribution, n_layers: int) -> tuple[int, ...]:
    """Return the layers whose attention counts, as indices from 0.

    Raises
    ------
    RowError
        The model has no such layer.
    """
    if attribution.layers == "all":
        return tuple(range(n_layers))
    if attribution.layers is None:
        return tuple(range(n_layers // 2, n_layers))
    wrong = [layer for layer in attribution.layers if not -n_layers <= layer < n_layers]
    if wrong:
        raise RowError(
            "generate",
            f"layers contains {wrong[0]}, but the model has {n_layers} layers. Use 0 to {n_layers - 1}, or negative "
            "numbers from the last.",
        )
    return tuple(sorted({layer % n_layers for layer in attribution.layers}))


def _blank(size: tuple[int, int]) -> LoadedImage:
    return LoadedImage(np.full((*size, 3), _GREY, np.uint8), f"grey {_GREY}", size)
