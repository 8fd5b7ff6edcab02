"""Run the vision tower's graph on images of any sizes, those of one size together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from qwenvl_kit.inference.cancellation import advance, stage
from qwenvl_kit.inference.packing import max_image_patches, pack

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.onnx_backend.session import Graph


class VisionEncoder:
    """The vision tower of an export.

    Parameters
    ----------
    graph : Graph
        See `qwenvl_kit.onnx_backend.export.vision` for its inputs.
    config : transformers.Qwen2_5_VLVisionConfig
        The vision tower's.
    device : torch.device
        Where the graph computes.
    dtype : torch.dtype
        Of patches and features.
    """

    def __init__(self, graph: Graph, config: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        self._graph, self._config = graph, config
        self._device, self._dtype = device, dtype

    def encode(self, pixel_values: Tensor, grid: Tensor) -> list[Tensor]:
        """Return the visual tokens (n_visual, H) of each image, from patches (P, C·T·p·p) and grid (n_images, 3)."""
        sizes = [tuple(one) for one in grid.tolist()]
        counts = [math.prod(size) for size in sizes]
        starts = [end - count for end, count in zip(itertools.accumulate(counts), counts, strict=True)]
        most = max_image_patches(self._device)
        found: dict[int, Tensor] = {}
        batches = [
            batch
            for size in dict.fromkeys(sizes)
            for batch in pack(
                [at for at, other in enumerate(sizes) if other == size],
                lambda batch: sum(counts[at] for at in batch) <= most,
            )
        ]
        with stage("encode", len(batches)):
            for batch in batches:
                advance()
                size = sizes[batch[0]]
                features = self._encode_alike(pixel_values, [starts[at] for at in batch], torch.tensor([size]))
                found |= dict(zip(batch, features, strict=True))
        return [found[at] for at in range(len(sizes))]

    def _encode_alike(self, pixels: Tensor, starts: Sequence[int], size: Tensor) -> Tensor:
        """Return visual tokens (n, n_visual, H) of n images of one grid (1, 3) whose patches begin at `starts`."""
        config, n_images = self._config, len(starts)
        unit = config.spatial_merge_size**2
        order, bounds = get_vision_window_index(
            size, config.spatial_merge_size, window_size=config.window_size, patch_size=config.patch_size
        )
        patches = (order[:, None] * unit + torch.arange(unit)).reshape(-1)  # (P,): patch at each place
        places, mask, back = _windows(bounds)
        positions = get_vision_position_ids(size, config.spatial_merge_size)[patches].T  # (2, P)
        features = torch.empty(n_images, len(order), config.out_hidden_size, dtype=self._dtype, device=self._device)
        self._graph.run(
            {
                "pixel_values": pixels[torch.tensor(starts)[:, None] + patches].to(self._dtype),  # (n, P, C·T·p·p)
                "position_ids": positions[:, None].expand(2, n_images, -1),
                "window_index": places,
                "window_mask": mask.repeat(n_images, 1),
                "window_return": back,
            },
            {"features": features},
        )
        return features[:, torch.argsort(order).to(self._device)]


def _windows(bounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pad windows to one length.

    Parameters
    ----------
    bounds : int Tensor (W + 1,)
        Where windows of patches begin and end.

    Returns
    -------
    places : int64 Tensor (W·L,)
        Patch at each place of each window; padding repeats the window's last patch.
    mask : int32 Tensor (W, L)
        0 at padding.
    back : int64 Tensor (P,)
        Place of each patch.
    """
    sizes = bounds.diff()[:, None].long()  # (W, 1)
    at = torch.arange(int(sizes.max()))  # (L,)
    places = bounds[:-1, None].long() + torch.minimum(at, sizes - 1)
    mask = at < sizes
    return places.reshape(-1), mask.int(), mask.reshape(-1).nonzero().squeeze(-1)
