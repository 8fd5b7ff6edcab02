"""The operator: lists of pictures and prompts in, a list of texts out, with the parameters its users know.

It is the same on one machine and in a worker of Daft or Ray; how it got there it does not know.
"""

from __future__ import annotations

from collections.abc import Iterable
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
from qwenvl_kit.results import result_frame, return_or_raise
from qwenvl_kit.signatures import expand_options

if TYPE_CHECKING:
    from qwenvl_kit.types import Result


class QwenVLImageUnderstanding:
    """Qwen2.5-VL image understanding as a callable.

    Parameters
    ----------
    **options
        Those of `Config`; ``image_src_type`` is ``"image_url"`` and ``progress`` False where they are not given.

    Raises
    ------
    ConfigError, UnknownOption
        An option breaks its rule, or does not exist.
    ModelNotFound
        The model is at none of the places looked at.

    Examples
    --------
    >>> understand = QwenVLImageUnderstanding(backend="echo", prompt="What is it?")
    >>> understand([None, ""])
    [None, None]
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        given: dict[str, Any] = {"image_src_type": "image_url", "progress": False, **options}
        self._config = Config(**given)
        if self._config.engine != "local":
            raise ConfigError(
                f"engine={self._config.engine!r} is for df.vl; the operator runs where it is called; leave it out, and "
                "see qwenvl_kit.daft.las_udf for its place in a job on Daft or Ray"
            )
        # A missing model fails here, not with the first picture, and one warning is enough for all calls.
        warn_ignored_options(self._config, make_spec(self._config).resolved)

    def __call__(self, images: Iterable[object], user_prompts: Iterable[object] | None = None) -> list[str | None]:
        """Understand pictures.

        Parameters
        ----------
        images : list, Series, Arrow array, numpy array or tensor
            One picture, or a list of pictures, each; an array of shape (N, H, W, 3) is N pictures.
        user_prompts : list, Series or Arrow array, optional
            One per picture; where it is missing, the ``prompt`` option serves.

        Returns
        -------
        list of str or None
            One per picture, in order; None where there is none or the row failed.

        Raises
        ------
        ConfigError
            `user_prompts` has another length, or one value was given in place of a list.
        RowErrors
            Rows failed under ``on_error="raise"``, after all are finished.
        """
        return [result.text for result in self.results(images, user_prompts)]

    def results(self, images: Iterable[object], user_prompts: Iterable[object] | None = None) -> list[Result]:
        """As a call, with everything that is known of each row.

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
        prompts = fill(asked, self._config.prompt, len(cells))
        with InterruptGuard(len(cells)) as guard:
            try:
                run = local.execute(cells, prompts, self._config, control=guard.control, warn_ignored=False)
                guard.hold()
            except KeyboardInterrupt:
                guard.hold()
                run = guard.rescued(self._config)
            assert len(run.results) == len(cells), "one result per picture"
            frame = result_frame(run, pd.RangeIndex(len(cells)))
            run = guard.finished(run)
        return return_or_raise(run, frame, lambda _: run.results, self._config)


expand_options(QwenVLImageUnderstanding.__init__)
