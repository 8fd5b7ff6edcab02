"""Attention windows of the vision tower: laid out once per pass, for all of its blocks.

transformers reads the borders back from the device in every block, which is one wait for the GPU per block:
https://github.com/huggingface/transformers/blob/v5.24.0/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py#L316.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from qwenvl_kit.inference.patches import upload
from qwenvl_kit.torch_backend.row_blocks import blocks, max_queries

if TYPE_CHECKING:
    from torch import Tensor

_FLASH_CAPABILITY = (8, 0)  # Ampere; torch's kernel refuses older GPUs
_FLASH_HEAD = 256  # the widest head of the kernel; widths are multiples of 8


class Windows:
    """Attend within the windows of one pass.

    Parameters
    ----------
    visual : transformers.Qwen2_5_VisionTransformerPretrainedModel
        Its forward starts a pass.
    """

    def __init__(self, visual: Any) -> None:
        config = visual.config
        self._merge = int(config.spatial_merge_size)
        self._side = int(config.window_size) // self._merge // int(config.patch_size)  # in visual tokens
        self._lengths: dict[bool, list[int]] = {}
        self._layouts: dict[tuple[bool, torch.device], _Layout] = {}
        visual.register_forward_pre_hook(self._before, with_kwargs=True)

    def start_pass(self, grids: Sequence[Sequence[int]]) -> None:
        """Lay out windows for images of frames, rows and columns of patches."""
        self._layouts = {}
        self._lengths = {True: full_lengths(grids), False: window_lengths(grids, side=self._side, merge=self._merge)}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, *, is_full: bool) -> Tensor:
        """Attend with heads (P, H, d) within images, or within their windows; return states (P, H · d)."""
        at = (is_full, query.device)
        layout = self._layouts.get(at)
        if layout is None:
            layout = self._layouts[at] = _Layout(self._lengths[is_full], query.device)
        if has_varlen_kernel(query.device, query.dtype, query.shape[-1]):
            return attend_varlen(query, key, value, layout.borders, layout.longest, scaling).flatten(1)
        return _attend_by_length(query, key, value, layout, scaling)

    def _before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        grid: Tensor = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        self.start_pass(grid.tolist())  # the only wait: transformers' own forward reads the grid back as well


def full_lengths(grids: Sequence[Sequence[int]]) -> list[int]:
    """Return the patches of each frame.

    Examples
    --------
    >>> full_lengths([(1, 4, 6), (2, 2, 2)])
    [24, 4, 4]
    """
    return [rows * columns for frames, rows, columns in grids for _ in range(frames)]


def window_lengths(grids: Sequence[Sequence[int]], *, side: int, merge: int) -> list[int]:
    """Return the patches of each window, in the order in which transformers sorts patches.

    Parameters
    ----------
    grids : sequence of (frames, rows, columns)
        Patches of each image.
    side : int
        Visual tokens per side of a window.
    merge : int
        Patches per side that become one visual token.

    Examples
    --------
    >>> window_lengths([(1, 8, 10)], side=4, merge=2)
    [64, 16]
    """
    return [
        height * width * merge**2
        for frames, rows, columns in grids
        for _ in range(frames)
        for height in _cut(rows // merge, side)
        for width in _cut(columns // merge, side)
    ]


def attend_varlen(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, scaling: float) -> Tensor:
    """Attend with heads (P, H, d) within all windows in one call of torch's flash kernel; return heads (P, H, d).

    Parameters
    ----------
    query, key, value : Tensor
        In 16 bits, on CUDA.
    borders : int32 Tensor (n + 1,)
        Where windows begin, and the end of the last one.
    longest : int
        Patches of the longest window.
    scaling : float
        Factor of the products.
    """
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, borders, borders, longest, longest, 0.0, False, False, scale=scaling
    )[0]
    return attended


@functools.cache
def has_varlen_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether `attend_varlen` works on a device: tried once, and compared with SDPA."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    if head_dim % 8 or head_dim > _FLASH_HEAD or torch.cuda.get_device_capability(device) < _FLASH_CAPABILITY:
        return False
    try:
        return _is_right(device, dtype, head_dim)
    except (RuntimeError, TypeError, AttributeError):  # built without the kernel, or with another schema
        return False


class _Layout:
    """The windows of one kind on one device."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self._lengths, self._device = np.asarray(lengths), device
        self.longest = max(lengths)

    @functools.cached_property
    def borders(self) -> Tensor:
        """Where windows begin, and the end of the last one, int32 (n + 1,)."""
        ends = np.concatenate([[0], self._lengths.cumsum()]).astype(np.int32)
        return upload(torch.from_numpy(ends), self._device)

    @functools.cached_property
    def places(self) -> dict[int, Tensor | None]:
        """Indices of the patches in windows of each length; None where all windows have one length."""
        starts = self._lengths.cumsum() - self._lengths
        different = np.unique(self._lengths)
        if len(different) == 1:
            return {int(different[0]): None}
        return {
            int(length): upload(torch.from_numpy(_spread(starts[self._lengths == length], length)), self._device)
            for length in different
        }


