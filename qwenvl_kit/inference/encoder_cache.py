"""Pictures in, their visual tokens out, each distinct picture looked at once while memory for it lasts.

What is asked about a picture is not known here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from qwenvl_kit.inference.oom import is_out_of_memory
from qwenvl_kit.inference.packing import pack_sizes

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.inference.model_runner import ModelRunner
    from qwenvl_kit.inference.processor import Encoded

_MAX_BYTES = 128 * 2**20  # visual tokens that are kept: about 60 pictures of 300 tokens of the 7B model in 16 bits
MAX_IMAGES = 512  # of which that is so; small ones are soon looked at again, and memory is the same in a longer run
_MAX_PATCHES = {"cpu": 2048, "cuda": 16384}  # cut at once, up to 80 MB: what a model runner needs to fill its device

ImageKey = tuple[str, tuple[int, int]]  # digest and size, which name what a picture shows


class ImageEncodingError(Exception):
    """A picture that cannot be cut into patches; a fault of the rows that show it.

    Attributes
    ----------
    image_key : tuple
        Names the picture.
    cause : Exception
        What was raised.
    """

    def __init__(self, image_key: ImageKey, cause: Exception) -> None:
        super().__init__(str(cause))
        self.image_key, self.cause = image_key, cause


class EncoderCache:
    """Looks at pictures, and remembers.

    Parameters
    ----------
    model_runner : ModelRunner
        Sees.
    max_bytes : int
        Most bytes of visual tokens to keep.
    """

    def __init__(self, model_runner: ModelRunner, *, max_bytes: int = _MAX_BYTES) -> None:
        self._model_runner = model_runner
        self._max_bytes = max_bytes
        self._known: OrderedDict[ImageKey, Tensor] = OrderedDict()
        self._n_bytes = 0
        self._decode: str | None = None

    def start_run(self, decode: str) -> None:
        """Begin a run; of pictures that were decoded in another way nothing is remembered."""
        if decode != self._decode:
            self.clear()
        self._decode = decode

    def encode(self, rows: Sequence[Encoded]) -> list[Tensor]:
        """Visual tokens (n_visual, hidden) of all pictures of each row, one after the other.

        Raises
        ------
        PictureFault
            A picture cannot be cut into patches.
        """
        wanted = {image_key: (encoded, at) for encoded in rows for at, image_key in enumerate(encoded.image_keys)}
        seen = {image_key: self._known[image_key] for image_key in wanted if image_key in self._known}
        unseen = [(image_key, encoded, at) for image_key, (encoded, at) in wanted.items() if image_key not in seen]
        limit = _MAX_PATCHES["cpu" if self._model_runner.device.type == "cpu" else "cuda"]
        for batch in pack_sizes([int(encoded.grid[at].prod()) for _, encoded, at in unseen], limit):
            some = [unseen[at] for at in batch]
            patches = torch.cat([_cut(one) for one in some])
            grid = torch.stack([encoded.grid[at] for _, encoded, at in some])
            looked = self._model_runner.encode_images(patches, grid)
            seen |= {image_key: tokens for (image_key, _, _), tokens in zip(some, looked, strict=True)}
        for image_key, tokens in seen.items():
            self._remember(image_key, tokens)
        return [torch.cat([seen[image_key] for image_key in encoded.image_keys]) for encoded in rows]

    def clear(self) -> None:
        """Free what is remembered."""
        self._known.clear()
        self._n_bytes = 0

    def _remember(self, image_key: ImageKey, tokens: Tensor) -> None:
        if image_key not in self._known:
            # A tensor that is a part of a pass's output would keep the whole output alive.
            self._known[image_key] = tokens.clone()
            self._n_bytes += tokens.nbytes
        self._known.move_to_end(image_key)
        while self._n_bytes > self._max_bytes or len(self._known) > MAX_IMAGES:
            _, oldest = self._known.popitem(last=False)
            self._n_bytes -= oldest.nbytes


def _cut(one: tuple[ImageKey, Encoded, int]) -> Tensor:
    """Patches of one picture; memory that runs out is no fault of the picture."""
    image_key, encoded, at = one
    try:
        return encoded.patchify(encoded.request.images[at])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ImageEncodingError(image_key, error) from error
