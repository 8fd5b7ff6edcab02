"""Verbs of ``df.vl`` whose answers have a form: labels with probabilities."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Unpack

import pandas as pd

from qwenvl_kit.columns import pick_column, pick_labels, pick_prompts
from qwenvl_kit.frame_run import classify_rows
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.options import Options
from qwenvl_kit.signatures import expand_options
from qwenvl_kit.tasks.classify import Classification, Normalize, Prior

Prompts = Hashable | Sequence[str | None] | pd.Series
Labels = Hashable | Sequence[str] | Sequence[Sequence[str]] | pd.Series


class StructuredAnswers:
    """Base of ``df.vl``.

    Parameters
    ----------
    frame : DataFrame
        The frame.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame

    @expand_options
    def classify(
        self,
        column: Hashable,
        labels: Labels,
        *,
        prompts: Prompts | None = None,
        normalize: Normalize = "sum",
        prior: Prior | None = None,
        all: bool = False,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.DataFrame:
        """Choose the likeliest of some labels for each image, with its probability; nothing is generated.

        The likelihood of a label is that of the whole answer: all its tokens and the end of the turn, before
        temperature and repetition penalty. An image and its prompt are read once for all labels.

        Parameters
        ----------
        column : label
            Column of images, as for `caption`.
        labels : sequence of str, label or Series
            At least two, for all rows; or a column of lists, one per row.
        prompts : label, Series or sequence of str, optional
            As for `caption`. Without it and `prompt`, each row is asked which of its labels fits best.
        normalize : {"sum", "length"}
            ``length`` compares the mean log-likelihood of a token, for labels of unequal length.
        prior : {"blank"}, optional
            Subtract the log-likelihoods that a blank image of the same size gives, so that a label is not chosen
            because it is a likely answer to the prompt.
        all : bool
            Return a column with the probability of each label as well.
        control, **options
            As for `caption`. Options that change generated answers only are refused or ignored.

        Returns
        -------
        DataFrame
            ``label`` and ``probability``, which sums to one over a row's labels; missing for null images and failed
            rows. ``qwenvl_kit.last_run()`` has the log-likelihoods (``label_logprobs``) and token counts.

        Raises
        ------
        ConfigError
            Labels are fewer than two, equal or no texts; ``backend="echo"``.
        ColumnNotFound, UnknownOption, ModelNotFound, RowErrors, Interrupted
            As for `caption`.

        Examples
        --------
        >>> import pandas as pd, qwenvl_kit
        >>> from qwenvl_kit.demo import draw, sample_scenes
        >>> df = pd.DataFrame({"image": [draw(scene) for scene in sample_scenes(2, seed=3)]})
        >>> asked = {"prompt": "Is there a red circle?", "model_name": "demo", "progress": False}
        >>> df.vl.classify("image", ["Yes.", "No."], **asked).columns.tolist()
        ['label', 'probability']
        """
        cells, asked = pick_column(self._frame, column), pick_prompts(self._frame, prompts)
        return classify_rows(
            cells, pick_labels(self._frame, labels), asked, Classification(normalize, prior, all), control, options
        )
