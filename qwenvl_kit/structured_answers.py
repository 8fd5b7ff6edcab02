"""Verbs of ``df.vl`` whose answers have a form: one of some labels or choices, or columns of a schema."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Unpack

import pandas as pd

from qwenvl_kit.columns import pick_column, pick_labels, pick_prompts, pick_question
from qwenvl_kit.constrained_run import constrained_texts, extract_rows
from qwenvl_kit.frame_run import classify_rows, run_questions, run_texts
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.options import Options
from qwenvl_kit.signatures import expand_options
from qwenvl_kit.tasks.answer_forms import check_form
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
    def ask(
        self,
        column: Hashable,
        question: Hashable | Sequence[str | None] | Mapping[str, Hashable],
        *,
        options: Labels | None = None,
        regex: str | None = None,
        choices: Labels | None = None,
        control: Control | None = None,
        **settings: Unpack[Options],
    ) -> pd.Series | pd.DataFrame:
        """Ask one or several questions about each image of a column.

        Parameters
        ----------
        column : label
            Column of images, as for `caption`.
        question : str, label, list or mapping
            A question, a column of this frame or a list with one per row, or a mapping from names to any of these.
        options : sequence of str, label or Series, optional
            Possible answers, for all rows, or a column of lists: the likeliest is chosen, as by `classify`.
        regex : str, optional
            Generate answers that match it as a whole; in the syntax of Rust's regex, without look-around.
        choices : sequence of str, label or Series, optional
            Generate one of these texts, for all rows, or of a column of lists. `options` compares their likelihoods
            instead.
        control, **settings
            As for `caption`.

        Returns
        -------
        Series or DataFrame of str
            A column per question for a mapping. Each image is fetched once for all questions. With `options`, the
            columns ``label`` and ``probability`` of `classify`.

        Raises
        ------
        ColumnNotFound
            The frame has no such column, or `question` is a single word that names none. Other errors as for `caption`.

        Examples
        --------
        >>> df = pd.DataFrame({"image": [None]})
        >>> questions = {"colour": "What colour is it?", "count": "How many are there?"}
        >>> list(df.vl.ask("image", questions, backend="echo", progress=False).columns)
        ['colour', 'count']
        """
        cells = pick_column(self._frame, column)
        form = check_form(question, options, regex, choices)
        if isinstance(question, Mapping):
            questions = {name: pick_question(self._frame, one) for name, one in question.items()}
            return run_questions(cells, questions, control, settings)
        asked = pick_question(self._frame, question)
        if form == "options":
            return classify_rows(cells, pick_labels(self._frame, options), asked, Classification(), control, settings)
        if form is None:
            return run_texts(cells, asked, "answer", control, settings)
        some = None if choices is None else pick_labels(self._frame, choices)
        return constrained_texts(cells, asked, "answer", control, settings, regex=regex, choices=some)

    @expand_options
    def extract(
        self,
        column: Hashable,
        schema: object,
        *,
        prompts: Prompts | None = None,
        constrain: bool = True,
        flatten: bool = False,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.DataFrame:
        """Describe each image by the fields of a schema, a column each.

        Answers are constrained while they are generated: each token continues JSON that the schema allows.

        Parameters
        ----------
        column : label
            Column of images, as for `caption`.
        schema : mapping, type or pydantic model
            A dict of types such as ``{"count": int, "colours": list[str]}``, a dataclass, a TypedDict, a pydantic model
            or a JSON Schema. Objects have the listed properties only, and all of them unless ``required`` says less.
        prompts : label, Series or sequence of str, optional
            As for `caption`. Without it and `prompt`, each row is asked for the fields and their descriptions.
        constrain : bool
            False generates freely, and reads JSON that is fenced, single-quoted or cut out of the text.
        flatten : bool
            Properties of nested objects have columns of their own, such as ``"place.row"``.
        control, **options
            As for `caption`. An answer needs `max_caption_length` tokens at most; one that is cut is an error.

        Returns
        -------
        DataFrame
            A column per field, with dtype ``Int64``, ``Float64``, ``boolean``, ``str`` or object (lists and nested
            objects). Then ``raw`` (the text), ``repaired`` (what was repaired or is incomplete), ``status``, ``error``.
            A cut answer has status ``error`` and keeps its text and its complete fields.

        Raises
        ------
        ConfigError
            The schema is invalid, has recursion or a reference to outside, or llguidance refuses it; beam search or
            ``backend="echo"`` with ``constrain=True``.
        MissingExtra
            llguidance is not installed.
        ColumnNotFound, UnknownOption, ModelNotFound, RowErrors, Interrupted
            As for `caption`.

        Examples
        --------
        >>> df = pd.DataFrame({"image": [None]})
        >>> found = df.vl.extract("image", {"count": int, "colours": list[str]}, model_name="demo", progress=False)
        >>> found.columns.tolist()
        ['count', 'colours', 'raw', 'repaired', 'status', 'error']
        """
        cells, asked = pick_column(self._frame, column), pick_prompts(self._frame, prompts)
        return extract_rows(cells, schema, asked, control, options, constrain=constrain, flatten=flatten)

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
