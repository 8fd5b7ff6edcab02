"""Read the size of an image from the first bytes of its file, without decoding it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.arrays import check_shape
from qwenvl_kit.images.decode import size_in_header
from qwenvl_kit.images.fetch.dispatch import fetch
from qwenvl_kit.images.fetch.limits import FetchLimits
from qwenvl_kit.images.formats import format_of
from qwenvl_kit.images.probe import check_pixels, probe
from qwenvl_kit.images.rgb import orientation_of, upright_size
from qwenvl_kit.images.source_context import source_context

if TYPE_CHECKING:
    from qwenvl_kit.options import FetchOptions
    from qwenvl_kit.types import ImageSource

HEAD_BYTES = 1 << 16
"""Read from the start of a file. Cameras put up to 64 KB of EXIF before a JPEG's size; then the whole file is read."""

_FAILED = "Cannot read the image's size"
_HAS_EXIF = 0x08  # flag of WebP's VP8X chunk: https://developers.google.com/speed/webp/docs/riff_container


@dataclass(frozen=True, slots=True)
class HeaderReader:
    """Read the sizes of images under the limits of a run.

    Attributes
    ----------
    fetch_limits : FetchLimits
        Time, bytes, hosts and files allowed.
    max_image_pixels : int
        Largest width × height.
    """

    fetch_limits: FetchLimits
    max_image_pixels: int

    @classmethod
    def of(cls, options: FetchOptions) -> Self:
        """Return a reader under the limits of options."""
        return cls(FetchLimits.of(options), options.max_image_pixels)

    def size(self, source: ImageSource) -> tuple[int, int]:
        """Return the upright ``(height, width)`` of an image in pixels.

        A file whose first 64 KiB do not tell is read whole, as a run reads it. Pixels are never decoded, so a file that
        breaks off behind its header has a size here and is an error in a run. Two sizes differ from a run's: of a PNG
        with its orientation behind the pixels, and of an ICO whose directory lies.

        Raises
        ------
        RowError
            Of the stage ``fetch`` or ``decode``.
        """
        with source_context(source.label, "decode", _FAILED):
            if source.kind in ("pil", "array"):
                return self._size_in_memory(source)
            if source.kind in ("bytes", "base64"):
                return self._size_in(fetch(source, self.fetch_limits).data)
            head = fetch(source, self.fetch_limits.of_head(HEAD_BYTES)).data
            format_of(head)  # what is no image is not read further
            try:
                return self._size_in(head)
            except RowError:
                return self._size_in(fetch(source, self.fetch_limits).data)

    def _size_in(self, data: bytes) -> tuple[int, int]:
        if data[12:16] in (b"VP8 ", b"VP8L") or (data[12:16] == b"VP8X" and not data[20] & _HAS_EXIF):
            found = probe(data, max_image_pixels=self.max_image_pixels)
            if found.format == "WEBP" and found.size is not None:  # whose reader would need the whole file
                return found.size
        return size_in_header(data, max_image_pixels=self.max_image_pixels)

    def _size_in_memory(self, source: ImageSource) -> tuple[int, int]:
        value = source.value
        if source.kind == "pil":
            size = upright_size(value, orientation_of(value, reads_pixels=False))
        else:
            check_shape(value)
            size = value.shape[0], value.shape[1]
        check_pixels(*size, self.max_image_pixels)
        return size
