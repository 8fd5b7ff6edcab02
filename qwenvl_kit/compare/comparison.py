"""The result of a comparison: its tidy frame, a summary per setting, a plot.

It keeps what ran and computes nothing anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MEASURES = {
    "right": ("right", "share of answers that are right"),
    "truth_chrf": ("truth_chrf", "chrF against the truth"),
    "same": ("same", "share of answers equal to the reference's"),
    "chrf": ("chrf", "chrF against the reference"),
    "seconds": ("seconds", "seconds a picture"),
    "visual_tokens": ("visual_tokens", "visual tokens a picture"),
    "prompt_tokens": ("prompt_tokens", "prompt tokens a picture"),
    "new_tokens": ("new_tokens", "new tokens a picture"),
    "peak_mib": ("peak_mib", "peak memory, MiB"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What ``df.vl.compare`` gives.

    Attributes
    ----------
    frame : DataFrame
        Tidy: one row per picture, setting and repeat; the varied options are its first columns.
    varied : tuple of str
        Names of the options that vary.
    reference : dict
        The values that answers were compared to; options not in it are those of the setting itself.
    complete : bool
        False where the grid was stopped before its end.
    record : dict
        What ran in each setting, which models were loaded, how long it took, as plain JSON values.

    Examples
    --------
    >>> import pandas as pd, qwenvl_kit
    >>> df = pd.DataFrame({"image": [None]})
    >>> found = df.vl.compare("image", vary={"max_caption_length": [8, 16]}, backend="echo", progress=False)
    >>> found.frame["status"].tolist()
    ['null_image', 'null_image']
    """

    frame: pd.DataFrame
    varied: tuple[str, ...]
    reference: dict[str, Any]
    complete: bool
    record: dict[str, Any] = field(repr=False)

    def summary(self) -> pd.DataFrame:
        """One row per setting: means over pictures and repeats, under the varied options.

        Returns
        -------
        DataFrame
            ``n`` (answers), ``errors``, then the means of ``same``, ``chrf``, with a truth ``right`` and
            ``truth_chrf``, and of ``seconds`` (of rows that were not cached), ``visual_tokens``, ``new_tokens`` and the
            largest ``peak_mib``.
        """
        frame = self.frame.assign(
            seconds=self.frame["seconds"].where((self.frame["status"] == "ok") & ~self.frame["cached"]),
            n=self.frame["status"] == "ok",
            errors=self.frame["status"] == "error",
        )
        means = [
            n for n in ("same", "chrf", "right", "truth_chrf", "seconds", "visual_tokens", "new_tokens") if n in frame
        ]
        frame[means] = frame[means].astype("Float64")
        how = {"n": "sum", "errors": "sum", **dict.fromkeys(means, "mean"), "peak_mib": "max"}
        return frame.groupby(list(self.varied), sort=False, dropna=False).agg(how)

    def plot(
        self, quality: str | None = None, cost: str = "seconds", *, ax: Axes | None = None, annotate: bool = True
    ) -> Axes:
        """Quality against cost, a point per setting, with the spread over repeats as error bars.

        Parameters
        ----------
        quality : {"right", "truth_chrf", "same", "chrf"}, optional
            Without it ``right`` where there is a truth, else ``chrf``.
        cost : {"seconds", "visual_tokens", "prompt_tokens", "new_tokens", "peak_mib"}
            Of a picture; or a varied option that is a number, such as ``"resized_height"``.
        ax : matplotlib Axes, optional
            Where to draw; a new figure without it.
        annotate : bool
            Write each setting beside its point.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ConfigError
            There is no such measure in the frame.
        MissingExtra
            matplotlib is not installed.
        """
        from qwenvl_kit.compare.plot import draw

        quality = quality or ("right" if "right" in self.frame else "chrf")
        for name in (quality, cost):
            if name not in self.frame or not pd.api.types.is_numeric_dtype(self.frame[name]):
                known = [name for name in (*_MEASURES, *self.varied) if name in self.frame]
                raise ConfigError(
                    f"quality and cost must be measured numbers; got {name!r}; those are: {', '.join(known)}"
                )
        labels = {name: _MEASURES.get(name, (name, name))[1] for name in (quality, cost)}
        return draw(self.frame, list(self.varied), quality, cost, labels, ax=ax, annotate=annotate)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()  # type: ignore[operator,no-any-return]