def _attend_by_length(query: Tensor, key: Tensor, value: Tensor, layout: _Layout, scaling: float) -> Tensor:
    """Attend within all windows of one length at once."""
    attended = torch.empty(len(value), value.shape[1] * value.shape[2], dtype=value.dtype, device=value.device)
    for length, places in layout.places.items():
        if places is None:
            return _attend(query, key, value, length, scaling)
        most = max_queries(length, value.device)
        for some in blocks(len(places), max(1, most // length) * length):  # what is gathered is a copy
            at = places[some]
            attended[at] = _attend(query[at], key[at], value[at], length, scaling)
    return attended


def _attend(query: Tensor, key: Tensor, value: Tensor, length: int, scaling: float) -> Tensor:
    """Attend within consecutive windows of one length, with bounded work in one call."""
    most = max_queries(length, query.device)
    if len(query) <= most:
        return _attend_at_once(query, key, value, length, scaling)
    attended = value.new_empty(len(value), value.shape[1] * value.shape[2])
    if length <= most:
        for some in blocks(len(query), most // length * length):
            attended[some] = _attend_at_once(query[some], key[some], value[some], length, scaling)
        return attended
    for start in range(0, len(query), length):
        window = slice(start, start + length)
        for some in blocks(length, most):
            attended[window][some] = _attend_to(query[window][some], key[window], value[window], scaling)
    return attended


def _attend_at_once(query: Tensor, key: Tensor, value: Tensor, length: int, scaling: float) -> Tensor:
    """Attend within consecutive windows of one length; return states (P, H · d)."""
    shape = (-1, length, *query.shape[1:])
    query, key, value = (each.reshape(shape).transpose(1, 2) for each in (query, key, value))  # (W, H, l, d)
    attended = functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    return attended.transpose(1, 2).flatten(0, 1).flatten(1)  # (P, H · d)


def _attend_to(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attend with queries (N, H, d) to the keys of one window; return states (N, H · d)."""
    query, key, value = (each.transpose(0, 1)[None] for each in (query, key, value))  # (1, H, …, d)
    attended = functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    return attended[0].transpose(0, 1).flatten(1)


def _cut(n: int, side: int) -> list[int]:
    """Cut `n` into parts of `side` and a rest."""
    return [side] * (n // side) + [n % side] * (n % side > 0)


def _spread(starts: Any, length: int) -> Any:
    """Return the indices of windows of one length, given where they start."""
    return (starts[:, None] + np.arange(length)).reshape(-1)


def _is_right(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether the kernel gives SDPA's numbers for windows of 5 and 11 patches."""
    with torch.inference_mode():
        draw = torch.Generator(device).manual_seed(0)
        query, key, value = torch.randn(3, 16, 2, head_dim, generator=draw, device=device).to(dtype)
        borders = torch.tensor([0, 5, 16], dtype=torch.int32, device=device)
        ours = attend_varlen(query, key, value, borders, 11, head_dim**-0.5).flatten(1)
        theirs = torch.cat(
            [_attend(query[a:b], key[a:b], value[a:b], b - a, head_dim**-0.5) for a, b in ((0, 5), (5, 16))]
        )
        return bool(torch.allclose(ours.float(), theirs.float(), atol=2e-2, rtol=2e-2))
