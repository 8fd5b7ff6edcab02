"""The pandas accessor ``df.vl``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Unpack

import pandas as pd

from qwenvl_kit.caption_answers import CaptionAnswers, RowPrompts, pick_row_prompts
from qwenvl_kit.caption_run import plan_rows, run_rows
from qwenvl_kit.columns import pick_column, pick_labels, pick_prompts
from qwenvl_kit.compare import Comparison
from qwenvl_kit.comparison_run import Task, compare_objects, compare_rows
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.explained_answers import ExplainedAnswers
from qwenvl_kit.grounded_answers import GroundedAnswers
from qwenvl_kit.image_views import ImageViews
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.options import Options
from qwenvl_kit.signatures import expand_options
from qwenvl_kit.structured_answers import Labels, Prompts, StructuredAnswers
from qwenvl_kit.tasks.classify import Normalize
from qwenvl_kit.tasks.plan import Plan


@pd.api.extensions.register_dataframe_accessor("vl")
class FrameAccessor(CaptionAnswers, StructuredAnswers, GroundedAnswers, ExplainedAnswers, ImageViews):
    """``df.vl``: run a Qwen2.5-VL on a column of images.

    Examples
    --------
    >>> import pandas as pd, qwenvl_kit
    >>> df = pd.DataFrame({"image": [None]})
    >>> df.vl.run("image", backend="echo", progress=False)["status"].tolist()
    ['null_image']
    """

    def __repr__(self) -> str:
        verbs = ", ".join(name for name in dir(self) if not name.startswith("_"))
        return f"df.vl, Qwen2.5-VL over a column of images: {verbs}. Help: df.vl.caption?"

    @expand_options
    def run(
        self,
        column: Hashable,
        *,
        prompts: RowPrompts | None = None,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.DataFrame:
        """Return all result fields of each row; otherwise as `caption`.

        Returns
        -------
        DataFrame
            Under the frame's index, with ``text``, ``status`` (``ok``, ``null_image``, ``error`` or ``cancelled``),
            ``error``, ``stage``, ``finish_reason``, ``prompt_tokens``, ``new_tokens``, ``height`` and ``width`` (pixels
            of the model's input), ``source_height`` and ``source_width`` (of the upright image before resizing),
            ``seconds`` and ``cached``. ``attrs`` hold the record.

        Raises
        ------
        ColumnNotFound, ConfigError, UnknownOption, ModelNotFound, RowErrors, Interrupted
            As for `caption`.

        Examples
        --------
        >>> df = pd.DataFrame({"image": [None]})
        >>> df.vl.run("image", backend="echo", progress=False)["status"].tolist()
        ['null_image']
        """
        cells, asked = pick_column(self._frame, column), pick_row_prompts(self._frame, prompts)
        return run_rows(cells, asked, control, options, frame=self._frame)

    @expand_options
    def plan(self, column: Hashable, *, prompts: RowPrompts | None = None, **options: Unpack[Options]) -> Plan:
        """Return tokens, memory and time of a run, and what does not fit, before anything loads.

        Parameters
        ----------
        column, prompts, **options
            As for `caption`, and so are errors. Only headers of images and configs of the model are read.

        Examples
        --------
        >>> import numpy as np
        >>> df = pd.DataFrame({"image": [np.zeros((480, 640, 3), np.uint8)]})
        >>> df.vl.plan("image", backend="echo").rows["visual_tokens"].tolist()
        [391]
        """
        cells, asked = pick_column(self._frame, column), pick_row_prompts(self._frame, prompts)
        return plan_rows(cells, asked, options, frame=self._frame)

    @expand_options
    def compare(
        self,
        column: Hashable,
        *,
        vary: Mapping[str, Sequence[object]],
        reference: Mapping[str, object] | None = None,
        truth: Prompts | pd.DataFrame | None = None,
        labels: Labels | None = None,
        task: Task | None = None,
        normalize: Normalize = "sum",
        prompts: Prompts | None = None,
        repeats: int = 1,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> Comparison:
        """Run every combination of settings on every image, and compare the answers.

        Each model is loaded once, each image fetched once. A cancelled grid returns finished rows.

        Parameters
        ----------
        column : label
            Column of images, as for `caption`.
        vary : mapping
            Options and their values, such as ``{"dtype": ["float32", "bfloat16"]}``.
        reference : mapping, optional
            Reference values, such as ``{"dtype": "float32"}``: each answer is compared with the setting that differs
            in these options only. Default: the first value of every option.
        truth : label, Series, sequence of str or DataFrame, optional
            The correct answers, one per row; or a frame of true boxes, as of `qwenvl_kit.boxes.from_coco` and
            ``df.vl.detect``, with the index labels of this frame as ``row``.
        labels, normalize
            As for `classify`: each answer is the likeliest label, with its probability. With a task, what to find, as
            for `detect`; true boxes of other labels are left out.
        task : {"detect", "point"}, optional
            Compare the boxes or points that are found. Default: "detect" where `truth` is a frame of boxes.
        repeats : int
            Runs of each setting. When sampling with a `seed`, repeat *k* runs with ``seed + k``.
        prompts, control, **options
            As for `caption`.

        Returns
        -------
        Comparison
            ``.frame`` is tidy, a row per image, setting and repeat; ``.summary()`` has a row per setting; ``.plot()``
            draws quality against cost. With `labels` or ``logprobs=0``, and a `truth`, the summary has calibration
            errors, and ``.plot_reliability()`` draws them. With true boxes it has precision, recall, F1, average
            precision and mean IoU; ``.boxes()`` has what each setting found.

        Raises
        ------
        ConfigError
            `vary`, `reference`, `labels`, `task` or `truth` is invalid; raised before anything runs.
        MissingExtra
            sacrebleu, which computes chrF, is not installed.
        ColumnNotFound, UnknownOption, ModelNotFound, RowErrors, Interrupted
            As for `caption`.

        Examples
        --------
        >>> df = pd.DataFrame({"image": [None]})
        >>> found = df.vl.compare("image", vary={"resized_height": [56, 112]}, backend="echo", progress=False)
        >>> found.frame["status"].tolist()
        ['null_image', 'null_image']
        """
        if "prompt" in vary and prompts is not None:
            raise ConfigError("prompts and vary['prompt'] exclude each other. Pass only one of them.")
        cells, asked = pick_column(self._frame, column), pick_prompts(self._frame, prompts)
        some = None if labels is None else pick_labels(self._frame, labels)
        if task is not None or isinstance(truth, pd.DataFrame):
            return compare_objects(
                cells,
                asked,
                vary,
                options,
                task=task or "detect",
                labels=some,
                reference=reference,
                truth=truth,
                repeats=repeats,
                control=control,
            )
        return compare_rows(
            cells,
            asked,
            vary,
            options,
            reference=reference,
            labels=some,
            normalize=normalize,
            truth=pick_prompts(self._frame, truth),
            repeats=repeats,
            control=control,
        )
