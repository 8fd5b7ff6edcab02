"""Frozen values that pass between the steps: image source → loaded image → request → result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qwenvl_kit.errors import RowError, Stage

SourceKind = Literal["url", "path", "remote", "base64", "bytes", "pil", "array"]
Status = Literal["ok", "null_image", "error", "cancelled"]
FinishReason = Literal["stop", "length", "repetition"]


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image of a cell, classified but not yet read.

    Attributes
    ----------
    kind : str
        ``url`` (http, https), ``path``, ``remote`` (s3, tos and other schemes of fsspec), ``base64``, ``bytes``,
        ``pil`` or ``array``.
    value : object
        The content of the cell, or its URL or path.
    label : str
        A short name for messages, free of secrets.
    key : str
        Equal for equal images within a run; rows that share it share one fetch.
    """

    kind: SourceKind
    value: Any
    label: str
    key: str


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImage:
    """An image ready for a model.

    Attributes
    ----------
    pixels : uint8 array (H, W, 3)
        RGB, upright, resized.
    digest : str
        Digest of the encoded bytes, or of the raw pixels of an image in memory. With `size` it identifies `pixels`.
    source_size : tuple of int
        ``(height, width)`` in pixels before resizing.
    label : str
        A short name for messages, free of secrets.
    version : str or None
        ETag or date of a URL, time and size of a file: equal as long as the source is unchanged.
    """

    pixels: NDArray[np.uint8]
    digest: str
    source_size: tuple[int, int]
    label: str = ""
    version: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """``(height, width)`` of `pixels`."""
        height, width = self.pixels.shape[:2]
        return int(height), int(width)


@dataclass(frozen=True, slots=True)
class PatchGeometry:
    """Patch size, merge size and pixel limits of a checkpoint.

    Attributes
    ----------
    patch : int
        Side of a patch in pixels.
    merge : int
        Patches per side that become one visual token.
    min_pixels, max_pixels : int
        Limits on the area of a resized image, in pixels.
    """

    patch: int = 14
    merge: int = 2
    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 16384 * 28 * 28

    @property
    def factor(self) -> int:
        """Side in pixels of the square that becomes one visual token."""
        return self.patch * self.merge


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One prompt with its images; its `Result` has the same `row`."""

    row: int
    images: tuple[LoadedImage, ...]
    prompt: str
    system: str | None
    seed: int | None
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one row.

    Attributes
    ----------
    text : str or None
        The answer; None unless `status` is ``ok``.
    status : {"ok", "null_image", "error", "cancelled"}
    error, stage : str or None
        Message and stage of the error.
    finish_reason : {"stop", "length", "repetition"} or None
        ``length`` where ``max_caption_length`` ended the answer, ``repetition`` where ``stop_repetition`` did.
    prompt_tokens, new_tokens : int or None
        Counts of tokens; the prompt's include visual ones.
    height, width : int or None
        Size in pixels of the row's first image, resized.
    seconds : float
        The row's share of the backend's time.
    cached : bool
        The answer comes from an equal row or from the store.
    flag : str or None
        Warning on the answer, such as that it repeats itself to its end.
    """

    row: int
    status: Status
    text: str | None = None
    error: str | None = None
    stage: Stage | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    height: int | None = None
    width: int | None = None
    seconds: float = 0.0
    cached: bool = False
    flag: str | None = None

    def for_row(self, row: int, *, cached: bool = False) -> Result:
        """Return the result under another row number; a cached one took no time."""
        return replace(self, row=row, cached=True, seconds=0.0) if cached else replace(self, row=row)

    @classmethod
    def failed(cls, row: int, error: RowError, *, size: tuple[int, int] | None = None) -> Result:
        """Return the result of a row with an error."""
        height, width = size or (None, None)
        return cls(row, "error", error=error.message, stage=error.stage, height=height, width=width)
