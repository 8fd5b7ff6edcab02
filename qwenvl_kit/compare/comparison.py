"""The result of a comparison: tidy frame, summary per setting and plot."""

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
    "same": ("same", "share of answers equal to the reference"),
    "chrf": ("chrf", "chrF against the reference"),
    "seconds": ("seconds", "seconds per image"),
    "visual_tokens": ("visual_tokens", "visual tokens per image"),
    "prompt_tokens": ("prompt_tokens", "prompt tokens per image"),
    "new_tokens": ("new_tokens", "new tokens per image"),
    "peak_mib": ("peak_mib", "peak memory, MiB"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The result of ``df.vl.compare``.

    Attributes
    ----------
    frame : DataFrame
        Tidy: one row per image, setting and repeat; the varied options are its first columns.
    varied : tuple of str
        Names of the options that vary.
    reference : dict
        The reference values; options not in it keep each setting's own value.
    complete : bool
        False where the grid ended early.
    record : dict
        Resolved options by setting, loaded models and times, as JSON values.

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
        """Return one row per setting: means over images and repeats, indexed by the varied options.

        Returns
        -------
        DataFrame
            ``n`` (answers), ``errors``, then the means of ``same``, ``chrf``, with a truth ``right`` and
            ``truth_chrf``, and of ``seconds`` (uncached rows), ``visual_tokens``, ``new_tokens`` and the largest
            ``peak_mib``.
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
        """Plot quality against cost: a point per setting, the spread over repeats as error bars.

        Parameters
        ----------
        quality : {"right", "truth_chrf", "same", "chrf"}, optional
            Default: ``right`` where there is a truth, else ``chrf``.
        cost : {"seconds", "visual_tokens", "prompt_tokens", "new_tokens", "peak_mib"}
            Per image; or a numeric varied option, such as ``"resized_height"``.
        ax : matplotlib Axes, optional
            Axes to draw in; default: a new figure.
        annotate : bool
            Label each point with its setting.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ConfigError
            The frame has no such numeric measure.
        MissingExtra
            matplotlib is not installed.
        """
        from qwenvl_kit.compare.plot import draw

        quality = quality or ("right" if "right" in self.frame else "chrf")
        for name in (quality, cost):
            if name not in self.frame or not pd.api.types.is_numeric_dtype(self.frame[name]):
                known = [name for name in (*_MEASURES, *self.varied) if name in self.frame]
                raise ConfigError(
                    f"{name!r} is not a numeric measure of this comparison. Use one of: {', '.join(known)}."
                )
        labels = {name: _MEASURES.get(name, (name, name))[1] for name in (quality, cost)}
        return draw(self.frame, list(self.varied), quality, cost, labels, ax=ax, annotate=annotate)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()  # type: ignore[operator,no-any-return]
