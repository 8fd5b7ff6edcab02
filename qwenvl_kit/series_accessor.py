"""The pandas accessor ``Series.vl``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Unpack

import pandas as pd

from qwenvl_kit.attribution import Method
from qwenvl_kit.caption_run import caption_texts, plan_rows, run_rows
from qwenvl_kit.captions.captioning import Captioning
from qwenvl_kit.captions.sidecars import Existing
from qwenvl_kit.constrained_run import constrained_texts, extract_rows, ground_rows
from qwenvl_kit.explain import Explanations
from qwenvl_kit.explained_run import explain_rows
from qwenvl_kit.frame_run import classify_rows, run_questions, run_texts
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.options import Options
from qwenvl_kit.signatures import expand_options
from qwenvl_kit.tasks.answer_forms import check_form
from qwenvl_kit.tasks.classify import Classification, Normalize, Prior
from qwenvl_kit.tasks.explain import attribution_of
from qwenvl_kit.tasks.grounding_prompts import Language
from qwenvl_kit.tasks.plan import Plan


@pd.api.extensions.register_series_accessor("vl")
class SeriesAccessor:
    """``Series.vl``: run a Qwen2.5-VL on a series of images.

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
        prompts: pd.Series | Sequence[str | None] | Mapping[str, float] | None = None,
        sidecar: str | None = None,
        existing: Existing | None = None,
        prepend: str = "",
        append: str = "",
        must: str | Sequence[str] = (),
        must_not: str | Sequence[str] = (),
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.Series:
        """Describe each image of the series; see `FrameAccessor.caption`."""
        captioning = Captioning.of(
            sidecar=sidecar, existing=existing, prepend=prepend, append=append, must=must, must_not=must_not
        )
        return caption_texts(self._series, prompts, control, options, captioning=captioning)

    @expand_options
    def ask(
        self,
        question: str | pd.Series | Sequence[str | None] | Mapping[str, str | pd.Series],
        *,
        options: Sequence[str] | Sequence[Sequence[str]] | pd.Series | None = None,
        regex: str | None = None,
        choices: Sequence[str] | Sequence[Sequence[str]] | pd.Series | None = None,
        control: Control | None = None,
        **settings: Unpack[Options],
    ) -> pd.Series | pd.DataFrame:
        """Ask one or several questions about each image of the series; see `FrameAccessor.ask`."""
        form = check_form(question, options, regex, choices)
        if isinstance(question, Mapping):
            return run_questions(self._series, dict(question), control, settings)
        if form == "options":
            return classify_rows(self._series, options, question, Classification(), control, settings)
        if form is None:
            return run_texts(self._series, question, "answer", control, settings)
        return constrained_texts(self._series, question, "answer", control, settings, regex=regex, choices=choices)

    @expand_options
    def extract(
        self,
        schema: object,
        *,
        prompts: pd.Series | Sequence[str | None] | None = None,
        constrain: bool = True,
        flatten: bool = False,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.DataFrame:
        """Describe each image by the fields of a schema, a column each; see `FrameAccessor.extract`."""
        return extract_rows(self._series, schema, prompts, control, options, constrain=constrain, flatten=flatten)

    @expand_options
    def classify(
        self,
        labels: Sequence[str] | Sequence[Sequence[str]] | pd.Series,
        *,
        prompts: pd.Series | Sequence[str | None] | None = None,
        normalize: Normalize = "sum",
        prior: Prior | None = None,
        all: bool = False,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.DataFrame:
        """Choose the likeliest of some labels for each image; see `FrameAccessor.classify`."""
        classification = Classification(normalize, prior, all)
        return classify_rows(self._series, labels, prompts, classification, control, options)

    @expand_options
    def detect(
        self,
        labels: Sequence[str] | Sequence[Sequence[str]] | pd.Series | None = None,
        *,
        prompts: pd.Series | Sequence[str | None] | None = None,
        constrain: bool = False,
        language: Language | None = None,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.DataFrame:
        """Find the boxes of objects in each image; see `FrameAccessor.detect`."""
        return ground_rows(
            self._series, "box", labels, prompts, control, options, constrain=constrain, language=language
        )

    @expand_options
    def point(
        self,
        labels: Sequence[str] | Sequence[Sequence[str]] | pd.Series | None = None,
        *,
        prompts: pd.Series | Sequence[str | None] | None = None,
        constrain: bool = False,
        language: Language | None = None,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.DataFrame:
        """Find a point on each object; see `FrameAccessor.point`."""
        return ground_rows(
            self._series, "point", labels, prompts, control, options, constrain=constrain, language=language
        )

    @expand_options
    def explain(
        self,
        *,
        prompts: pd.Series | Sequence[str | None] | None = None,
        method: Method = "attention",
        layers: Sequence[int] | Literal["all"] | None = None,
        heads: Sequence[int] | None = None,
        correct: bool = True,
        grid: int = 8,
        check: bool = False,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> Explanations:
        """Trace each word of the answers to the images; see `FrameAccessor.explain`."""
        asked = attribution_of(method=method, layers=layers, heads=heads, correct=correct, grid=grid, check=check)
        return explain_rows(self._series, prompts, asked, control, options)

    @expand_options
    def run(
        self,
        *,
        prompts: pd.Series | Sequence[str | None] | Mapping[str, float] | None = None,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> pd.DataFrame:
        """Return all result fields of each row; see `FrameAccessor.run`."""
        return run_rows(self._series, prompts, control, options)

    @expand_options
    def plan(
        self,
        *,
        prompts: pd.Series | Sequence[str | None] | Mapping[str, float] | None = None,
        **options: Unpack[Options],
    ) -> Plan:
        """Return tokens, memory and time of a run before anything loads; see `FrameAccessor.plan`."""
        return plan_rows(self._series, prompts, options)
