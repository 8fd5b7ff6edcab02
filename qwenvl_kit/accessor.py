"""The doors ``df.vl`` and ``Series.vl``: a frame in, texts under the same index out.

They turn columns into rows and results into columns; what happens between is the engine's affair.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar, Unpack, cast

import pandas as pd

from qwenvl_kit.columns import column_names, has_column, pick_column, shown
from qwenvl_kit.compare import Comparison, compare
from qwenvl_kit.contact_sheet import MAX_BYTES, SHOW_OPTIONS, ContactSheet, contact_sheet, show_config
from qwenvl_kit.errors import ColumnNotFound, ConfigError
from qwenvl_kit.executors import execute
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.interrupts import InterruptGuard
from qwenvl_kit.options import Config, FetchKeywords, Options
from qwenvl_kit.prompts import fill
from qwenvl_kit.results import result_frame, return_or_raise, text_series
from qwenvl_kit.signatures import expand_options

if TYPE_CHECKING:
    from qwenvl_kit.pipeline import Run

Prompts = Hashable | Sequence[str | None] | pd.Series
_T = TypeVar("_T")
_last: pd.DataFrame | Callable[[], pd.DataFrame] | None = None


def last_run() -> pd.DataFrame | None:
    """The frame of the last call in this process, also of one that was interrupted or failed.

    Returns
    -------
    DataFrame or None
        As `FrameAccessor.run` gives it; None before the first call.

    Examples
    --------
    >>> import qwenvl_kit
    >>> frame = qwenvl_kit.last_run()
    """
    global _last
    known = _last
    if not callable(known):
        return known
    frame = known()
    if _last is known:  # else a newer run has ended in the meantime
        _last = frame
    return frame


class FrameAccessor:
    """``df.vl``: let a Qwen2.5-VL look at a column of pictures.

    Examples
    --------
    >>> import pandas as pd, qwenvl_kit
    >>> df = pd.DataFrame({"image": [None]})
    >>> df.vl.run("image", backend="echo", progress=False)["status"].tolist()
    ['null_image']
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame

    @expand_options
    def caption(
        self,
        column: Hashable,
        *,
        prompts: Prompts | None = None,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.Series:
        """Describe each picture of a column.

        Parameters
        ----------
        column : label
            Column of pictures: URLs, paths, s3:// or tos:// addresses, base64, bytes, PIL images or arrays; a list in a
            cell is several pictures of one row.
        prompts : label, Series or sequence of str, optional
            A column of this frame, or one prompt per row; where it is missing, `prompt` serves.
        control : Control, optional
            Cancels the run from another thread, and listens to tokens and results.
        **options
            See below.

        Returns
        -------
        Series of str
            Under the frame's index; missing where there is no picture or the row failed. ``attrs`` hold what ran.

        Raises
        ------
        ColumnNotFound
            There is no such column.
        ConfigError, UnknownOption
            An option breaks its rule, or does not exist.
        ModelNotFound
            The model is at none of the places looked at.
        RowErrors
            Rows failed under ``on_error="raise"``, after all are finished.
        Interrupted
            Ctrl-C; ``.results`` holds what is done.

        Examples
        --------
        >>> import pandas as pd, qwenvl_kit
        >>> from qwenvl_kit.demo import scenes
        >>> df = pd.DataFrame({"image": [None]})
        >>> df.vl.caption("image", model_name="demo", dtype="float32", progress=False).isna().tolist()
        [True]
        """
        return _series(self._column(column), self._prompts(prompts), "caption", control, options)

    @expand_options
    def ask(
        self,
        column: Hashable,
        question: Hashable | Mapping[str, Hashable],
        *,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.Series | pd.DataFrame:
        """Ask one or several questions about each picture of a column.

        Parameters
        ----------
        column : label
            Column of pictures, as for `caption`.
        question : str, label or mapping
            A question; or a column of this frame that holds one per row; or a mapping from names to either.
        control : Control, optional
            As for `caption`.
        **options
            See below.

        Returns
        -------
        Series or DataFrame of str
            A column per question for a mapping. Each picture is fetched once, however many questions it gets.

        Raises
        ------
        ColumnNotFound
            There is no such column, or `question` is one word that names none.
        ConfigError, UnknownOption, ModelNotFound, RowErrors, Interrupted
            As for `caption`.

        Examples
        --------
        >>> import pandas as pd, qwenvl_kit
        >>> df = pd.DataFrame({"image": [None]})
        >>> questions = {"colour": "What colour is it?", "count": "How many are there?"}
        >>> list(df.vl.ask("image", questions, backend="echo", progress=False).columns)
        ['colour', 'count']
        """
        cells = self._column(column)
        if isinstance(question, Mapping):
            asked = {name: self._question(one) for name, one in question.items()}
            return _answers(cells, asked, control, options)
        return _series(cells, self._question(question), "answer", control, options)

    @expand_options
    def run(
        self,
        column: Hashable,
        *,
        prompts: Prompts | None = None,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.DataFrame:
        """As `caption`, with everything that is known of each row.

        Parameters
        ----------
        column, prompts, control, **options
            As for `caption`.

        Returns
        -------
        DataFrame
            Under the frame's index, with ``text``, ``status`` (``ok``, ``null_image``, ``error`` or ``cancelled``),
            ``error``, ``stage``, ``finish_reason``, ``prompt_tokens``, ``new_tokens``, ``height`` and ``width`` (pixels
            that the model saw), ``seconds`` and ``cached``. ``attrs`` hold what ran.

        Raises
        ------
        ColumnNotFound, ConfigError, UnknownOption, ModelNotFound, RowErrors, Interrupted
            As for `caption`.

        Examples
        --------
        >>> import pandas as pd, qwenvl_kit
        >>> df = pd.DataFrame({"image": ["missing.png"]})
        >>> import warnings
        >>> with warnings.catch_warnings(action="ignore"):
        ...     df.vl.run("image", backend="echo", progress=False)["stage"].tolist()
        ['fetch']
        """
        return _run(self._column(column), self._prompts(prompts), control, options)

    @expand_options
    def compare(
        self,
        column: Hashable,
        *,
        vary: Mapping[str, Sequence[object]],
        reference: Mapping[str, object] | None = None,
        truth: Prompts | None = None,
        prompts: Prompts | None = None,
        repeats: int = 1,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> Comparison:
        """Ask every picture under every combination of settings, and tell how the answers differ.

        Each model is loaded once, each picture fetched once. A grid that is cancelled returns what is done.

        Parameters
        ----------
        column : label
            Column of pictures, as for `caption`.
        vary : mapping
            Options and the values to try, such as ``{"dtype": ["float32", "bfloat16"], "resized_height": [56, 112]}``.
        reference : mapping, optional
            The values to compare with, such as ``{"dtype": "float32"}``: each answer is held against the one of the
            setting that differs in these alone. Without it, against the first value of every option.
        truth : label, Series or sequence of str, optional
            The right answers, one per row.
        prompts, control
            As for `caption`.
        repeats : int
            How often each is asked. When sampling with a `seed`, repeat *k* runs with ``seed + k``.
        **options
            See below; those that do not vary.

        Returns
        -------
        Comparison
            ``.frame`` is tidy, a row per picture, setting and repeat; ``.summary()`` has a row per setting; ``.plot()``
            draws quality against cost.

        Raises
        ------
        ConfigError
            `vary` or `reference` breaks a rule; also as for `caption`, before anything runs.
        MissingExtra
            sacrebleu, which computes chrF, is not installed.
        ColumnNotFound, UnknownOption, ModelNotFound, RowErrors, Interrupted
            As for `caption`.

        Examples
        --------
        >>> import pandas as pd, qwenvl_kit
        >>> df = pd.DataFrame({"image": [None]})
        >>> found = df.vl.compare("image", vary={"resized_height": [56, 112]}, backend="echo", progress=False)
        >>> found.frame[["resized_height", "row", "status"]].values.tolist()
        [[56, 0, 'null_image'], [112, 0, 'null_image']]
        """
        cells = self._column(column)
        if "prompt" in vary and prompts is not None:
            raise ConfigError("prompts and vary['prompt'] both say what is asked; got both; pass one of them")
        return compare(
            cells,
            None if "prompt" in vary else _fill(self._prompts(prompts), Config(**options), cells.index),
            vary,
            options,
            reference=reference,
            truths=None if truth is None else _texts("truth", self._prompts(truth), cells.index),
            repeats=repeats,
            control=control,
            keep=_remember,
        )

    @expand_options(only=SHOW_OPTIONS)
    def show(
        self,
        column: Hashable | None = None,
        captions: Hashable | Sequence[Hashable] | None = None,
        *,
        n_rows: int = 24,
        max_bytes: int = MAX_BYTES,
        **options: Unpack[FetchKeywords],
    ) -> ContactSheet:
        """Show the pictures of a column as thumbnails, with the other columns' texts below them.

        Parameters
        ----------
        column : label, optional
            Column of pictures; without it the first one that holds some.
        captions : label or sequence of labels, optional
            Columns to write below each picture; without it all others.
        n_rows : int
            Most pictures shown; the rest is counted.
        max_bytes : int
            Most bytes of HTML, since a notebook keeps them; pictures beyond are counted, not shown.
        **options
            Those that limit how images are read; see below.

        Returns
        -------
        Contact
            Shows itself in a notebook; ``.html`` has the page. Texts are escaped.

        Raises
        ------
        ColumnNotFound
            There is no such column, or none that holds pictures.
        ConfigError, UnknownOption
            An option breaks its rule, or is none of these.

        Examples
        --------
        >>> import numpy as np, pandas as pd, qwenvl_kit
        >>> df = pd.DataFrame({"image": [np.zeros((56, 56, 3), np.uint8)], "caption": ["<b>black</b>"]})
        >>> "&lt;b&gt;black" in df.vl.show().html
        True
        """
        config = show_config(options)
        named = None if captions is None else self._labels(captions)
        for name in named or []:
            self._column(name)
        if column is not None:
            self._column(column)
        return contact_sheet(self._frame, column, named, n_rows=n_rows, max_bytes=max_bytes, config=config)

    def _labels(self, captions: Hashable | Sequence[Hashable]) -> list[Hashable]:
        """Tell one label, which may be a tuple, from several."""
        if isinstance(captions, str | bytes) or has_column(self._frame, captions):
            return [captions]
        return list(captions) if isinstance(captions, Sequence | pd.Index) else [captions]

    def _column(self, column: Hashable) -> pd.Series:
        return pick_column(self._frame, column)

    def _prompts(self, prompts: Prompts | None) -> Sequence[object] | pd.Series | None:
        if prompts is None or isinstance(prompts, pd.Series):
            return prompts
        is_label = isinstance(prompts, tuple) and has_column(self._frame, prompts)
        if not is_label and (isinstance(prompts, list | tuple) or hasattr(prompts, "__array__")):
            return cast("Sequence[object]", prompts)
        return self._column(prompts)

    def _question(self, question: Hashable) -> pd.Series | str:
        """Tell a column's name from a question; one plain word that names no column is a misspelt name."""
        if not isinstance(question, Hashable) or question in self._frame.columns:
            return self._column(question)
        if not isinstance(question, str) or not question.strip() or (question.isascii() and question.isidentifier()):
            raise ColumnNotFound(
                f"{shown(question)} is neither a question nor a column; the frame has: {column_names(self._frame)}; "
                "a question has more than one word or ends with a mark"
            )
        return question


class SeriesAccessor:
    """``Series.vl``: let a Qwen2.5-VL look at a series of pictures.

    Examples
    --------
    >>> import pandas as pd, qwenvl_kit
    >>> pd.Series([None]).vl.run(backend="echo", progress=False)["status"].tolist()
    ['null_image']
    """

    def __init__(self, series: pd.Series) -> None:
        self._series = series

    @expand_options
    def caption(
        self,
        *,
        prompts: pd.Series | Sequence[str | None] | None = None,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.Series:
        """Describe each picture of the series; see `FrameAccessor.caption`."""
        return _series(self._series, prompts, "caption", control, options)

    @expand_options
    def ask(
        self,
        question: str | pd.Series | Sequence[str | None] | Mapping[str, str | pd.Series],
        *,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.Series | pd.DataFrame:
        """Ask one or several questions about each picture of the series; see `FrameAccessor.ask`."""
        if isinstance(question, Mapping):
            return _answers(self._series, dict(question), control, options)
        return _series(self._series, question, "answer", control, options)

    @expand_options
    def run(
        self,
        *,
        prompts: pd.Series | Sequence[str | None] | None = None,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.DataFrame:
        """As `caption`, with everything that is known of each row; see `FrameAccessor.run`."""
        return _run(self._series, prompts, control, options)


def register() -> None:
    """Hang the accessors on pandas, as ``df.vl`` and ``Series.vl``."""
    pd.api.extensions.register_dataframe_accessor("vl")(FrameAccessor)
    pd.api.extensions.register_series_accessor("vl")(SeriesAccessor)


def _series(cells: pd.Series, prompts: object, name: str, control: Control | None, options: Options) -> pd.Series:
    config = Config(**options)
    return _execute(cells, [prompts], config, control, lambda frame: text_series(frame, name))


def _run(cells: pd.Series, prompts: object, control: Control | None, options: Options) -> pd.DataFrame:
    return _execute(cells, [prompts], Config(**options), control, lambda frame: frame)


def _answers(
    cells: pd.Series, questions: Mapping[str, object], control: Control | None, options: Options
) -> pd.DataFrame:
    if not questions:
        raise ConfigError("question must hold at least one question; got an empty mapping; pass {'name': 'question'}")
    n_questions = len(questions)

    def columns(frame: pd.DataFrame) -> pd.DataFrame:
        picked = {name: frame["text"].iloc[at::n_questions] for at, name in enumerate(questions)}
        answers = pd.DataFrame({name: column.array for name, column in picked.items()}, index=cells.index)
        answers.attrs = frame.attrs
        return answers

    return _execute(cells, list(questions.values()), Config(**options), control, columns)


def _execute(
    cells: pd.Series,
    prompts: list[object],
    config: Config,
    control: Control | None,
    shape: Callable[[pd.DataFrame], _T],
) -> _T:
    """Ask each prompt of each cell; a row's questions are neighbours."""
    n_prompts, index = len(prompts), cells.index
    filled = [_fill(one, config, index) for one in prompts]
    flat_prompts = [column[row] for row in range(len(cells)) for column in filled]
    flat_cells = [cell for cell in cells.tolist() for _ in range(n_prompts)]
    with InterruptGuard(len(flat_cells), control) as guard:
        try:
            run = execute(flat_cells, flat_prompts, config, control=guard.control)
            guard.hold()
        except KeyboardInterrupt:
            guard.hold()
            run = guard.rescued(config)
        _remember(functools.partial(_frame, run, index, n_prompts))
        frame = _frame(run, index, n_prompts)
        _remember(frame)
        results = shape(frame)
        run = guard.finished(run)
    return return_or_raise(run, frame, lambda _: results, config, n_prompts)


def _frame(run: Run, index: pd.Index, n_prompts: int) -> pd.DataFrame:
    return result_frame(run, index.repeat(n_prompts))


def _remember(frame: pd.DataFrame | Callable[[], pd.DataFrame]) -> None:
    """Keep the frame of the newest run, or what makes it."""
    global _last
    _last = frame


def _texts(name: str, given: object, index: pd.Index) -> list[str | None]:
    """One text per row, None where it is missing."""
    if isinstance(given, pd.Series) and not given.index.equals(index):
        raise ConfigError(
            f"{name} must stand under the same index as the pictures; got another one; pass {name}.reindex(df.index), "
            f"or {name}.tolist() to go by position"
        )
    return fill(list(cast("Sequence[object]", given)), None, len(index))


def _fill(prompts: object, config: Config, index: pd.Index) -> list[str | None]:
    if isinstance(prompts, str):
        return [prompts] * len(index)
    if isinstance(prompts, pd.Series):
        if not prompts.index.equals(index):
            raise ConfigError(
                "prompts must stand under the same index as the pictures; got another one; pass "
                "prompts.reindex(df.index), or prompts.tolist() to go by position"
            )
        prompts = prompts.tolist()
    return fill(cast("Sequence[object] | None", prompts), config.prompt, len(index))
