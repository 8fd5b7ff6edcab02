"""Visual tokens of images, encoded once while memory for them lasts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from qwenvl_kit.inference.oom import is_device_lost, is_out_of_memory
from qwenvl_kit.inference.packing import MAX_FEATURE_BYTES, max_held_patches, pack_sizes

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.inference.model_runner import ModelRunner
    from qwenvl_kit.inference.sequence import ImageKey, Sequence
    from qwenvl_kit.types import LoadedImage

_MAX_IMAGES = 512  # small ones are soon encoded again, and memory is the same in a longer run


class EncoderCache:
    """Encode images with a model runner and keep the visual tokens of the last ones.

    Parameters
    ----------
    model_runner : ModelRunner
        Runs the vision tower.
    patchify : callable
        Return the patches of an image, float (P, C·T·p·p).
    max_bytes : int
        Most bytes of visual tokens to keep.
    max_images : int
        Most images to keep.
    """

    def __init__(
        self,
        model_runner: ModelRunner,
        patchify: Callable[[LoadedImage], Tensor],
        *,
        max_bytes: int = MAX_FEATURE_BYTES,
        max_images: int = _MAX_IMAGES,
    ) -> None:
        self._model_runner, self._patchify = model_runner, patchify
        self._max_bytes, self._max_images = max_bytes, max_images
        self._kept: OrderedDict[ImageKey, Tensor] = OrderedDict()
        self._n_bytes = 0
        self._decode: str | None = None

    def start_run(self, decode: str) -> None:
        """Clear the cache if images are now decoded in another way, which their keys do not tell."""
        if decode != self._decode:
            self.clear()
        self._decode = decode

    def encode(self, sequences: list[Sequence]) -> list[Tensor | Exception]:
        """Return the visual tokens (n_visual, hidden) of all images of each sequence, one image after the other.

        A sequence with an image that cannot be cut into patches gets the exception instead.
        """
        images = {key: image for one in sequences for key, image in _images(one)}
        encoded: dict[ImageKey, Tensor | Exception] = {key: self._kept[key] for key in images if key in self._kept}
        missing = [key for key in images if key not in encoded]
        grids = {key: one.grid[at] for one in sequences for at, key in enumerate(one.image_keys)}
        limit = max_held_patches(self._model_runner.device)
        for batch in pack_sizes([int(grids[key].prod()) for key in missing], limit):
            encoded |= self._encode_batch({missing[at]: images[missing[at]] for at in batch}, grids)
        for key, features in encoded.items():
            if not isinstance(features, Exception):
                self._keep(key, features)
        return [_joined([encoded[key] for key in one.image_keys]) for one in sequences]

    def clear(self) -> None:
        """Free all visual tokens."""
        self._kept.clear()
        self._n_bytes = 0

    def _encode_batch(
        self, images: dict[ImageKey, LoadedImage], grids: dict[ImageKey, Tensor]
    ) -> dict[ImageKey, Tensor | Exception]:
        patches = {key: self._patches(image) for key, image in images.items()}
        good = {key: each for key, each in patches.items() if not isinstance(each, Exception)}
        encoded: dict[ImageKey, Tensor | Exception] = {k: e for k, e in patches.items() if isinstance(e, Exception)}
        if good:
            grid = torch.stack([grids[key] for key in good])
            features = self._model_runner.encode_images(torch.cat(list(good.values())), grid)
            encoded |= zip(good, features, strict=True)
        return encoded

    def _patches(self, image: LoadedImage) -> Tensor | Exception:
        try:
            return self._patchify(image)
        except Exception as error:
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            return error

    def _keep(self, key: ImageKey, features: Tensor) -> None:
        if key not in self._kept:
            # A tensor that is a part of a pass's output would keep the whole output alive.
            self._kept[key] = features.clone()
            self._n_bytes += features.nbytes
        self._kept.move_to_end(key)
        while self._n_bytes > self._max_bytes or len(self._kept) > self._max_images:
            _, oldest = self._kept.popitem(last=False)
            self._n_bytes -= oldest.nbytes


def _images(sequence: Sequence) -> list[tuple[ImageKey, LoadedImage]]:
    return list(zip(sequence.image_keys, sequence.request.images, strict=True))


def _joined(features: list[Tensor | Exception]) -> Tensor | Exception:
    tensors = [each for each in features if not isinstance(each, Exception)]
    if len(tensors) == len(features):
        return torch.cat(tensors)
    return next(each for each in features if isinstance(each, Exception))
