"""The result of a comparison: tidy frame, summary per setting and plot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from qwenvl_kit.compare.objects import Objects, with_measures
from qwenvl_kit.compare.reliability import N_BINS, reliability_bins
from qwenvl_kit.compare.sheet import MAX_BYTES, ComparisonSheet, Only, comparison_sheet
from qwenvl_kit.compare.summary import answers_of, by_setting, summarize, with_intervals
from qwenvl_kit.compare.tables import html_table, latex_table
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.options import FetchOptions
from qwenvl_kit.stamps import stamp
from qwenvl_kit.thumbnails import Thumbnailer

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    images : Series
        The compared column, for `show`.
    fetch : FetchOptions
        How `show` reads it.
    objects : Objects or None
        What was found, where the task was to find objects.

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
    images: pd.Series | None = field(default=None, repr=False)
    fetch: FetchOptions = field(default_factory=FetchOptions, repr=False)
    objects: Objects | None = field(default=None, repr=False)

    def summary(self, level: float | None = None) -> pd.DataFrame:
        """Return one row per setting: means over images and repeats, indexed by the varied options.

        Parameters
        ----------
        level : float, optional
            Add intervals of agreement and calibration, such as ``right_low`` and ``right_high``, from bootstrap samples
            of the images; and, with a truth, p-values of the difference to the reference setting, such as
            ``right_p``, from a sign-flip test over images. In (0, 1); 0.95 is usual.

        Returns
        -------
        DataFrame
            ``n`` (answers), ``errors``, then the means of ``same``, ``chrf``, with a truth ``right`` and
            ``truth_chrf``, and of ``seconds`` (uncached rows), ``visual_tokens``, ``new_tokens`` and the largest
            ``peak_mib``. With labels or ``logprobs``, the mean ``probability`` of the answers; with a truth as well
            ``brier``, the Brier score, and ``ece``, the expected calibration error over 15 bins. Where objects were
            found: ``same_iou``, the mean IoU of the reference's boxes with this setting's; with a truth ``precision``,
            ``recall``, ``f1`` and ``ap`` at an IoU of 0.5 and 0.75, such as ``f1_50``, ``mean_iou``, and the ``ece`` of
            scores; ``right`` are images of which all objects were found, and nothing else.

        Raises
        ------
        ConfigError
            `level` is not between 0 and 1.
        """
        if level is not None:
            _check_level(level)
        summary = summarize(self.frame, self.varied)
        if level is not None:
            summary = with_intervals(summary, self.frame, self.varied, self.reference, level)
        return summary if self.objects is None else with_measures(summary, self.objects, level)

    def boxes(self, repeat: int = 0) -> dict[str, pd.DataFrame]:
        """Return what each setting found in a repeat, as of ``df.vl.detect``; empty where no objects were asked for.

        ``df.vl.show("image", boxes=found.boxes())`` draws the settings beside each other.
        """
        return {} if self.objects is None else self.objects.frames(repeat)

    def reliability(self, n_bins: int = N_BINS, *, level: float = 0.95) -> pd.DataFrame:
        """Return how often answers are right by how probable they are, a row per setting and bin with answers.

        Parameters
        ----------
        n_bins : int
            Bins of equal width; the default is that of ``ece`` in the summary.
        level : float
            Coverage of the intervals, in (0, 1).

        Returns
        -------
        DataFrame
            The varied options; ``low`` and ``high``, the edges of the bin; ``n`` answers; their mean ``confidence``
            and the share that is ``right``, with its bootstrap interval over images, ``right_low`` and ``right_high``.

        Raises
        ------
        ConfigError
            The comparison has no probabilities or no truth; `n_bins` or `level` is invalid.
        """
        _check_level(level)
        judged = self.frame if self.objects is None else self.objects.judged()
        if not {"probability", "right"} <= set(judged):
            has_none = "probability" not in judged
            lacks, passed = ("probabilities", "labels=… or logprobs=0") if has_none else ("truth", "truth=…")
            raise ConfigError(f"This comparison has no {lacks}. Pass {passed} to compare.")
        parts = []
        for values, part in by_setting(judged, self.varied):
            bins = reliability_bins(*answers_of(part), n_bins=n_bins, level=level)
            for name, value in reversed(list(zip(self.varied, values, strict=True))):
                bins.insert(0, name, [value] * len(bins))
            parts.append(bins)
        return pd.concat(parts, ignore_index=True)

    def plot_reliability(self, n_bins: int = N_BINS, *, ax: Axes | None = None, annotate: bool = True) -> Axes:
        """Plot how often answers are right against their probability: a line per setting, with 95 % intervals.

        Points below the diagonal are answers of which the model is too sure.

        Parameters
        ----------
        n_bins : int
            As of `reliability`.
        ax : matplotlib Axes, optional
            Axes to draw in; default: a new figure.
        annotate : bool
            Write the number of answers at each point.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ConfigError
            As of `reliability`.
        MissingExtra
            matplotlib is not installed.
        """
        from qwenvl_kit.compare.plot import draw_reliability

        return draw_reliability(self.reliability(n_bins), self.varied, ax=ax, annotate=annotate)

    def show(
        self, only: Only | None = None, *, page: int = 1, n_images: int = 24, max_bytes: int = MAX_BYTES
    ) -> ComparisonSheet:
        """Show images with their answers: a row per image, a column per setting.

        Differences from the reference setting are marked ``[+…]`` and ``[−…]``; with a truth, ✓ or ✗ stands before
        each answer. The heads count the answers that are equal to the reference, and right.

        Parameters
        ----------
        only : {"differs", "wrong"}, optional
            Images for which an answer differs from the reference, or is not the truth.
        page : int
            Which page of `n_images` images, from 1.
        n_images : int
            Images on a page.
        max_bytes : int
            Most bytes of HTML in the notebook; a page that takes more says so.

        Returns
        -------
        ComparisonSheet
            It shows itself in a notebook; ``.html`` is the fragment.

        Raises
        ------
        ConfigError
            `only` is something else, or ``"wrong"`` without a truth; `page` or `n_images` is less than 1.

        Examples
        --------
        >>> import pandas as pd, qwenvl_kit
        >>> df = pd.DataFrame({"image": [None]})
        >>> found = df.vl.compare("image", vary={"max_caption_length": [8, 16]}, backend="echo", progress=False)
        >>> found.show()
        ComparisonSheet(1 of 1 images; shows itself in a notebook)
        """
        for name, value in (("page", page), ("n_images", n_images)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}={value!r} is invalid. It must be an integer of at least 1.")
        if self.images is None:
            raise ConfigError("This comparison was made without its images. Use the result of df.vl.compare.")
        return comparison_sheet(
            self.frame,
            self.varied,
            self.reference,
            self.images,
            Thumbnailer.of(self.fetch),
            only=only,
            page=page,
            n_images=n_images,
            max_bytes=max_bytes,
        )

    def to_latex(self, level: float | None = None) -> str:
        """Return the summary as a LaTeX table of the booktabs package, with three digits, and its stamp as a comment.

        Parameters
        ----------
        level : float, optional
            As of `summary`; an interval stands behind its mean.

        Examples
        --------
        >>> import pandas as pd, qwenvl_kit
        >>> df = pd.DataFrame({"image": [None]})
        >>> found = df.vl.compare("image", vary={"max_caption_length": [8, 16]}, backend="echo", progress=False)
        >>> "toprule" in found.to_latex()
        True
        """
        return latex_table(self.summary(level), self._stamp())

    def to_html(self, level: float | None = None) -> str:
        """Return the summary as an HTML table, with the stamp of the run under it.

        Parameters
        ----------
        level : float, optional
            As of `summary`.
        """
        return html_table(self.summary(level), self._stamp())

    def plot(
        self, quality: str | None = None, cost: str = "seconds", *, ax: Axes | None = None, annotate: bool = True
    ) -> Axes:
        """Plot quality against cost: a point per setting, the spread over repeats as error bars.

        Parameters
        ----------
        quality : {"right", "truth_chrf", "same", "chrf", "probability", "brier", "mean_iou"}, optional
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
        from qwenvl_kit.compare.plot import draw, measure_names

        quality = quality or ("right" if "right" in self.frame else "chrf")
        labels = measure_names(self.frame, self.varied, quality, cost)
        return draw(self.frame, list(self.varied), quality, cost, labels, ax=ax, annotate=annotate)

    def _stamp(self) -> str:
        return stamp(self) if self.record else ""

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()  # type: ignore[operator,no-any-return]


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"level must be between 0 and 1; got {level!r}. Pass 0.95 for 95 % intervals.")
