"""Measure settings of one model within a budget of time: single passes first, then whole runs."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qwenvl_kit.calibration import Calibration, write_calibration
from qwenvl_kit.cli.bench_passes import PassTimes, timed_passes
from qwenvl_kit.errors import BackendFailed
from qwenvl_kit.executors.model_cache import model_cache
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.inference.backend import BackendSpec, Control, RunControl
from qwenvl_kit.inference.cancellation import Cancelled
from qwenvl_kit.options import Config

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PROBE_TOKENS = 8
_LARGE_SHARE, _STEPS_SHARE = 0.1, 0.15  # of the budget, that timing a large image, and steps of many rows, may take


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting to measure: backend, model, CPU threads (None for the default) and batch size."""

    backend: str
    model_name: str
    threads: int | None
    batch_size: int

    def options(self) -> dict[str, Any]:
        """Return the setting as options of a call."""
        return {
            "backend": self.backend,
            "model_name": self.model_name,
            "threads": self.threads,
            "batch_size": self.batch_size,
        }

    def __str__(self) -> str:
        """Return the setting as keyword arguments."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options().items())


@dataclass(frozen=True, slots=True)
class Pace:
    """Rows and tokens per second of one setting: medians of whole runs, or computed from single passes."""

    setting: Setting
    rows_per_s: float
    tokens_per_s: float
    notes: tuple[str, ...] = ()
    is_measured: bool = True


@dataclass(slots=True)
class Budget:
    """The time that a benchmark may take.

    Attributes
    ----------
    seconds : float
        All of it.
    started : float
        When it began, by `time.perf_counter`.
    """

    seconds: float
    started: float = field(default_factory=time.perf_counter)

    @property
    def left_s(self) -> float:
        """Seconds that are left; negative once it is spent."""
        return self.seconds - (time.perf_counter() - self.started)

    def control(self) -> tuple[Control, threading.Timer]:
        """Return a control that is cancelled once the budget is spent, and its timer, started."""
        cancel = threading.Event()
        timer = threading.Timer(max(0.0, self.left_s), cancel.set)
        timer.daemon = True
        timer.start()
        return Control(cancel), timer


class ModelBench:
    """Measure one model with several batch sizes.

    Parameters
    ----------
    options : dict
        Of every call.
    settings : sequence of Setting
        Of one backend, model and number of threads.
    budget : Budget
        Where it ends.
    side : int
        Of the images, in pixels.
    n_images : callable
        Return the images of a run of a batch size.
    say : callable
        Called with a line for each thing that is done.
    """

    def __init__(
        self,
        options: dict[str, Any],
        settings: Sequence[Setting],
        budget: Budget,
        *,
        side: int,
        n_images: Callable[[int], int],
        say: Callable[[str], None],
    ) -> None:
        self._options, self._settings, self._budget = options, settings, budget
        self._side, self._n_images, self._say = side, n_images, say
        self._images = _images()
        self._size = (0, 0)  # patches of an image of `side`, and tokens of its prompt
        self._runs: dict[Setting, list[tuple[float, int, float, tuple[str, ...]]]] = {one: [] for one in settings}

    def measure(self, n_rounds: int) -> list[Pace]:
        """Return the pace of each setting that was measured or can be computed."""
        spec = make_spec(Config(**_joined(self._options, self._settings[0])))
        control, timer = self._budget.control()
        try:
            started = time.perf_counter()
            with model_cache.acquire(spec, RunControl(control.cancel)) as backend:
                self._say(f"{spec.resolved.model} loaded in {time.perf_counter() - started:.1f} s")
        except Cancelled:
            self._say(f"Loading took longer than the budget of {self._budget.seconds:g} s. Pass a larger --budget.")
            return []
        finally:
            timer.cancel()
        measured = None
        if getattr(backend, "model_runner", None) is not None:
            with timed_passes(backend) as times:
                self._time_passes(times)
                measured = self._keep(times, spec)
        for number in range(n_rounds):
            self._run_round(number, measured)
        return [pace for setting in self._settings if (pace := self._pace(setting, measured)) is not None]

    def _time_passes(self, times: PassTimes) -> None:
        """Time images of three sizes, and decode steps of each number of rows."""
        small, large = max(28, self._side // 2), 2 * self._side
        self._probe(1, small)
        times.end_warm_up()
        for side in (small, self._side):
            self._probe(1, side)
        self._size = times.last_size()
        seconds = sum(max(some) for some in times.images.values())
        if 5 * seconds < _LARGE_SHARE * self._budget.seconds:
            self._probe(1, large)
        for n_rows in sorted({setting.batch_size for setting in self._settings} - {1}):
            known = max(times.steps, default=0)
            step_s = statistics.median(times.steps[known]) * n_rows / known if known else 0.0
            if step_s * _PROBE_TOKENS > _STEPS_SHARE * self._budget.left_s:
                self._say(f"Steps of {n_rows} rows were not timed for lack of time.")
                break
            self._probe(n_rows, small)

    def _probe(self, n_rows: int, side: int) -> None:
        """Answer a few tokens for `n_rows` questions about one image, which is encoded once."""
        options = _joined(self._options, replace(self._settings[0], batch_size=n_rows)) | {
            "max_caption_length": _PROBE_TOKENS
        }
        cells = pd.Series([self._image(side)] * n_rows, dtype=object)
        self._run(cells, options, [f"Describe this image, please. {row}" for row in range(n_rows)])

    def _keep(self, times: PassTimes, spec: BackendSpec) -> Calibration | None:
        """Print and store what was timed."""
        measured = times.calibration(spec)
        if measured is None:
            return None
        for name, unit, points in (
            ("image", "patches", measured.vision_s),
            ("prompt", "tokens", measured.prefill_s),
            ("step", "rows", measured.decode_s),
        ):
            self._say(f"{name}: " + ", ".join(f"{size} {unit} {_in_words(s)}" for size, s in points.items()))
        try:
            write_calibration(measured)
        except OSError as error:
            self._say(f"These times were not stored for qwenvl-kit plan: {error}")
        return measured

    def _run_round(self, number: int, measured: Calibration | None) -> None:
        """Run each setting once, unless it would take more than the time that is left."""
        for setting in self._settings:
            n, wanted = self._n_images(setting.batch_size), self._expected_s(setting, measured)
            if self._budget.left_s <= 0 or wanted > self._budget.left_s:
                if number == 0:
                    about = f"about {wanted:.0f} s" if wanted else "the budget is spent"
                    self._say(f"batch_size={setting.batch_size} was not run for lack of time ({about}).")
                continue
            if any(run[3] for run in self._runs[setting]):
                continue  # memory did not suffice for it
            cells = pd.Series([self._image(self._side) for _ in range(n)])  # new images: known ones are cached
            started = time.perf_counter()
            done = self._run(cells, _joined(self._options, setting))
            seconds = time.perf_counter() - started
            if done is None:
                self._say(f"batch_size={setting.batch_size} did not end within the budget.")
                continue
            notes = tuple(note for note in done.attrs["effective"]["notes"] if "Out of memory" in note)
            self._runs[setting].append((n / seconds, n, float(done["new_tokens"].sum()) / seconds, notes))
            self._say(f"batch_size={setting.batch_size}: {n} images in {seconds:.1f} s")

    def _run(self, cells: pd.Series, options: dict[str, Any], prompts: list[str] | None = None) -> pd.DataFrame | None:
        """Return the rows of a run, None if the budget ended it."""
        control, timer = self._budget.control()
        try:
            done: pd.DataFrame = cells.vl.run(prompts=prompts, control=control, **options)
        finally:
            timer.cancel()
        if (done["status"] == "error").any():
            raise BackendFailed(f"Rows failed with {options}: {done['error'].dropna().iloc[0]}")
        return done if (done["status"] == "ok").all() else None

    def _expected_s(self, setting: Setting, measured: Calibration | None) -> float:
        """Return how long a run of a setting takes at most; 0 where nothing is known."""
        n = self._n_images(setting.batch_size)
        if self._runs[setting]:
            return n / self._runs[setting][0][0]
        return 0.0 if measured is None else n / self._computed(setting, measured)[0]

    def _pace(self, setting: Setting, measured: Calibration | None) -> Pace | None:
        if runs := self._runs[setting]:
            rows, _, tokens, notes = zip(*runs, strict=True)
            return Pace(setting, statistics.median(rows), statistics.median(tokens), notes[-1])
        return None if measured is None else Pace(setting, *self._computed(setting, measured), is_measured=False)

    def _computed(self, setting: Setting, measured: Calibration) -> tuple[float, float]:
        """Return rows and tokens per second as the passes give them."""
        patches, tokens = self._size
        image_s = measured.seconds_of_image(patches) + measured.seconds_of_prompt(tokens)
        n_new = self._new_tokens()
        rows_per_s = 1 / (image_s + n_new * measured.seconds_of_step(setting.batch_size) / setting.batch_size)
        return rows_per_s, n_new * rows_per_s

    def _new_tokens(self) -> float:
        """Return the tokens of an answer: as seen, else at most."""
        seen = [tokens / rows for runs in self._runs.values() for rows, _, tokens, _ in runs]
        return statistics.median(seen) if seen else float(Config(**self._options).max_caption_length)

    def _image(self, side: int) -> NDArray[np.uint8]:
        coarse, cell = next(self._images), -(-side // 8)
        return np.kron(coarse, np.ones((cell, cell, 1), dtype=np.uint8))[:side, :side]


def _joined(options: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """Return the options of a setting, without those that an export fixes."""
    decided = ("dtype",) if setting.backend == "onnx" else ()
    return {name: value for name, value in options.items() if name not in decided} | setting.options()


def _images() -> Iterator[NDArray[np.uint8]]:
    """Yield distinct images of 8 × 8 coloured squares, endlessly."""
    draw = np.random.default_rng(0)
    while True:
        yield draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)


def _in_words(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1e3 * seconds:.2f} ms"
