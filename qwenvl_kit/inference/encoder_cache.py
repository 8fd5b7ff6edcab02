"""Pictures in, their visual tokens out, each distinct picture looked at once while memory for it lasts.

What is asked about a picture is not known here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from qwenvl_kit.inference.oom import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.inference.model_runner import ModelRunner
    from qwenvl_kit.inference.processor import Encoded

_MAX_BYTES = 128 * 2**20  # visual tokens that are kept: about 60 pictures of 300 tokens of the 7B model in 16 bits
_MAX_PICTURES = 512  # of which that is so; small ones are soon looked at again, and memory is the same in a longer run
_MAX_PATCHES = {"cpu": 2048, "cuda": 16384}  # cut at once, up to 80 MB: what a stepper needs to fill its device

_Sight = tuple[str, tuple[int, int]]  # digest and size, which name what a picture shows


class ImageEncodingError(Exception):
    """A picture that cannot be cut into patches; a fault of the rows that show it.

    Attributes
    ----------
    sight : tuple
        Names the picture.
    cause : Exception
        What was raised.
    """

    def __init__(self, sight: _Sight, cause: Exception) -> None:
        super().__init__(str(cause))
        self.sight, self.cause = sight, cause


class EncoderCache:
    """Looks at pictures, and remembers.

    Parameters
    ----------
    stepper : ModelRunner
        Sees.
    max_bytes : int
        Most bytes of visual tokens to keep.
    """

    def __init__(self, stepper: ModelRunner, *, max_bytes: int = _MAX_BYTES) -> None:
        self._stepper = stepper
        self._max_bytes = max_bytes
        self._known: OrderedDict[_Sight, Tensor] = OrderedDict()
        self._n_bytes = 0
        self._decode: str | None = None

    def open(self, decode: str) -> None:
        """Begin a run; of pictures that were decoded in another way nothing is remembered."""
        if decode != self._decode:
            self.forget()
        self._decode = decode

    def see(self, rows: Sequence[Encoded]) -> list[Tensor]:
        """Visual tokens (n_visual, hidden) of all pictures of each row, one after the other.

        Raises
        ------
        PictureFault
            A picture cannot be cut into patches.
        """
        wanted = {sight: (encoded, at) for encoded in rows for at, sight in enumerate(encoded.sights)}
        seen = {sight: self._known[sight] for sight in wanted if sight in self._known}
        unseen = [(sight, encoded, at) for sight, (encoded, at) in wanted.items() if sight not in seen]
        for some in _passes(unseen, _MAX_PATCHES["cpu" if self._stepper.device.type == "cpu" else "cuda"]):
            patches = torch.cat([_cut(one) for one in some])
            grid = torch.stack([encoded.grid[at] for _, encoded, at in some])
            looked = self._stepper.look(patches, grid)
            seen |= {sight: tokens for (sight, _, _), tokens in zip(some, looked, strict=True)}
        for sight, tokens in seen.items():
            self._remember(sight, tokens)
        return [torch.cat([seen[sight] for sight in encoded.sights]) for encoded in rows]

    def forget(self) -> None:
        """Free what is remembered."""
        self._known.clear()
        self._n_bytes = 0

    def _remember(self, sight: _Sight, tokens: Tensor) -> None:
        if sight not in self._known:
            # A tensor that is a part of a pass's output would keep the whole output alive.
            self._known[sight] = tokens.clone()
            self._n_bytes += tokens.nbytes
        self._known.move_to_end(sight)
        while self._n_bytes > self._max_bytes or len(self._known) > _MAX_PICTURES:
            _, oldest = self._known.popitem(last=False)
            self._n_bytes -= oldest.nbytes


def _cut(one: tuple[_Sight, Encoded, int]) -> Tensor:
    """Patches of one picture; memory that runs out is no fault of the picture."""
    sight, encoded, at = one
    try:
        return encoded.cut(encoded.request.images[at])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ImageEncodingError(sight, error) from error


def _passes(unseen: Sequence[tuple[_Sight, Encoded, int]], most: int) -> list[list[tuple[_Sight, Encoded, int]]]:
    """Cut into passes of up to `most` patches; a picture beyond it goes alone."""
    passes: list[list[tuple[_Sight, Encoded, int]]] = []
    n_patches = 0
    for one in unseen:
        _, encoded, at = one
        size = int(encoded.grid[at].prod())
        if not passes or n_patches + size > most:
            passes.append([])
            n_patches = 0
        passes[-1].append(one)
        n_patches += size
    return passes
