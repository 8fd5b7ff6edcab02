"""Verbs of ``df.vl`` that describe images and save them with their captions, for reading and for training."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Unpack

import pandas as pd

from qwenvl_kit.caption_run import caption_texts
from qwenvl_kit.captions.captioning import Captioning
from qwenvl_kit.captions.data_sets import Format, save_rows, text_rows
from qwenvl_kit.captions.sidecars import Existing
from qwenvl_kit.columns import pick_column, pick_prompts
from qwenvl_kit.frame_run import row_prompts
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.options import Config, Options
from qwenvl_kit.options.groups import DEFAULT_PROMPT
from qwenvl_kit.signatures import expand_options

RowPrompts = Hashable | Sequence[str | None] | pd.Series | Mapping[str, float]


def pick_row_prompts(frame: pd.DataFrame, prompts: RowPrompts | None) -> object:
    """Return a pool of prompts as it is, else what `pick_prompts` returns."""
    return prompts if isinstance(prompts, Mapping) else pick_prompts(frame, prompts)


class CaptionAnswers:
    """Base of ``df.vl``; its frame is ``_frame``."""

    _frame: pd.DataFrame

    @expand_options
    def caption(
        self,
        column: Hashable,
        *,
        prompts: RowPrompts | None = None,
        sidecar: str | None = None,
        existing: Existing | None = None,
        prepend: str = "",
        append: str = "",
        must: str | Sequence[str] = (),
        must_not: str | Sequence[str] = (),
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.Series:
        """Describe each image of a column.

        Parameters
        ----------
        column : label
            Column of images: URLs, paths, base64, bytes, PIL images or arrays; a list is several images of one row.
        prompts : label, Series, sequence of str or mapping, optional
            A column of this frame, or one prompt per row; missing values use `prompt`. A mapping from prompts to
            weights chooses one for each row, by `seed`. In `prompt` and in a mapping, ``{tags}`` stands for the value
            of the column ``tags``; ``{name}``, ``{stem}`` and ``{folder}`` are those of the image's file.
        sidecar : str, optional
            Suffix, such as ``".txt"``: write each caption to a file beside its image as soon as it is finished.
        existing : {"skip", "overwrite", "append"}, optional
            What happens to such files that exist. ``skip``, the default, keeps them and returns their text.
        prepend, append : str
            Put before and behind each answer, such as ``"trigger, "``.
        must, must_not : str or sequence of str
            Words that captions must and must not contain. A row whose answer is at fault is asked once more with a
            prompt that says so; what is still at fault is a ``flag`` of ``qwenvl_kit.last_run()``.
        control : Control, optional
            Cancels the run from another thread, and gets tokens and results.
        **options
            See below.

        Returns
        -------
        Series of str
            Under the frame's index; missing for null images and failed rows. ``attrs`` hold the record.

        Raises
        ------
        ColumnNotFound
            The frame has no such column.
        ConfigError, UnknownOption
            An option is invalid or unknown, a template has an unknown field, or a caption file cannot be written.
        ModelNotFound
            No searched location has the model.
        RowErrors
            Rows failed under ``on_error="raise"``; raised after the last row.
        Interrupted
            Ctrl-C; ``.results`` holds finished rows.

        Examples
        --------
        >>> import pandas as pd, qwenvl_kit
        >>> df = pd.DataFrame({"image": [None]})
        >>> df.vl.caption("image", model_name="demo", dtype="float32", progress=False).isna().tolist()
        [True]
        """
        captioning = Captioning.of(
            sidecar=sidecar, existing=existing, prepend=prepend, append=append, must=must, must_not=must_not
        )
        cells, asked = pick_column(self._frame, column), pick_row_prompts(self._frame, prompts)
        return caption_texts(cells, asked, control, options, captioning=captioning, frame=self._frame)

    def save(
        self,
        path: str | Path,
        column: Hashable = "image",
        captions: Hashable = "caption",
        *,
        format: Format | None = None,
        prompts: Hashable | Sequence[str | None] | pd.Series | None = None,
        prompt: str = DEFAULT_PROMPT,
        rows_per_shard: int = 1000,
    ) -> list[Path]:
        """Save images with their captions as a data set for training; rows without a caption are left out.

        Parameters
        ----------
        path : path
            The file; of shards, ``train.tar`` names ``train-000000.tar`` and so on.
        column : label
            Column of images. Conversations name their paths or addresses; shards contain them.
        captions : label
            Column of captions.
        format : {"parquet", "csv", "jsonl", "sharegpt", "llava", "webdataset"}, optional
            Tables of all columns, conversations in one JSON file, or tar files. Default: that of the suffix.
        prompts, prompt
            The question of each row, and that of rows without their own, for conversations and shards.
        rows_per_shard : int
            Most rows of a tar file.

        Returns
        -------
        list of Path
            The files. Each appears when it is complete.

        Raises
        ------
        ColumnNotFound
            The frame has no such column.
        ConfigError
            The format is unknown, a folder is missing, or the format cannot hold an image's name.
        MissingExtra
            Parquet without pyarrow.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> df = pd.DataFrame({"image": ["a.png", "b.png"], "caption": ["A cat.", None]})
        >>> out = pathlib.Path(tempfile.mkdtemp()) / "train.json"
        >>> df.vl.save(out, format="llava", prompt="Describe it.")[0].read_text().count("A cat.")
        1
        """
        cells, texts = pick_column(self._frame, column), pick_column(self._frame, captions)
        asked = row_prompts(pick_prompts(self._frame, prompts), prompt, self._frame.index)
        rows = text_rows(self._frame, cells, texts, [one or "" for one in asked])
        return save_rows(rows, Path(path).expanduser(), format, Config(), rows_per_shard=rows_per_shard)
