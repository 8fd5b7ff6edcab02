"""The whole way of one picture: `ImageSource` → bytes → upright RGB → `Picture` of the size the model sees.

It holds the order of the steps and their limits; each step knows only its own.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from qwenvl_kit._cpu import available_cpus
from qwenvl_kit.errors import RowError
from qwenvl_kit.images.decode import decode_array, decode_bytes, decode_pil, read_size
from qwenvl_kit.images.fetch import FetchLimits, fetch
from qwenvl_kit.images.resize import resize, target_size
from qwenvl_kit.records import Picture

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwenvl_kit.config import Config
    from qwenvl_kit.records import Geometry, ImageSource

# Fetching waits, decoding works: more decoders than cores would only hold more full-size pictures in memory.
_decoding = threading.BoundedSemaphore(max(2, available_cpus()))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one picture may cost."""

    fetch: FetchLimits
    max_image_pixels: int
    decode_timeout_s: float = 2.0

    @classmethod
    def of(cls, config: Config) -> Self:
        """The limits that a config asks for."""
        return cls(FetchLimits.of(config), config.max_image_pixels, config.decode_timeout_s)


@dataclass(frozen=True, slots=True)
class Sizing:
    """What size pictures are brought to."""

    geometry: Geometry
    resized_height: int | None = None
    resized_width: int | None = None
    draft: bool = False

    @classmethod
    def of(cls, config: Config, geometry: Geometry) -> Self:
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
            config.decode == "draft",
        )

    def target(self, source_size: tuple[int, int]) -> tuple[int, int]:
        """``(height, width)`` in pixels that a picture of `source_size` is given to the model in."""
        return target_size(
            source_size, self.geometry, resized_height=self.resized_height, resized_width=self.resized_width
        )


def load(source: ImageSource, sizing: Sizing, limits: Limits) -> Picture:
    """Make a `Picture` of a source.

    Parameters
    ----------
    source : ImageSource
        From `identify`.
    sizing : Sizing
        The size wanted.
    limits : Limits
        What it may cost.

    Returns
    -------
    Picture
        Resized exactly once.

    Raises
    ------
    RowError
        Of the stage ``fetch``, ``decode`` or ``resize``.
    """
    if source.kind in ("pil", "array"):
        with _decoding:
            return _from_pixels(source, sizing, limits)
    fetched = fetch(source, limits.fetch)
    with _decoding:
        return replace(_from_bytes(fetched.data, source, sizing, limits), mark=fetched.mark)


def _from_bytes(data: bytes, source: ImageSource, sizing: Sizing, limits: Limits) -> Picture:
    draft_size = _draft_size(data, sizing) if sizing.draft else None
    pixels, source_size = decode_bytes(
        data, source.label, max_image_pixels=limits.max_image_pixels, draft_size=draft_size
    )
    return _picture(pixels, hashlib.blake2b(data, digest_size=16).hexdigest(), source_size, source, sizing)


def _from_pixels(source: ImageSource, sizing: Sizing, limits: Limits) -> Picture:
    decode = decode_pil if source.kind == "pil" else decode_array
    pixels: NDArray[np.uint8] = decode(source.value, source.label, max_image_pixels=limits.max_image_pixels)
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
    digest.update(repr(pixels.shape).encode())
    return _picture(pixels, digest.hexdigest(), pixels.shape[:2], source, sizing)


def _picture(
    pixels: NDArray[np.uint8], digest: str, source_size: tuple[int, ...], source: ImageSource, sizing: Sizing
) -> Picture:
    height, width = source_size
    try:
        size = sizing.target((height, width))
    except RowError as error:
        raise RowError(error.stage, f"{source.label}: {error.message}") from error
    return Picture(resize(pixels, size), digest, (height, width), source.label)


def _draft_size(data: bytes, sizing: Sizing) -> tuple[int, int] | None:
    """Smallest size to decode at; None where the picture is refused anyway, which decoding will tell."""
    size = read_size(data)
    if size is None:
        return None
    try:
        return sizing.target(size)
    except RowError:
        return None
