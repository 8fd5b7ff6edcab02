"""Judge pairs of answers by eye: which of two is better, without knowing whose they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import pandas as pd
import traitlets
from IPython.display import HTML, display

from qwenvl_kit.compare.judgements import (
    Judgement,
    Pair,
    Verdict,
    agreement,
    make_pairs,
    read_judgements,
    win_rates,
    write_judgement,
)
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.html import plain, render
from qwenvl_kit.thumbnails import Thumbnailer
from qwenvl_kit.widgets.elements import static_text

if TYPE_CHECKING:
    from qwenvl_kit.compare import Comparison

_LONGEST_TEXT = 4_000
_LONGEST_NAME = 100
_SHOWN_PIXELS = 480 * 480
_BETTER = ("right", "truth_chrf")
_PAIR = """<div class='pair'><figure>{% if is_image %}<img src='{{ image }}' alt='image {{ label }}'>
{%- else %}{{ image }}{% endif %}<figcaption>{{ label }}</figcaption></figure>
{%- for name, text in answers %}<section><h4>{{ name }}</h4>{{ text }}</section>{% endfor %}</div>"""


class Judge(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget has no types here
    """Ask a person which of two answers is better, pair by pair, by button or key.

    1 prefers the first answer, 2 the second, 3 is a tie, space skips, z undoes. Each setting meets its reference where
    their answers differ. The seed shuffles the pairs, and which of the two answers is shown first.

    Parameters
    ----------
    found : Comparison
        The result of ``df.vl.compare``.
    blind : bool
        Hide which setting gave which answer.
    seed : int
        Shuffles. Judges with equal seeds see equal orders.
    path : path, optional
        A JSON-lines file that keeps each judgement at once; a later panel on the same file goes on where it stopped.
    judge : str
        Who judges, in the file and the frame.

    Raises
    ------
    ConfigError
        `found` has no images, or `path` is not a file of judgements.

    Examples
    --------
    >>> import numpy as np, pandas as pd, qwenvl_kit
    >>> from qwenvl_kit.widgets import Judge
    >>> df = pd.DataFrame({"image": [np.zeros((56, 56, 3), np.uint8)]})
    >>> vary = {"prompt": ["What is it?", "Describe it."]}
    >>> judge = Judge(df.vl.compare("image", vary=vary, backend="echo", progress=False), seed=1)
    >>> judge.decide("first")
    >>> int(judge.summary()[["wins", "losses"]].sum().sum())
    1
    """

    _esm = static_text("judge.js")
    _css = static_text("judge.css")
    page = traitlets.Unicode("").tag(sync=True)
    told = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        found: Comparison,
        *,
        blind: bool = True,
        seed: int = 0,
        path: str | os.PathLike[str] | None = None,
        judge: str = "",
    ) -> None:
        super().__init__()
        if found.images is None:
            raise ConfigError("The comparison has no images to show. Pass the result of df.vl.compare.")
        self._found, self._images, self._blind, self._judge = found, found.images, blind, judge
        self._pairs, self._n_equal = make_pairs(found.frame, found.varied, found.reference, seed=seed)
        self._path = None if path is None else Path(path)
        known = {pair.key for pair in self._pairs}
        said = read_judgements(self._path, judge) if self._path is not None else {}
        self._verdicts: dict[str, Verdict] = {key: verdict for key, verdict in said.items() if key in known}
        self._thumbnailer = Thumbnailer.of(found.fetch, n_pixels=_SHOWN_PIXELS)
        self._saved: Any = None
        self.on_msg(lambda _, content, __: self.decide(content["verdict"]))
        self._show()

    @property
    def pair(self) -> Pair | None:
        """The pair that is shown; None once all are judged."""
        return next((pair for pair in self._pairs if pair.key not in self._verdicts), None)

    def decide(self, verdict: str) -> None:
        """Enter what a key or button says: ``first``, ``second``, ``tie``, ``skip`` or ``undo``."""
        pair = self.pair
        if verdict == "undo":
            if self._verdicts:
                self._keep(self._verdicts.popitem()[0], None)
        elif pair is not None and verdict in ("first", "second", "tie", "skip"):
            place = {"first": 0, "second": 1}.get(verdict)
            self._enter(pair, pair.verdict(place) if place is not None else "tie" if verdict == "tie" else "skip")
        self._show()

    def to_frame(self) -> pd.DataFrame:
        """Return a row per judged pair: ``key, row, label, reference, other, verdict, judge``.

        ``verdict`` is ``reference`` or ``other``, whichever was preferred, ``tie`` or ``skip``.
        """
        columns = ["key", "row", "label", "reference", "other", "verdict", "judge"]
        judged = [
            [pair.key, pair.row, pair.label, pair.reference, pair.other, self._verdicts[pair.key], self._judge]
            for pair in self._pairs
            if pair.key in self._verdicts
        ]
        return pd.DataFrame(judged, columns=columns)

    def summary(self, level: float = 0.95) -> pd.DataFrame:
        """Return wins, losses, ties and the win rate of each setting against its reference; see `win_rates`."""
        return win_rates(self.to_frame(), self._n_equal, level)

    def agreement(self, other: Judge | pd.DataFrame | str) -> dict[str, float]:
        """Return the agreement with another judge, the frame of one, or a measure of the comparison.

        Parameters
        ----------
        other : Judge, DataFrame or {"right", "truth_chrf"}
            A measure prefers the answer with the larger value; equal values are a tie.

        Returns
        -------
        dict
            ``n`` pairs that both judged, ``same``, the share of equal verdicts, and Cohen's ``kappa``.

        Raises
        ------
        ConfigError
            The comparison has no such measure.
        """
        if isinstance(other, Judge):
            return agreement(self.to_frame(), other.to_frame())
        return agreement(self.to_frame(), self._by_measure(other) if isinstance(other, str) else other)

    def _ipython_display_(self) -> None:
        bundle = dict(self._repr_mimebundle_()[0])
        bundle["text/plain"] = "Judge: a panel that needs a running kernel; its result is below"
        display(bundle, raw=True)
        self._saved = display(HTML(self._summary_html()), display_id=True)

    def _enter(self, pair: Pair, verdict: Verdict) -> None:
        self._verdicts[pair.key] = verdict
        self._keep(pair.key, verdict)

    def _keep(self, key: str, verdict: Verdict | None) -> None:
        if self._path is not None:
            write_judgement(self._path, Judgement(key, verdict, self._judge))

    def _show(self) -> None:
        n_done, n_all = len(self._verdicts), len(self._pairs)
        equal = int(self._n_equal.sum())
        self.told = f"{n_done} of {n_all} pairs judged; {equal} more have equal answers."
        pair = self.pair
        if pair is None:
            self.page = "<p>All pairs are judged. See .summary() and .to_frame().</p>" if n_all else "<p>No pair.</p>"
        else:
            self.page = self._pair_html(pair)
        if self._saved is not None:
            self._saved.update(HTML(self._summary_html()))

    def _pair_html(self, pair: Pair) -> str:
        thumbnail = self._thumbnailer.thumbnails([self._images.iloc[pair.row]])[0]
        settings = (pair.other, pair.reference) if pair.is_swapped else (pair.reference, pair.other)
        names = ("First", "Second") if self._blind else tuple(f"{n}: {s}" for n, s in zip("12", settings, strict=True))
        answers = [(name, plain(text, _LONGEST_TEXT)) for name, text in zip(names, pair.shown, strict=True)]
        return str(
            render(
                _PAIR,
                is_image=thumbnail.size is not None,
                image=thumbnail.text,
                label=plain(pair.label, _LONGEST_NAME),
                answers=answers,
            )
        )

    def _summary_html(self) -> str:
        """Return the counts for a reader without a kernel; nothing about settings before the last pair, if blind."""
        table = self.summary().to_html() if self.pair is None or not self._blind else ""
        return f"<div class='qwenvl-saved'><p>{self.told}</p>{table}</div>"

    def _by_measure(self, name: str) -> pd.DataFrame:
        frame = self._found.frame
        if name not in _BETTER or name not in frame:
            known = ", ".join(one for one in _BETTER if one in frame) or "none: pass truth=… to compare"
            raise ConfigError(f"This comparison has no measure {name!r} that tells better from worse. It has {known}.")
        values: Mapping[tuple[int, str], float] = {
            (row, text): float(value)
            for row, text, value in zip(frame["row"], frame["text"], frame[name], strict=True)
            if isinstance(text, str) and not pd.isna(value)
        }
        rows = []
        for pair in self._pairs:
            one, other = values.get((pair.row, pair.reference_text)), values.get((pair.row, pair.other_text))
            if one is not None and other is not None:
                rows.append((pair.key, "tie" if one == other else "other" if other > one else "reference"))
        return pd.DataFrame(rows, columns=["key", "verdict"])
