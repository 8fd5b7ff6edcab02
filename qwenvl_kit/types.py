"""The frozen values that travel between the steps: image source → picture → request → result.

They know nothing of each other's makers: no frame, no URL client, no tensor appears here.
"""

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
    """One picture as the caller gave it, classified but not yet read.

    Attributes
    ----------
    kind : str
        ``url`` (http, https), ``path``, ``remote`` (s3, tos and what else fsspec opens), ``base64``, ``bytes``,
        ``pil`` or ``array``.
    value : object
        The cell itself, or the address in it.
    label : str
        A short name for messages, free of secrets.
    key : str
        Equal for equal pictures within a run; rows that share it share one fetch.
    """

    kind: SourceKind
    value: Any
    label: str
    key: str


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImage:
    """A picture ready for a model.

    Attributes
    ----------
    pixels : uint8 array (H, W, 3)
        RGB, upright, already of the size the model sees.
    digest : str
        Of the encoded bytes, or of the raw pixels where there were none. With `size` it names the content.
    source_size : tuple of int
        ``(height, width)`` in pixels before resizing.
    label : str
        A short name for messages, free of secrets.
    version : str or None
        By which the picture's place tells later whether it still holds the same: an ETag, or time and size.
    """

    pixels: NDArray[np.uint8]
    digest: str
    source_size: tuple[int, int]
    label: str = ""
    version: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """``(height, width)`` in pixels that the model sees."""
        height, width = self.pixels.shape[:2]
        return int(height), int(width)


@dataclass(frozen=True, slots=True)
class PatchGeometry:
    """How a checkpoint cuts pictures into tokens.

    Attributes
    ----------
    patch : int
        Side of a patch in pixels.
    merge : int
        Patches per side that become one visual token.
    min_pixels, max_pixels : int
        Limits on the area of a picture, in pixels.
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
    """One question to a model; `row` is handed back with its `Result`."""

    row: int
    images: tuple[LoadedImage, ...]
    prompt: str
    system: str | None
    seed: int | None
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one row.

    Attributes
    ----------
    text : str or None
        The answer; None unless `status` is ``ok``.
    status : {"ok", "null_image", "error", "cancelled"}
    error, stage : str or None
        What went wrong, and where.
    finish_reason : {"stop", "length", "repetition"} or None
        ``length`` when the answer was cut by ``max_caption_length``, ``repetition`` when by ``stop_repetition``.
    prompt_tokens, new_tokens : int or None
        Counts of tokens, visual ones among the former.
    height, width : int or None
        Size in pixels that the model saw (of the row's first picture).
    seconds : float
        The row's share of the backend's time.
    cached : bool
        The answer was taken from an equal row or from the store.
    flag : str or None
        Why an answer should not be believed as it stands, such as one that repeats itself to its end.
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
        """The same result under another row number; a cached one cost no time."""
        return replace(self, row=row, cached=True, seconds=0.0) if cached else replace(self, row=row)

    @classmethod
    def failed(cls, row: int, error: RowError, *, size: tuple[int, int] | None = None) -> Result:
        """The result of a row that met `error`."""
        height, width = size or (None, None)
        return cls(row, "error", error=error.message, stage=error.stage, height=height, width=width)
