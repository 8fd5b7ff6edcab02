"""Verbs of ``df.vl`` whose answers are places in the images: boxes and points of objects."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Unpack

import pandas as pd

from qwenvl_kit.columns import pick_column, pick_labels, pick_prompts
from qwenvl_kit.constrained_run import ground_rows
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.options import Options
from qwenvl_kit.signatures import expand_options
from qwenvl_kit.tasks.box_parser import Kind
from qwenvl_kit.tasks.grounding_prompts import Language

Prompts = Hashable | Sequence[str | None] | pd.Series
ObjectLabels = Hashable | Sequence[str] | Sequence[Sequence[str]] | pd.Series


class GroundedAnswers:
    """Base of ``df.vl``."""

    _frame: pd.DataFrame

    @expand_options
    def detect(
        self,
        column: Hashable,
        labels: ObjectLabels | None = None,
        *,
        prompts: Prompts | None = None,
        constrain: bool = False,
        language: Language | None = None,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.DataFrame:
        """Find the boxes of objects in each image, in pixels of the original.

        The model answers in pixels of its input, which is resized. Here they are those of the upright original: after
        its EXIF turn, before resizing.

        Parameters
        ----------
        column : label
            Column of images, as for `caption`, one per row.
        labels : list of str, label or Series, optional
            What to find, for all rows; or a column with a label or a list of labels per row, where a missing value
            means any object. Default: any object.
        prompts : label, Series or sequence of str, optional
            As for `caption`. Without it and `prompt`, each row is asked for its labels.
        constrain : bool
            Constrain answers while they are generated to a list of boxes with these labels.
        language : {"en", "zh"}, optional
            Of the prompts; default: Chinese where a label of the row has a Chinese character, else English.
        control, **options
            As for `caption`. Defaults differ: ``max_caption_length`` is 1024, and ``logprobs`` 0, for the scores.

        Returns
        -------
        DataFrame
            A row per object, in the order of images and answers: ``row`` (index label of the image), ``label``, ``x0``,
            ``y0``, ``x1``, ``y1`` (pixels of the original; ``0 <= x0 < x1 <= width``), ``score`` (0 to 1; NaN where the
            backend gives no log-probabilities), ``text`` (of the answer), ``clipped`` (whether the box was clipped to
            the image, or its corners put in order), ``width``, ``height`` (of the original).
            `qwenvl_kit.boxes.pictures` makes a frame of its ``attrs["rows"]``, under the index of the images:
            ``status``, ``error``, ``n_objects``, ``n_unread``, ``n_repeated``, ``unread`` (texts that are no box in the
            image), ``raw`` (the answer), ``width``, ``height``. A row with status ``ok`` and without objects was
            answered so. A cut answer has status ``error``, and its complete boxes are kept.

        Raises
        ------
        ConfigError
            Labels or language are invalid; beam search or ``backend="echo"`` with ``constrain=True``; coordinates of
            the model's family are not known.
        MissingExtra
            llguidance is not installed.
        ColumnNotFound, UnknownOption, ModelNotFound, RowErrors, Interrupted
            As for `caption`.

        Examples
        --------
        >>> df = pd.DataFrame({"image": [None]})
        >>> found = df.vl.detect("image", ["cat", "red car"], backend="echo", progress=False)
        >>> found.columns.tolist()
        ['row', 'label', 'x0', 'y0', 'x1', 'y1', 'score', 'text', 'clipped', 'width', 'height']
        >>> found.attrs["rows"]["status"]
        ['null_image']
        """
        return self._ground("box", column, labels, prompts, control, options, constrain=constrain, language=language)

    @expand_options
    def point(
        self,
        column: Hashable,
        labels: ObjectLabels | None = None,
        *,
        prompts: Prompts | None = None,
        constrain: bool = False,
        language: Language | None = None,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.DataFrame:
        """Find a point on each object, in pixels of the original; otherwise as `detect`.

        Returns
        -------
        DataFrame
            As of `detect`, with ``x`` and ``y`` in place of the box. Points outside of the image are unread.

        Raises
        ------
        ConfigError, MissingExtra, ColumnNotFound, UnknownOption, ModelNotFound, RowErrors, Interrupted
            As for `detect`.

        Examples
        --------
        >>> df = pd.DataFrame({"image": [None]})
        >>> df.vl.point("image", ["猫"], backend="echo", progress=False).columns.tolist()
        ['row', 'label', 'x', 'y', 'score', 'text', 'clipped', 'width', 'height']
        """
        return self._ground("point", column, labels, prompts, control, options, constrain=constrain, language=language)

    def _ground(
        self,
        kind: Kind,
        column: Hashable,
        labels: ObjectLabels | None,
        prompts: Prompts | None,
        control: Control | None,
        options: Options,
        *,
        constrain: bool,
        language: Language | None,
    ) -> pd.DataFrame:
        cells, asked = pick_column(self._frame, column), pick_prompts(self._frame, prompts)
        some = None if labels is None else pick_labels(self._frame, labels)
        return ground_rows(cells, kind, some, asked, control, options, constrain=constrain, language=language)
