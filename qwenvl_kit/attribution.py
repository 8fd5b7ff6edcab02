"""Records of where the words of an answer come from: what is asked of a backend, and the maps that come back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Method = Literal["attention", "occlusion", "gradient"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """How the words of an answer are traced to the visual tokens of its images.

    Attributes
    ----------
    method : {"attention", "occlusion", "gradient"}
        Attention of the tokens that write a word; what its log-probability loses when visual tokens are hidden; or
        input times gradient.
    layers : tuple of int, "all" or None
        Layers whose attention counts; negative ones count from the last. ``"all"`` keeps each by itself, None takes the
        second half of the layers.
    heads : tuple of int or None
        Heads whose attention counts; None is all.
    correct : bool
        Subtract the attention that a grey image of the same size gets for the same answer.
    grid : int
        Most hidden groups of visual tokens along a side of an image.
    n_steps : int
        Points of the deletion and insertion curves; 0 computes none.
    """

    method: Method = "attention"
    layers: tuple[int, ...] | Literal["all"] | None = None
    heads: tuple[int, ...] | None = None
    correct: bool = True
    grid: int = 8
    n_steps: int = 0

    @property
    def key(self) -> dict[str, Any]:
        """What tells its maps from those of another one."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Probability of a word while visual tokens are hidden one after the other, or shown one after the other.

    Attributes
    ----------
    shares : float array (S,)
        Shares of the visual tokens, from 0 to 1.
    deletion, insertion : float array (S,)
        Probability of the word with the strongest share hidden, or with only the strongest share shown.
    random_deletion, random_insertion : float array (R, S)
        The same in random orders.
    """

    shares: NDArray[np.float64]
    deletion: NDArray[np.float64]
    insertion: NDArray[np.float64]
    random_deletion: NDArray[np.float64]
    random_insertion: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class WordMap:
    """A word of an answer and its weights.

    Attributes
    ----------
    text : str
        The word.
    begin, end : int
        Its characters in the answer.
    logprob : float
        Sum of the log-probabilities of its tokens, before penalties and temperature.
    weights : float32 array (L, n_visual)
        Of each visual token, image by image and row by row; one row unless all layers were asked for.
    curves : Curves or None
        Where they were asked for.
    """

    text: str
    begin: int
    end: int
    logprob: float
    weights: NDArray[np.float32]
    curves: Curves | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AnswerMaps:
    """The words of one answer.

    Attributes
    ----------
    words : tuple of WordMap
        In the order of the answer; punctuation belongs to none.
    grids : tuple of (int, int)
        Rows and columns of visual tokens of each image.
    sizes : tuple of (int, int)
        ``(height, width)`` of each upright image before resizing, in pixels.
    layers : tuple of int
        The layers whose attention counts; empty for other methods.
    """

    words: tuple[WordMap, ...]
    grids: tuple[tuple[int, int], ...]
    sizes: tuple[tuple[int, int], ...]
    layers: tuple[int, ...] = ()
