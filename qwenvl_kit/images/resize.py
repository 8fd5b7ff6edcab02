"""Compute the size that an image is resized to, and resize it once, bicubic.

The arithmetic is that of ``qwen_vl_utils.smart_resize`` (Apache-2.0,
https://github.com/QwenLM/Qwen2.5-VL/blob/main/qwen-vl-utils/src/qwen_vl_utils/vision_process.py),
which cannot be imported without torch.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from PIL import Image

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.pixels import to_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwenvl_kit.options import ImageOptions
    from qwenvl_kit.types import PatchGeometry

MAX_ASPECT = 200
"""Limit of the model family on longest side over shortest side."""


class TargetSize(Protocol):
    """From the size of an image to the size that it is resized to; picklable, for decoders in other processes."""

    @property
    def draft(self) -> bool:
        """Whether a JPEG may be decoded at a reduced scale that is not smaller than the target."""

    def target(self, source_size: tuple[int, int]) -> tuple[int, int]:
        """Return ``(height, width)`` for an image of that size."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """The size for a model, as `target_size` computes it."""

    geometry: PatchGeometry
    resized_height: int | None = None
    resized_width: int | None = None
    draft: bool = False

    @classmethod
    def of(cls, options: ImageOptions, geometry: PatchGeometry) -> Self:
        """Return the checkpoint's sizing under the limits and sizes of options.

        Where only one limit is given and the two would cross, the other follows it.
        """
        least = options.min_pixels or geometry.min_pixels
        most = options.max_pixels or geometry.max_pixels
        if least > most:
            least, most = (least, least) if options.max_pixels is None else (most, most)
        return cls(
            replace(geometry, min_pixels=least, max_pixels=most),
            options.resized_height,
            options.resized_width,
            options.image_decode == "draft",
        )

    def target(self, source_size: tuple[int, int]) -> tuple[int, int]:
        """Return ``(height, width)`` for an image of `source_size`; raises as `target_size`."""
        return target_size(
            source_size, self.geometry, resized_height=self.resized_height, resized_width=self.resized_width
        )


@dataclass(frozen=True, slots=True)
class MaxArea:
    """The largest size of at most `n_pixels` with the image's aspect ratio, never larger than the image."""

    n_pixels: int
    draft: bool = False

    def target(self, source_size: tuple[int, int]) -> tuple[int, int]:
        """Return ``(height, width)`` for an image of `source_size`."""
        height, width = source_size
        shrink = max(1.0, math.sqrt(height * width / self.n_pixels))
        return max(1, math.floor(height / shrink)), max(1, math.floor(width / shrink))


@dataclass(frozen=True, slots=True)
class KeepSize:
    """The size of each image itself."""

    draft: bool = False

    def target(self, source_size: tuple[int, int]) -> tuple[int, int]:
        """Return the size of the image."""
        return source_size


@dataclass(frozen=True, slots=True)
class ExactSize:
    """One size for every image."""

    height: int
    width: int
    draft: bool = False

    def target(self, source_size: tuple[int, int]) -> tuple[int, int]:
        """Return ``(height, width)``, whatever the size of the image."""
        return self.height, self.width


@functools.lru_cache(maxsize=1024)  # columns hold many images of few sizes, and each is computed twice
def target_size(
    source_size: tuple[int, int],
    geometry: PatchGeometry,
    *,
    resized_height: int | None = None,
    resized_width: int | None = None,
) -> tuple[int, int]:
    """Return the size that an image is resized to for a model.

    Parameters
    ----------
    source_size : tuple of int
        ``(height, width)`` of the image in pixels.
    geometry : PatchGeometry
        The checkpoint's, or the caller's pixel limits in it.
    resized_height, resized_width : int or None
        Requested size; where only one is given, the other follows from the image's aspect ratio.

    Returns
    -------
    tuple of int
        ``(height, width)``, multiples of ``geometry.factor`` within its pixel limits.

    Raises
    ------
    RowError
        The longer side is more than 200 times the shorter, of the stage ``resize``.

    Examples
    --------
    >>> from qwenvl_kit.types import PatchGeometry
    >>> target_size((480, 640), PatchGeometry())
    (476, 644)
    >>> target_size((480, 640), PatchGeometry(), resized_height=240)
    (252, 308)
    """
    height, width = source_size
    if resized_height and resized_width:
        height, width = resized_height, resized_width
    elif resized_height:
        height, width = resized_height, max(1, round(width * resized_height / height))
    elif resized_width:
        height, width = max(1, round(height * resized_width / width)), resized_width
    return smart_resize(height, width, geometry)


def smart_resize(height: int, width: int, geometry: PatchGeometry) -> tuple[int, int]:
    """Round to multiples of the token size within the pixel limits, keeping the aspect ratio as well as they allow.

    Equal to ``qwen_vl_utils.smart_resize`` wherever that returns a size at all. For extreme aspect ratios, where it
    returns a side of 0, the short side is one token and the long one what the limit leaves.

    Raises
    ------
    RowError
        The longer side is more than 200 times the shorter, of the stage ``resize``.
    """
    aspect = max(height, width) / min(height, width)
    if aspect > MAX_ASPECT:
        raise RowError(
            "resize",
            f"Aspect ratio {aspect:.0f}:1 of a {width}×{height} image exceeds the model's limit of {MAX_ASPECT}:1. "
            "Crop it, or set both resized_height and resized_width.",
        )
    factor = geometry.factor
    rounded = max(factor, round(height / factor) * factor), max(factor, round(width / factor) * factor)
    area = rounded[0] * rounded[1]
    if area > geometry.max_pixels:
        shrink = math.sqrt(height * width / geometry.max_pixels)
        return _clamp_extreme_aspect(_floor(height / shrink, factor), _floor(width / shrink, factor), geometry)
    if area < geometry.min_pixels:
        grow = math.sqrt(geometry.min_pixels / (height * width))
        return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return rounded


def resize(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize uint8 ``(H, W, 3)`` to ``size = (height, width)``, bicubic as ``qwen_vl_utils`` does it."""
    if pixels.shape[:2] == size:
        return pixels
    return to_array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))


def _floor(value: float, factor: int) -> int:
    return math.floor(value / factor) * factor


def _clamp_extreme_aspect(height: int, width: int, geometry: PatchGeometry) -> tuple[int, int]:
    if height and width:
        return height, width
    factor = geometry.factor
    longest = max(factor, _floor(geometry.max_pixels / factor, factor))
    return (factor, min(width, longest)) if width else (min(height, longest) or factor, factor)
