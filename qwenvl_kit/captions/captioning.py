"""Run captions for training: keep what text files have, ask again where words are missing, write each row at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qwenvl_kit.captions.sidecars import Existing, Sidecars
from qwenvl_kit.captions.wording import Wording
from qwenvl_kit.errors import ConfigError, OptionWarning, RowError
from qwenvl_kit.executors import execute
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.results import with_results
from qwenvl_kit.types import Prompt, Result

if TYPE_CHECKING:
    from qwenvl_kit.options import Config, ImageSrcType
    from qwenvl_kit.pipeline import Run
    from qwenvl_kit.types import RowPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioning:
    """What is done with the captions of a call.

    Attributes
    ----------
    sidecar : str or None
        Suffix of text files beside the images.
    existing : {"skip", "overwrite", "append"} or None
        What happens to those that exist; None is ``skip``.
    prepend, append : str
        Put before and behind each answer, as they are.
    wording : Wording
        Words that each answer must and must not contain.
    """

    sidecar: str | None = None
    existing: Existing | None = None
    prepend: str = ""
    append: str = ""
    wording: Wording = field(default_factory=Wording)

    @classmethod
    def of(
        cls,
        *,
        sidecar: str | None = None,
        existing: Existing | None = None,
        prepend: str = "",
        append: str = "",
        must: str | Sequence[str] = (),
        must_not: str | Sequence[str] = (),
    ) -> Captioning:
        """Check the values.

        Raises
        ------
        ConfigError
            One is invalid, or `existing` is given without `sidecar`.
        """
        if existing is not None and sidecar is None:
            raise ConfigError(f"existing={existing!r} concerns text files beside the images. Add sidecar='.txt'.")
        for name, text in (("prepend", prepend), ("append", append)):
            if not isinstance(text, str) or text != text.encode("utf-8", "replace").decode():
                raise ConfigError(f"{name}={text!r} is invalid. Use a string without unpaired surrogates.")
        return cls(
            sidecar=sidecar,
            existing=existing,
            prepend=prepend,
            append=append,
            wording=Wording.of(must, must_not),
        )

    def executor(self, cells: Sequence[object], image_src_type: ImageSrcType) -> CaptionExecutor:
        """Return what runs the rows, with the text files of these images.

        Raises
        ------
        ConfigError
            See `Sidecars.of`.
        """
        if self.sidecar is None:
            return CaptionExecutor(self, None)
        return CaptionExecutor(self, Sidecars.of(cells, self.sidecar, self.existing or "skip", image_src_type))


class CaptionExecutor:
    """An `Executor` that finishes each row as a caption.

    A row whose text file is kept has its text, and is not asked. A row whose answer has faulty words is asked once
    more, when all rows have been asked; if words are still faulty, the better answer is flagged.

    Parameters
    ----------
    captioning : Captioning
        What is done with the captions.
    sidecars : Sidecars or None
        The text files.
    """

    def __init__(self, captioning: Captioning, sidecars: Sidecars | None) -> None:
        self._captioning, self._sidecars = captioning, sidecars
        self._finished: dict[int, Result] = {}
        self._doubtful: dict[int, Result] = {}  # first answers with faulty words

    def __call__(
        self,
        cells: Sequence[object],
        prompts: Sequence[RowPrompt],
        config: Config,
        *,
        control: Control | None = None,
    ) -> Run:
        """Run to the end, and write each caption as soon as it is finished."""
        control = control or Control()
        kept = self._kept(len(cells))
        asked = [None if row in kept else cell for row, cell in enumerate(cells)]
        first = self._listening(control, lambda result: kept.get(result.row) or self._first(result))
        run = execute(asked, prompts, config, control=first)
        if self._doubtful and not (run.interrupted or run.failure or control.cancel.is_set()):
            run = self._ask_again(cells, prompts, config, control, run)
        results = [self._finished.get(one.row) or self._unfinished(one) for one in run.results]
        run = with_results(run, results)
        return replace(run, record={**run.record, "cached": sum(result.cached for result in results)})

    def _kept(self, n_rows: int) -> dict[int, Result]:
        """Return the rows that text files answer."""
        if self._sidecars is None:
            return {}
        found = {row: self._sidecars.kept(row) for row in range(n_rows)}
        return {row: Result(row, "ok", text=text, cached=True) for row, text in found.items() if text is not None}

    def _listening(self, control: Control, finish: Callable[[Result], Result | None]) -> Control:
        """Return a control that hands results on once they are finished."""

        def on_result(result: Result) -> None:
            done = finish(result)
            if done is not None:
                self._finished[done.row] = done
                if control.on_result is not None:
                    control.on_result(done)

        return replace(control, on_result=on_result)

    def _first(self, result: Result) -> Result | None:
        """Return a finished first answer; None where it has faulty words."""
        if result.status == "ok" and self._faults(result):
            self._doubtful[result.row] = result
            return None
        return self._written(result)

    def _ask_again(
        self, cells: Sequence[object], prompts: Sequence[RowPrompt], config: Config, control: Control, run: Run
    ) -> Run:
        """Ask rows with faulty words once more, and return their better answers in the run of all."""
        doubtful, wording = dict(self._doubtful), self._captioning.wording
        asked = [cell if row in doubtful else None for row, cell in enumerate(cells)]
        texts = [wording.ask_again(_text(prompt)) if row in doubtful else prompt for row, prompt in enumerate(prompts)]
        second = self._listening(
            replace(control, on_token=None),  # whose caller has heard this row to its end
            lambda result: self._second(result) if result.row in doubtful else None,
        )
        with warnings.catch_warnings():  # the first run has told what it ignores
            warnings.simplefilter("ignore", OptionWarning)
            again = execute(asked, texts, config, control=second)
        record = {**run.record, "asked_again": len(doubtful)}
        return replace(run, record=record, interrupted=again.interrupted, failure=again.failure)

    def _second(self, result: Result) -> Result | None:
        """Return the better of a row's two answers, flagged where words are faulty; None where there is no second."""
        first = self._doubtful[result.row]
        if result.status == "cancelled":
            return None
        best = result if result.status == "ok" and len(self._faults(result)) <= len(self._faults(first)) else first
        flags = [*([best.flag] if best.flag else []), *self._faults(best)]
        return self._written(replace(best, flag="; ".join(flags) or None))

    def _unfinished(self, result: Result) -> Result:
        """Return the result of a row that the end of the run left; one that would be asked again is cancelled."""
        return Result(result.row, "cancelled") if result.row in self._doubtful else result

    def _faults(self, result: Result) -> list[str]:
        return self._captioning.wording.faults(result.text or "")

    def _written(self, result: Result) -> Result:
        if result.status != "ok":
            return result
        captioning = self._captioning
        done = replace(result, text=f"{captioning.prepend}{result.text}{captioning.append}")
        if self._sidecars is None:
            return done
        try:
            self._sidecars.write(result.row, done.text or "")
        except RowError as error:
            return replace(done, status="error", error=error.message, stage=error.stage)
        return done


def _text(prompt: RowPrompt) -> str:
    assert isinstance(prompt, str | Prompt), "a row with an answer has a prompt"
    return prompt.text if isinstance(prompt, Prompt) else prompt
