"""Verbs of ``df.vl`` that run no model: show images, and cut objects out of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Unpack

import pandas as pd

from qwenvl_kit.boxes.crops import crop_objects
from qwenvl_kit.boxes.views import BoxFrames
from qwenvl_kit.columns import labels_of, pick_column
from qwenvl_kit.contact_sheet import MAX_BYTES, SHOW_OPTIONS, ContactSheet, contact_sheet, show_config
from qwenvl_kit.options import FetchKeywords
from qwenvl_kit.signatures import expand_options


class ImageViews:
    """Base of ``df.vl``; its frame is ``_frame``."""

    _frame: pd.DataFrame

    @expand_options(only=SHOW_OPTIONS)
    def show(
        self,
        column: Hashable | None = None,
        captions: Hashable | Sequence[Hashable] | None = None,
        *,
        n_rows: int = 24,
        max_bytes: int = MAX_BYTES,
        boxes: BoxFrames | None = None,
        **options: Unpack[FetchKeywords],
    ) -> ContactSheet:
        """Show the images of a column as thumbnails, with the texts of other columns.

        Parameters
        ----------
        column : label, optional
            Column of images; default: the first column with images.
        captions : label or sequence of labels, optional
            Columns to write below each image; default: all others.
        n_rows : int
            Maximum number of images; the rest is counted.
        max_bytes : int
            Maximum size of the HTML, which a notebook saves; images beyond are counted, not shown.
        boxes : DataFrame or mapping, optional
            Boxes or points, as of ``df.vl.detect`` and ``df.vl.point``, to be drawn over the images; one colour per
            label. A mapping from names to frames shows each image once per frame. Objects of later frames are compared
            with the boxes of the first, such as ``{"truth": truth, "448 px": found}``.
        **options
            Options that concern reading images; see below.

        Returns
        -------
        ContactSheet
            Displays itself in a notebook; ``.html`` is the HTML, with escaped texts.

        Raises
        ------
        ColumnNotFound, ConfigError, UnknownOption
            The frame has no such column, or none with images; an option is invalid, or not one of these;
            `boxes` has other columns, or none of this frame's rows.

        Examples
        --------
        >>> import numpy as np
        >>> df = pd.DataFrame({"image": [np.zeros((56, 56, 3), np.uint8)], "caption": ["<b>black</b>"]})
        >>> "&lt;b&gt;black" in df.vl.show().html
        True
        """
        config = show_config(options, "show")
        named = None if captions is None else labels_of(self._frame, captions)
        for name in [*(named or []), *([] if column is None else [column])]:
            pick_column(self._frame, name)
        return contact_sheet(self._frame, column, named, n_rows=n_rows, max_bytes=max_bytes, config=config, boxes=boxes)

    @expand_options(only=SHOW_OPTIONS)
    def crop(
        self, column: Hashable, boxes: pd.DataFrame, *, margin: float = 0.0, **options: Unpack[FetchKeywords]
    ) -> pd.Series:
        """Cut the objects of a frame of boxes out of the images of a column, for the next question.

        Parameters
        ----------
        column : label
            Column of images, as for `caption`.
        boxes : DataFrame
            A row per object, as of ``df.vl.detect``: coordinates are pixels of the upright image.
        margin : float
            Added on each side, as a share of the box's width and height.
        **options
            Options that concern reading images; see below.

        Returns
        -------
        Series of PIL.Image.Image
            RGB, under the index of `boxes`, with every pixel that a box touches. None, with a warning, where the image
            cannot be read, has another size than `boxes` says, or does not reach the box.

        Raises
        ------
        ColumnNotFound, ConfigError, UnknownOption
            The frame has no such column, or its index has labels twice; `boxes` has other columns; an option is
            invalid.

        Examples
        --------
        >>> import numpy as np
        >>> df = pd.DataFrame({"image": [np.zeros((56, 84, 3), np.uint8)]})
        >>> found = pd.DataFrame({"row": [0], "label": "cat", "x0": 10.5, "y0": 4, "x1": 20.5, "y1": 24})
        >>> df.vl.crop("image", found)[0].size
        (11, 20)
        """
        return crop_objects(pick_column(self._frame, column), boxes, margin, show_config(options, "crop"))
