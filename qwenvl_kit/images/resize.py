"""Sizes in, the size that the model sees out; then one bicubic resize to it.

The arithmetic is that of ``qwen_vl_utils.smart_resize`` (Apache-2.0,
https://github.com/QwenLM/Qwen2.5-VL/blob/main/qwen-vl-utils/src/qwen_vl_utils/vision_process.py),
which cannot be imported without torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
from PIL import Image

from qwenvl_kit.errors import RowError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwenvl_kit.options import Config
    from qwenvl_kit.types import PatchGeometry

_BAND_PIXELS = 1 << 21
MAX_ASPECT = 200
"""Longest side over shortest side above which the family refuses a picture."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """What size pictures are brought to."""

    geometry: PatchGeometry
    resized_height: int | None = None
    resized_width: int | None = None
    draft: bool = False

    @classmethod
    def of(cls, config: Config, geometry: PatchGeometry) -> Self:
        """The checkpoint's geometry with the config's limits and sizes in it.

        A limit given alone moves the other where they would cross.
        """
        least = config.min_pixels or geometry.min_pixels
        most = config.max_pixels or geometry.max_pixels
        if least > most:
            least, most = (least, least) if config.max_pixels is None else (most, most)
        return cls(
            replace(geometry, min_pixels=least, max_pixels=most),
            config.resized_height,
            config.resized_width,
            config.image_decode == "draft",
        )

    def target(self, source_size: tuple[int, int], label: str = "") -> tuple[int, int]:
        """Return the ``(height, width)`` in pixels that an image of `source_size` is given to the model in.

        Raises
        ------
        RowError
            As `target_size`; `label` names the image in the message.
        """
        try:
            return target_size(
                source_size, self.geometry, resized_height=self.resized_height, resized_width=self.resized_width
            )
        except RowError as error:
            raise RowError(error.stage, f"{label}: {error.message}" if label else error.message) from error


@functools.lru_cache(maxsize=1024)  # columns hold many images of few sizes, and each is asked for twice
def target_size(
    source_size: tuple[int, int],
    geometry: PatchGeometry,
    *,
    resized_height: int | None = None,
    resized_width: int | None = None,
) -> tuple[int, int]:
    """The size that a picture is given to the model in.

    Parameters
    ----------
    source_size : tuple of int
        ``(height, width)`` of the picture in pixels.
    geometry : PatchGeometry
        The checkpoint's, or the caller's pixel limits in it.
    resized_height, resized_width : int or None
        Size asked for; where only one is given, the other follows from the picture's aspect ratio.

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

    Equal to ``qwen_vl_utils.smart_resize`` wherever that gives a size at all; for needles, where it gives a side of 0,
    the short side is one token and the long one what the limit leaves.

    Raises
    ------
    RowError
        The longer side is more than 200 times the shorter, of the stage ``resize``.
    """
    aspect = max(height, width) / min(height, width)
    if aspect > MAX_ASPECT:
        raise RowError(
            "resize",
            f"a picture of {width}×{height} is too long: its sides are {aspect:.0f} : 1, at most {MAX_ASPECT} : 1 is "
            "understood; crop it, or give both resized_height and resized_width",
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
    return to_array(resize_image(Image.fromarray(pixels), size))


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of an RGB image, uint8 ``(H, W, 3)``.

    NumPy's own conversion holds three copies on the way; a large image takes it in bands.
    """
    if image.width * image.height <= _BAND_PIXELS:
        return np.asarray(image, np.uint8)  # which refuses what NumPy could only take for an object
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    top = 0
    for band in bands(image):
        pixels[top : top + len(band)] = band
        top += len(band)
    return pixels


def bands(image: Image.Image) -> Iterator[NDArray[np.uint8]]:
    """Give the pixels of an RGB image some rows at a time, uint8 ``(h, W, 3)``."""
    n_rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, n_rows):
        yield np.asarray(image.crop((0, top, image.width, min(top + n_rows, image.height))), np.uint8)


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an RGB image to ``size = (height, width)``, as `resize` does."""
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def _floor(value: float, factor: int) -> int:
    return math.floor(value / factor) * factor


def _clamp_extreme_aspect(height: int, width: int, geometry: PatchGeometry) -> tuple[int, int]:
    if height and width:
        return height, width
    factor = geometry.factor
    longest = max(factor, _floor(geometry.max_pixels / factor, factor))
    return (factor, min(width, longest)) if width else (min(height, longest) or factor, factor)
