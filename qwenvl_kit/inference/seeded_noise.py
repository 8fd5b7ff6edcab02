"""Random noise on logits, which depends on a row's seed and on nothing beside the row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_BELOW_ONE = 1 - 2**-24  # in float32


class SeededGumbelNoise(LogitsProcessor):  # type: ignore[misc]  # transformers' bases are untyped
    """Sample with a generator per row, so that an answer does not depend on the rows beside it.

    Adding Gumbel noise and taking the largest draws from the softmax (Gumbel 1954; Maddison et al. 2014,
    https://arxiv.org/abs/1411.0030). transformers' own sampling draws for the whole batch from one global generator,
    whose state depends on every other row.

    Parameters
    ----------
    seeds : iterable of int
        One per row.
    device : torch.device
        Where the scores are.
    """

    def __init__(self, seeds: Iterable[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) with noise; the largest of a row is a draw from its softmax."""
        return scores - self.draw(scores.shape[1]).log_()  # -log of an exponential draw is a Gumbel draw

    def draw(self, n: int) -> Tensor:
        """Return the next `n` exponential draws of each row, float32 (B, n)."""
        draws = torch.empty(len(self._generators), n, device=self._generators[0].device)
        for row, generator in enumerate(self._generators):
            draws[row].exponential_(generator=generator)
        return draws


def counter_gumbel_noise(seeds: Tensor, steps: Tensor, n: int) -> Tensor:
    """Return Gumbel draws for all rows at once, each a hash of a seed, a step and a token's index.

    torch's generators on CUDA draw a row at a time, and other numbers on a GPU with another number of processors. The
    hash gives the same numbers on each (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405, on random numbers
    from counters).

    Parameters
    ----------
    seeds : int64 Tensor (B,)
    steps : int64 Tensor (B,)
        Tokens that each row has generated.
    n : int
        Draws of each row.

    Returns
    -------
    float32 Tensor (B, n)

    Examples
    --------
    >>> import torch
    >>> noise = counter_gumbel_noise(torch.tensor([7, 7]), torch.tensor([0, 1]), 1000)
    >>> noise.shape, bool((noise[0] == noise[1]).any())
    (torch.Size([2, 1000]), False)
    """
    key = _mix_64(_mix_64(seeds) + steps)[:, None]  # (B, 1)
    low, high = key.int(), (key >> 32).int()  # the lower 32 bits of each
    bits = _mix_32(torch.arange(n, dtype=torch.int32, device=seeds.device) + low)  # (B, n)
    bits = _mix_32(bits ^ high)
    uniform = ((bits & 0x7FFFFFFF).float() + 0.5) * 2.0**-31
    exponential = -(-uniform.clamp_(max=_LARGEST_BELOW_ONE)).log1p_()  # small draws, which win, keep their precision
    return -exponential.log_()


def _mix_64(x: Tensor) -> Tensor:
    """Hash int64 numbers: the finaliser of splitmix64 (https://prng.di.unimi.it/splitmix64.c)."""
    x = x + -0x61C8864680B583EB
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _mix_32(x: Tensor) -> Tensor:
    """Hash int32 numbers in place: lowbias32 (https://github.com/skeeto/hash-prospector)."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(-0x7B935975)
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
