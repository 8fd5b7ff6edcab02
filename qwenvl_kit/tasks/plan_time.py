"""Estimate the time of a run from what ``qwenvl-kit bench`` measured of this model on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenvl_kit.calibration import Calibration, read_calibration

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import BackendSpec
    from qwenvl_kit.tasks.plan_rows import PlannedRow


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTime:
    """Seconds that the rows of a run take.

    Attributes
    ----------
    vision_s, prompt_s : float
        Of all images, and of all prompts.
    decode_s : float
        Of all answers at most: if each has ``max_caption_length`` tokens.
    row_s : tuple of float
        Of the image and prompt of each row; 0 for rows that do not run.
    measured_at : str
        When the machine was measured.
    """

    vision_s: float
    prompt_s: float
    decode_s: float
    row_s: tuple[float, ...]
    measured_at: str

    @property
    def total_s(self) -> float:
        """Seconds of the run at most."""
        return self.vision_s + self.prompt_s + self.decode_s


def planned_time(
    rows: Sequence[PlannedRow], spec: BackendSpec, *, rows_in_flight: int, max_new_tokens: int
) -> PlannedTime | None:
    """Return the time of rows, or None where this model was not measured on this machine."""
    measured = calibration_of(spec)
    if measured is None:
        return None
    patch, good = spec.geometry.patch, [row for row in rows if row.status == "ok"]
    vision = {row.row: sum(measured.seconds_of_image(h * w // patch**2) for h, w in row.resized) for row in good}
    prompts = {row.row: measured.seconds_of_prompt(row.prompt_tokens or 0) for row in good}
    n_together = max(1, min(rows_in_flight, len(good)))
    step_s = measured.seconds_of_step(n_together) / n_together
    return PlannedTime(
        vision_s=sum(vision.values()),
        prompt_s=sum(prompts.values()),
        decode_s=step_s * max_new_tokens * len(good),
        row_s=tuple(vision.get(row.row, 0.0) + prompts.get(row.row, 0.0) for row in rows),
        measured_at=measured.measured_at,
    )


def calibration_of(spec: BackendSpec) -> Calibration | None:
    """Return what was measured of a model on this machine."""
    from qwenvl_kit.checkpoints.devices import hardware_label  # here, since it imports torch

    resolved = spec.resolved
    return read_calibration(spec.fingerprint, hardware_label(resolved.device, resolved.threads))
