"""The frozen values between the steps of a run: ImageSource → LoadedImage → Request → Result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qwenvl_kit.attribution import AnswerMaps, Attribution
    from qwenvl_kit.errors import RowError, Stage

SourceKind = Literal["url", "path", "remote", "base64", "bytes", "pil", "array"]
Status = Literal["ok", "null_image", "error", "cancelled"]
FinishReason = Literal["stop", "length", "repetition"]


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image as passed by the caller: classified, not yet read.

    Attributes
    ----------
    kind : str
        ``url`` (http, https), ``path``, ``remote`` (s3, tos and other fsspec URLs), ``base64``, ``bytes``,
        ``pil`` or ``array``.
    value : object
        The cell itself, or its URL.
    label : str
        A short name for messages, without secrets.
    key : str
        Equal for equal images within a run; rows with the same key share one fetch.
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
        RGB, upright, in the size of the model's input.
    digest : str
        Digest of the encoded bytes, or of the pixels of an array. With `size` it identifies the content.
    source_size : tuple of int
        ``(height, width)`` in pixels before resizing.
    label : str
        A short name for messages, without secrets.
    version : str or None
        Validator of the source, such as an ETag, or time and size; equal while it is unchanged.
    address : str or None
        With ``image_mode="url"``: the URL to hand over; there are no pixels then.
    """

    pixels: NDArray[np.uint8]
    digest: str
    source_size: tuple[int, int]
    label: str = ""
    version: str | None = None
    address: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """``(height, width)`` of the model's input, in pixels."""
        height, width = self.pixels.shape[:2]
        return int(height), int(width)


@dataclass(frozen=True, slots=True)
class PatchGeometry:
    """How a checkpoint splits images into visual tokens.

    Attributes
    ----------
    patch : int
        Side of a patch in pixels.
    merge : int
        Patches per side of one visual token.
    min_pixels, max_pixels : int
        Limits of an image's area, in pixels.
    """

    patch: int = 14
    merge: int = 2
    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 16384 * 28 * 28

    @property
    def factor(self) -> int:
        """Side of a visual token, in pixels."""
        return self.patch * self.merge


WIDTH, HEIGHT = "{width}", "{height}"
"""The size of the image that a model gets, in a constraint that holds for any."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What every generated answer matches as a whole.

    Attributes
    ----------
    kind : {"json", "regex", "choices"}
        How to read `source`.
    source : str
        A JSON Schema, a regular expression, or a JSON list of texts. Equal constraints have equal sources.
    is_sized : bool
        The source is JSON with `WIDTH` and `HEIGHT` in the place of numbers: see `at`.
    """

    kind: Literal["json", "regex", "choices"]
    source: str
    is_sized: bool = False

    def at(self, height: int, width: int) -> Constraint:
        """Return the constraint for an image of this size, in pixels as a model gets it.

        Examples
        --------
        >>> Constraint("json", '{"maximum":"{width}"}', is_sized=True).at(476, 644).source
        '{"maximum":644}'
        """
        if not self.is_sized:
            return self
        sides = {WIDTH: width, HEIGHT: height}
        source = self.source
        for name, side in sides.items():  # as values only: within a text, such as a label, the quotes are escaped
            source = source.replace(f':"{name}"', f":{side}")
        return Constraint(self.kind, source)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, and the answers to choose from.

    Attributes
    ----------
    text : str
        The prompt.
    labels : tuple of str
        Answers whose likelihood is computed instead of generating one; none for a free answer.
    constraint : Constraint or None
        What a generated answer must match.
    attribution : Attribution or None
        How the words of a generated answer are traced to its images.
    """

    text: str
    labels: tuple[str, ...] = ()
    constraint: Constraint | None = None
    attribution: Attribution | None = None


RowPrompt: TypeAlias = "str | Prompt | RowError | None"
"""The prompt of a row, or the error that the row has instead; None is that of a row without a prompt."""


class ImageSizes(TypedDict):
    """The sizes of a row's first image in a `Result`, in pixels; None for an address."""

    height: int | None
    width: int | None
    source_height: int | None
    source_width: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One prompt with its images; its `Result` has the same `row`."""

    row: int
    images: tuple[LoadedImage, ...]
    prompt: str
    system: str | None
    seed: int | None
    max_new_tokens: int
    labels: tuple[str, ...] = ()
    constraint: Constraint | None = None
    attribution: Attribution | None = None
    start_with: str = ""

    @property
    def sizes(self) -> ImageSizes:
        """The sizes that its result holds."""
        if self.images[0].address is not None:
            return ImageSizes(height=None, width=None, source_height=None, source_width=None)
        (height, width), (source_height, source_width) = self.images[0].size, self.images[0].source_size
        return ImageSizes(height=height, width=width, source_height=source_height, source_width=source_width)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one row.

    Attributes
    ----------
    text : str or None
        The answer; None unless `status` is ``ok``.
    status : {"ok", "null_image", "error", "cancelled"}
    error, stage : str or None
        Error message and the stage at which it occurred.
    finish_reason : {"stop", "length", "repetition"} or None
        ``length``: cut by ``max_caption_length``; ``repetition``: by ``stop_repetition``.
    prompt_tokens, new_tokens : int or None
        Token counts; `prompt_tokens` includes visual tokens.
    height, width : int or None
        Size of the model's input for the row's first image, in pixels.
    source_height, source_width : int or None
        Size of that image before resizing, upright; None for results that earlier versions stored.
    seconds : float
        The row's share of the backend's time.
    cached : bool
        Whether the answer comes from an equal row or the store.
    flag : str or None
        Why an answer is doubtful, such as one that repeats a phrase to its end.
    token_logprobs : tuple of float or None
        Log-probability of each token of the answer, and of the one that ended it, before penalties and warping; None
        unless ``logprobs`` was given.
    token_texts : tuple of str or None
        Text of each; empty for the token that ended the answer.
    alternative_logprobs, alternative_texts : tuple or None
        The same of the likeliest tokens in each place, place by place.
    label_logprobs : tuple of float or None
        Log-likelihood of each label of the prompt as the whole answer, end of turn included.
    label_tokens : tuple of int or None
        Tokens of each label, end of turn included.
    maps : AnswerMaps or None
        Where the words of the answer come from, if that was asked for.
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
    source_height: int | None = None
    source_width: int | None = None
    seconds: float = 0.0
    cached: bool = False
    flag: str | None = None
    token_logprobs: tuple[float, ...] | None = None
    token_texts: tuple[str, ...] | None = None
    alternative_logprobs: tuple[float, ...] | None = None
    alternative_texts: tuple[str, ...] | None = None
    label_logprobs: tuple[float, ...] | None = None
    label_tokens: tuple[int, ...] | None = None
    maps: AnswerMaps | None = None

    def for_row(self, row: int, *, cached: bool = False) -> Result:
        """Return the result for another row; a cached one has zero seconds."""
        return replace(self, row=row, cached=True, seconds=0.0) if cached else replace(self, row=row)

    @classmethod
    def failed(cls, row: int, error: RowError, *, sizes: ImageSizes | None = None) -> Result:
        """Return the result of a failed row."""
        failed = cls(row, "error", error=error.message, stage=error.stage)
        return failed if sizes is None else replace(failed, **sizes)
