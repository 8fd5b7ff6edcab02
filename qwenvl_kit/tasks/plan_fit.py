"""Compare the memory of a run with what is free, and find the options with which it fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qwenvl_kit._memory import in_words
from qwenvl_kit.errors import RowError
from qwenvl_kit.images import Sizing
from qwenvl_kit.inference.packing import MAX_ROWS
from qwenvl_kit.tasks.plan_memory import ModelMemory, Part, Workload, by_device, free_memory_of, room_of
from qwenvl_kit.tasks.plan_rows import PlannedRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.inference.backend import BackendSpec
    from qwenvl_kit.options import Config

_TEXT_TOKENS = 64  # of a prompt beside its visual tokens, with the template


@dataclass(frozen=True, slots=True)
class Case:
    """A run whose memory is computed: with other options, another case.

    Attributes
    ----------
    model : ModelMemory
    rows : sequence of PlannedRow
    sizing : Sizing
        How its images are resized.
    rows_in_flight, max_new_tokens : int
        As in the options.
    free : mapping of str to int
        Bytes that each device has free.
    """

    model: ModelMemory
    rows: Sequence[PlannedRow]
    sizing: Sizing
    rows_in_flight: int
    max_new_tokens: int
    free: Mapping[str, int]

    def parts(self) -> list[Part]:
        """Return the memory of each part of the run."""
        work = Workload.of(self.rows)
        return self.model.parts(work, rows_in_flight=self.rows_in_flight, max_new_tokens=self.max_new_tokens)

    def shortages(self) -> dict[str, tuple[int, int]]:
        """Return the bytes that are needed and those that are free, for each device where they do not suffice."""
        needed = by_device(self.parts(), missing_only=True)
        return {at: (n, self.free[at]) for at, n in needed.items() if at in self.free and n > self.free[at]}

    def fits(self) -> bool:
        """Return whether every device has enough; True for devices that do not say what is free."""
        return not self.shortages()

    def with_max_pixels(self, max_pixels: int) -> Case:
        """Return the case of images of at most so many pixels."""
        geometry = self.sizing.geometry
        least = min(geometry.min_pixels, max_pixels)
        sizing = replace(self.sizing, geometry=replace(geometry, min_pixels=least, max_pixels=max_pixels))
        return replace(self, sizing=sizing, rows=[_resized(row, sizing) for row in self.rows])


def case_of(spec: BackendSpec, rows: Sequence[PlannedRow], config: Config) -> Case | None:
    """Return the case of a config's options; None where there is no model."""
    model = ModelMemory.of(spec)
    if model is None:
        return None
    free = {at: n for at in dict.fromkeys(("cpu", model.device)) if (n := free_memory_of(at)) is not None}
    case = Case(model, rows, Sizing.of(config.image, spec.geometry), 1, config.max_caption_length, free)
    return replace(case, rows_in_flight=rows_in_flight_of(case, spec.resolved))


def largest_image(spec: BackendSpec, config: Config) -> tuple[PlannedRow, Case] | None:
    """Return the row of one image of the most pixels that the options allow, and its case; None without a model."""
    sizing = Sizing.of(config.image, spec.geometry)
    side = math.isqrt(sizing.geometry.max_pixels)
    size = sizing.target((side, side))
    n_visual = size[0] * size[1] // sizing.geometry.factor**2
    row = PlannedRow(0, "ok", (size,), (size,), n_visual, n_visual + _TEXT_TOKENS)
    case = case_of(spec, [row], config)
    return None if case is None else (row, case)


def rows_in_flight_of(case: Case, resolved: ResolvedConfig) -> int:
    """Return how many rows generate tokens at once: as asked for, or as a run sizes them from free memory."""
    if resolved.rows_in_flight != "auto":
        return resolved.rows_in_flight
    device = case.model.device
    most = max(resolved.batch_size, MAX_ROWS["cpu" if device == "cpu" else "cuda"])
    if device not in case.free:
        return resolved.batch_size
    from qwenvl_kit.inference.cache_memory import after_reserve

    left = after_reserve(device, max(0, case.free[device] - case.model.weights))  # as measured once it is loaded
    row_bytes = room_of(Workload.of(case.rows), case.max_new_tokens, case.model.device) * case.model.kv_per_token
    return max(1, min(most, int(left // row_bytes)))


def problems(case: Case) -> list[str]:
    """Return a sentence on each device whose memory does not suffice, and what to change.

    Each remedy was computed: with it alone, or with all that stand before "and", the run fits.
    """
    shortages = case.shortages()
    if not shortages:
        return []
    lacks = " ".join(
        f"{device} needs {in_words(needed)} and has {in_words(free)} free."
        for device, (needed, free) in shortages.items()
    )
    remedies = list(_remedies(case))
    if not remedies:
        weights = in_words(case.model.weights)
        remedies = [f"a smaller or quantised model: the weights take {weights} in {case.model.dtype}"]
    return [f"The run does not fit: {lacks} Use {', or '.join(remedies)}."]


def _remedies(case: Case) -> Iterator[str]:
    n_rows, pixels = _fewer_rows(case), _fewer_pixels(case)
    if n_rows is not None:
        yield f"rows_in_flight={n_rows}"
    if pixels is not None:
        yield f"max_pixels={pixels}"
    if n_rows is None and pixels is None and (pixels := _fewer_pixels(replace(case, rows_in_flight=1))) is not None:
        yield f"rows_in_flight=1 and max_pixels={pixels}"
    if case.model.dtype == "float32" and replace(case, model=case.model.in_16_bits()).fits():
        yield "dtype='bfloat16'"
    if case.model.device.startswith("cuda:") and sum(by_device(case.parts(), missing_only=True).values()) <= sum(
        case.free.values()
    ):
        yield "device_map='auto', which keeps a part of the weights in RAM"


def _fewer_rows(case: Case) -> int | None:
    return _largest(range(1, case.rows_in_flight), lambda n: replace(case, rows_in_flight=n).fits())


def _fewer_pixels(case: Case) -> int | None:
    """Return the largest multiple of a visual token's pixels with which the case fits; None where there is none."""
    unit = case.sizing.geometry.factor**2
    largest = max((height * width for row in case.rows for height, width in row.resized), default=0)
    if case.sizing.resized_height or case.sizing.resized_width:  # a fixed size, whatever the limits
        return None
    n_tokens = _largest(range(4, largest // unit), lambda n: case.with_max_pixels(n * unit).fits())
    return None if n_tokens is None else n_tokens * unit


def _resized(row: PlannedRow, sizing: Sizing) -> PlannedRow:
    """Return a row whose images are resized under other limits."""
    if row.status != "ok" or row.visual_tokens is None:
        return row
    try:
        resized = tuple(sizing.target(size) for size in row.sizes)
    except RowError:
        return row
    n_visual = sum(height * width for height, width in resized) // sizing.geometry.factor**2
    n_prompt = None if row.prompt_tokens is None else row.prompt_tokens - row.visual_tokens + n_visual
    return replace(row, resized=resized, visual_tokens=n_visual, prompt_tokens=n_prompt)


def _largest(candidates: range, holds: Callable[[int], bool]) -> int | None:
    """Return the largest candidate that holds, where smaller ones hold too; None where none does."""
    low, high = candidates.start, candidates.stop
    if low >= high or not holds(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
