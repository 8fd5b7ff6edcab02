"""The verb of ``df.vl`` that traces the words of answers to the images."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, Unpack

import pandas as pd

from qwenvl_kit.attribution import Method
from qwenvl_kit.columns import pick_column, pick_prompts
from qwenvl_kit.explain import Explanations
from qwenvl_kit.explained_run import explain_rows
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.options import Options
from qwenvl_kit.signatures import expand_options
from qwenvl_kit.tasks.explain import attribution_of

Prompts = Hashable | Sequence[str | None] | pd.Series


class ExplainedAnswers:
    """Base of ``df.vl``."""

    _frame: pd.DataFrame

    @expand_options
    def explain(
        self,
        column: Hashable,
        *,
        prompts: Prompts | None = None,
        method: Method = "attention",
        layers: Sequence[int] | Literal["all"] | None = None,
        heads: Sequence[int] | None = None,
        correct: bool = True,
        grid: int = 8,
        check: bool = False,
        control: Control | None = None,
        **options: Unpack[Options],
    ) -> Explanations:
        """Answer as `caption`, and trace each word of the answers to the images.

        Parameters
        ----------
        column, prompts : label, Series or sequence of str
            As for `caption`.
        method : {"attention", "occlusion", "gradient"}
            ``attention``: from the tokens that write a word to the visual tokens. ``occlusion``: what the word's
            log-probability loses while squares of visual tokens are hidden from the model; slower, and the only one
            that measures a cause. ``gradient``: input times gradient.
        layers : sequence of int or "all", optional
            Layers whose attention counts, negative ones from the last; default: the second half. ``"all"`` keeps a map
            per layer.
        heads : sequence of int, optional
            Heads whose attention counts; default: all.
        correct : bool
            Subtract the attention that a grey image of the same size gets for the same answer. It removes visual tokens
            that are attended to whatever they show.
        grid : int
            Of ``occlusion``: groups along each side of an image, from 2 to 32; a square of 2 × 2 is hidden at a time.
        check : bool
            Also compute deletion and insertion curves, which tell whether the model depends on what the maps show.
        control, **options
            As for `caption`. Answers are those of `caption`; the store is not used.

        Returns
        -------
        Explanations
            An `Explanation` for each answered row, with ``.words``, ``.map(word)`` (on the pixels of the upright
            original), ``.frame()``, ``.show()``, ``.plot(word)`` and ``.check()``. A word of several tokens has one
            map. Of Chinese, each character is a word.

        Raises
        ------
        ConfigError
            A value is invalid; beam search; a backend other than torch.
        ColumnNotFound, UnknownOption, ModelNotFound, RowErrors, Interrupted
            As for `caption`.

        Examples
        --------
        >>> df = pd.DataFrame({"image": [None]})
        >>> df.vl.explain("image", model_name="demo", dtype="float32", progress=False)
        Explanations(0 of 1 rows; .frame(), .show(), .check())
        """
        asked = attribution_of(method=method, layers=layers, heads=heads, correct=correct, grid=grid, check=check)
        cells = pick_column(self._frame, column)
        return explain_rows(cells, pick_prompts(self._frame, prompts), asked, control, options)
