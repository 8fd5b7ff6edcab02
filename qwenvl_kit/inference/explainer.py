"""Protocol of a backend's tracing of answers to images, and the guard around its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from qwenvl_kit.errors import RowError
from qwenvl_kit.inference.oom import is_device_lost, is_out_of_memory

if TYPE_CHECKING:
    from qwenvl_kit.attribution import AnswerMaps
    from qwenvl_kit.inference.sequence import Sequence


class Explainer(Protocol):
    """Trace the words of answers to visual tokens."""

    def explain(self, sequence: Sequence, slot: int) -> AnswerMaps:
        """Return the maps of a finished answer.

        Parameters
        ----------
        sequence : Sequence
            Finished; its request has an attribution.
        slot : int
            Holds the keys and values of its tokens but the last.
        """
        ...


def explained(explainer: Explainer | None, sequence: Sequence, slot: int) -> AnswerMaps:
    """Return the maps of a finished answer.

    Raises
    ------
    RowError
        The backend has no `Explainer`, memory ran out, or a library failed.
    """
    if explainer is None:
        raise RowError("generate", "This backend cannot trace words to images. Use backend='torch'.")
    try:
        return explainer.explain(sequence, slot)
    except RowError:
        raise
    except Exception as error:
        if is_device_lost(error):
            raise
        if is_out_of_memory(error):
            message = (
                f"Out of memory while tracing an answer to {len(sequence.visual_indices)} visual tokens. Lower "
                "max_pixels, or use method='attention'."
            )
        else:
            message = f"Failed tracing the answer ({type(error).__name__}: {error}). Change this row and run again."
        raise RowError("generate", message) from error
