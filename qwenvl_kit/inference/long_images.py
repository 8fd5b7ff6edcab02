"""Tell once in a run that an image takes more than a minute on this device, and what shortens it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from qwenvl_kit._warnings import warn
from qwenvl_kit._words import duration
from qwenvl_kit.errors import CostWarning
from qwenvl_kit.inference.packing import max_image_patches

if TYPE_CHECKING:
    import torch

    from qwenvl_kit.calibration import Calibration
    from qwenvl_kit.inference.backend import RunControl, Stage
    from qwenvl_kit.inference.sequence import Sequence

LIMIT_S = 60.0
_AIM_S = 20.0  # what the suggested size takes


class LongImages:
    """Predict the time of the largest image of each batch.

    Before its pass from a calibration, or from the pace of earlier batches; else once the first of its layers is done.

    Parameters
    ----------
    control : RunControl
        Receives the note.
    device : torch.device
        Whose passes may hold several images.
    measured : Calibration, optional
        What ``qwenvl-kit bench`` measured.
    clock : callable
        Return seconds.

    Attributes
    ----------
    control : RunControl
        The same, which reports the layers of passes here too.
    """

    def __init__(
        self,
        control: RunControl,
        device: torch.device,
        measured: Calibration | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report, self._note, self._clock = control.report, control.note, clock
        self._device, self._measured = device, measured
        self.control = replace(control, report=self.report)
        self._is_told = False
        self._largest: Sequence | None = None
        self._n_patches = self._n_tokens = 0  # of the batch
        self._stage: Stage | None = None
        self._started = self._before_s = 0.0
        self._pace: dict[Stage, float] = {}  # seconds of a patch, and of a prompt's token

    def begin(self, sequences: list[Sequence]) -> None:
        """Predict the time of a batch before its images are encoded."""
        self._stage, self._before_s = None, 0.0
        if self._is_told or not sequences:
            return
        self._largest = largest = max(sequences, key=_patches)
        self._n_patches = sum(map(_patches, sequences))
        self._n_tokens = sum(len(one.prompt_ids) for one in sequences)
        n_patches, n_tokens = _patches(largest), len(largest.prompt_ids)
        if self._measured is not None:
            self._check(self._measured.seconds_of_image(n_patches) + self._measured.seconds_of_prompt(n_tokens))
        elif len(self._pace) == 2:
            self._check(self._pace["encode"] * n_patches + self._pace["prefill"] * n_tokens)

    def report(self, stage: Stage, done: int, total: int) -> None:
        """Pass a report on, and predict the rest of the stage from the layers that are done."""
        self._report(stage, done, total)
        if self._is_told or self._largest is None or stage == "load":
            return
        now = self._clock()
        if done == 1:
            if stage != self._stage:
                self._before_s += 0.0 if self._stage is None else (now - self._started) * self._share(self._stage)
                self._stage = stage
            self._started = now
            return
        stage_s = (now - self._started) / (done - 1) * total
        if done == total:
            size = self._in_pass() if stage == "encode" else self._n_tokens
            self._pace[stage] = max(self._pace.get(stage, 0.0), stage_s / size)
        self._check(self._before_s + stage_s * self._share(stage))

    def _in_pass(self) -> int:
        assert self._largest is not None
        return max(_patches(self._largest), min(max_image_patches(self._device), self._n_patches))

    def _share(self, stage: Stage) -> float:
        """Return the part of a stage that the largest image takes."""
        assert self._largest is not None
        if stage == "encode":
            return _patches(self._largest) / self._in_pass()
        return len(self._largest.prompt_ids) / self._n_tokens

    def _check(self, seconds: float) -> None:
        if seconds <= LIMIT_S or self._largest is None or self._is_told:
            return
        self._is_told = True
        message = _message(self._largest, seconds)
        self._note(message)
        warn(message, CostWarning)


def _patches(sequence: Sequence) -> int:
    return int(sequence.grid.prod(dim=1).sum())


def _message(sequence: Sequence, seconds: float) -> str:
    images = sequence.request.images
    n_pixels = sum(height * width for height, width in (image.size for image in images))
    n_visual = sequence.n_visual_in(len(sequence.prompt_ids))
    unit = n_pixels // n_visual
    n_aim = max(4, int(n_visual * _AIM_S / seconds) // len(images))
    what = "image has" if len(images) == 1 else f"{len(images)} images have"
    return (
        f"Row {sequence.request.row} takes about {duration(seconds)} on this device before its answer begins: its "
        f"{what} {n_visual} visual tokens. Pass max_pixels={n_aim * unit} for about "
        f"{duration(seconds * n_aim * len(images) / n_visual)}. This is said once in a run."
    )
