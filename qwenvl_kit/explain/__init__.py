"""Where the words of an answer come from: maps over the images, checked against the model itself."""

from qwenvl_kit.explain.explanation import Explanation
from qwenvl_kit.explain.explanations import Explanations

__all__ = ["Explanation", "Explanations"]
