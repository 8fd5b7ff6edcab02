"""The operator: a callable from lists of images and prompts to a list of texts, for scripts and workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd

from qwenvl_kit.batches import rows_of
from qwenvl_kit.checkpoints.resolve import warn_ignored_options
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.executors import local
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.interrupts import InterruptGuard
from qwenvl_kit.options import Config, Options
from qwenvl_kit.prompts import fill
from qwenvl_kit.results import result_frame, return_or_raise, with_results
from qwenvl_kit.signatures import expand_options
from qwenvl_kit.tasks.answer_forms import AnswerForm

if TYPE_CHECKING:
    from qwenvl_kit.types import Result


class QwenVLImageUnderstanding:
    """Qwen2.5-VL image understanding as a callable.

    Parameters
    ----------
    labels : sequence of str, optional
        Answer with the likeliest of these texts, as `classify` chooses it.
    schema : mapping, type or pydantic model, optional
        Answer with JSON of this schema, as of `extract`.
    regex, choices : str, sequence of str, optional
        Answer with a text of this form, as of `ask`.
    **options
        Options of `Config`; the defaults of ``image_src_type`` and ``progress`` are ``"image_url"`` and False.

    Raises
    ------
    ConfigError, UnknownOption
        An option or the form of answers is invalid or unknown; there is more than one form.
    ModelNotFound
        No searched location has the model.

    Examples
    --------
    >>> understand = QwenVLImageUnderstanding(backend="echo", prompt="What is it?")
    >>> understand([None, ""])
    [None, None]
    """

    def __init__(
        self,
        *,
        labels: Sequence[str] | None = None,
        schema: object = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        **options: Unpack[Options],
    ) -> None:
        given: dict[str, Any] = {"image_src_type": "image_url", "progress": False, **options}
        self._config = Config(**given)
        if self._config.engine != "local":
            raise ConfigError(
                f"The operator does not support engine={self._config.engine!r}, which runs in the calling process. "
                "Leave engine out, or use qwenvl_kit.daft.las_udf in a job on Daft or Ray."
            )
        self._form = AnswerForm.of(self._config, labels=labels, schema=schema, regex=regex, choices=choices)
        # A missing model fails here, not at the first image; one warning is enough for all calls.
        warn_ignored_options(self._config, make_spec(self._config).resolved)

    def __call__(self, images: Iterable[object], user_prompts: Iterable[object] | None = None) -> list[str | None]:
        """Run the model on images.

        Parameters
        ----------
        images : list, Series, Arrow array, numpy array or tensor
            Each entry is one image or a list of images; an array of shape (N, H, W, 3) is N images.
        user_prompts : list, Series or Arrow array, optional
            One per entry; missing values use the ``prompt`` option.

        Returns
        -------
        list of str or None
            One per entry, in order; None for null images and failed rows.

        Raises
        ------
        ConfigError
            `user_prompts` has another length, or an argument is a single value, not a list.
        RowErrors
            Rows failed under ``on_error="raise"``; raised after the last row.
        """
        return [result.text if result.status == "ok" else None for result in self.results(images, user_prompts)]

    def results(self, images: Iterable[object], user_prompts: Iterable[object] | None = None) -> list[Result]:
        """Return all result fields of each row; otherwise as a call.

        Examples
        --------
        >>> QwenVLImageUnderstanding(backend="echo").results([None])[0].status
        'null_image'
        """
        cells = rows_of(images)
        asked = (
            user_prompts
            if user_prompts is None or isinstance(user_prompts, str)
            else rows_of(user_prompts, "user_prompts")
        )
        texts = fill(asked, self._config.prompt, len(cells))
        prompts = self._form.prompts(texts, is_own=asked is not None or "prompt" in self._config.explicit)
        with InterruptGuard(len(cells)) as guard:
            try:
                run = local.execute(cells, prompts, self._config, control=guard.control, warn_ignored=False)
                guard.hold()
            except KeyboardInterrupt:
                guard.hold()
                run = guard.rescued(self._config)
            assert len(run.results) == len(cells), "one result per row"
            run = with_results(run, [self._form.checked(result) for result in run.results])
            frame = result_frame(run, pd.RangeIndex(len(cells)))
            run = guard.finished(run)
        return return_or_raise(run, frame, run.results, on_error=self._config.on_error)


expand_options(QwenVLImageUnderstanding.__init__)
