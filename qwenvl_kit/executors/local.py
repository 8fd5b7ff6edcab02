"""Run in this process, on a model that stays loaded between runs. Here the parts of a run are assembled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from qwenvl_kit.checkpoints.resolve import asked_record, warn_ignored_options
from qwenvl_kit.errors import ConfigError, StoreError
from qwenvl_kit.executors.base import without_record
from qwenvl_kit.executors.model_cache import model_cache
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.images import FetchCache, ImageLoader, Sizing, is_null
from qwenvl_kit.inference.backend import Control, RunControl
from qwenvl_kit.inference.constraints import check_constraints
from qwenvl_kit.pipeline import Run
from qwenvl_kit.pipeline.cache_key import CacheKeyBuilder
from qwenvl_kit.pipeline.collector import ResultCollector
from qwenvl_kit.pipeline.plan import make_plan
from qwenvl_kit.pipeline.prefetch import ImagePrefetcher
from qwenvl_kit.pipeline.progress import StageProgress
from qwenvl_kit.pipeline.run import collect, generate
from qwenvl_kit.pipeline.run_record import RunClock, make_record
from qwenvl_kit.pipeline.source_index import SourceIndex
from qwenvl_kit.store import open_store
from qwenvl_kit.torch_backend.openmp import release_openmp_threads
from qwenvl_kit.types import Prompt

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import Backend, BackendSpec
    from qwenvl_kit.options import Config
    from qwenvl_kit.pipeline.collector import Store
    from qwenvl_kit.types import RowPrompt


def execute(
    cells: Sequence[object],
    prompts: Sequence[RowPrompt],
    config: Config,
    *,
    control: Control | None = None,
    warn_ignored: bool = True,
    cache: FetchCache | None = None,
) -> Run:
    """Run in this process; the model is loaded when the first image is ready, and stays loaded.

    Parameters
    ----------
    cells, prompts, config, control
        As for every `Executor`.
    warn_ignored : bool
        Warn of ignored options; False for callers that have done so.
    cache : FetchCache, optional
        Keeps fetched files, for callers that run several times over the same cells.

    Raises
    ------
    BackendBusy, ForkedProcess
        See `ModelCache.running`; nothing is loaded.
    ConfigError, ModelNotFound
        See `qwenvl_kit.executors.specs.make_spec`.
    StoreError
        The store cannot be used, and some rows need it.
    """
    with model_cache.running():
        spec = make_spec(config)
        if warn_ignored:
            warn_ignored_options(config, spec.resolved)
        acquire = functools.partial(model_cache.acquire, spec)
        work = functools.partial(run_spec, cells, prompts, config, spec, acquire, control=control, cache=cache)
        if config.store is None:
            return work()
        done: Run | None = None
        try:
            with open_store(config.store) as store:
                done = work(store=store)
                store.add_run(done.record)
        except (Exception, KeyboardInterrupt) as error:
            if done is None and isinstance(error, StoreError) and all(map(is_null, cells)):  # rows that need no store
                done = work()
            if done is None:
                raise
            done = without_record(done, error)
        return done


def run_spec(
    cells: Sequence[object],
    prompts: Sequence[RowPrompt],
    config: Config,
    spec: BackendSpec,
    acquire: Callable[[RunControl], AbstractContextManager[Backend]],
    *,
    control: Control | None = None,
    store: Store | None = None,
    cache: FetchCache | None = None,
) -> Run:
    """Assemble a run from its config, and run it.

    Parameters
    ----------
    cells : sequence
        One image, or list of images, per row.
    prompts : sequence of str, Prompt, RowError or None
        One per row.
    config : Config
        What was asked.
    spec : BackendSpec
        The model.
    acquire : callable
        Give the loaded backend for the time of the run; called only once there is something to ask.
    control : Control, optional
        Cancels and listens.
    store : Store, optional
        Keeps answers beyond the run.
    cache : FetchCache, optional
        Keeps fetched files beyond the run.

    Returns
    -------
    Run
        One result per cell.

    Examples
    --------
    >>> from contextlib import nullcontext
    >>> from qwenvl_kit import Config
    >>> config = Config(backend="echo", progress=False)
    >>> spec = make_spec(config)
    >>> run_spec([None], ["What?"], config, spec, lambda control: nullcontext(spec.load(control))).results[0].status
    'null_image'
    """
    clock = RunClock()
    notes: list[str] = []
    control = control or Control()
    collector = ResultCollector(len(cells), store, control.on_result)
    _check_constraints(spec, prompts)
    plan = make_plan(cells, prompts, config.image_src_type)
    for result in plan.results:
        collector.add(result)
    hands_over = spec.resolved.image_mode == "url"
    sizing = Sizing.of(config.image, spec.geometry)
    loader = ImageLoader.of(config.fetch, sizing, cancel=control.cancel, cache=cache, hands_over=hands_over)
    prefetcher = ImagePrefetcher(
        plan,
        loader,
        CacheKeyBuilder(spec.resolved, config.system_prompt, start_with=config.beginning),
        collector,
        source_index=SourceIndex(store, loader.is_unchanged, trusts=config.trust_sources)
        if store is not None and not hands_over
        else None,
        system=config.system_prompt,
        max_new_tokens=config.max_caption_length,
        start_with=config.beginning,
        cancel=control.cancel,
    )
    release_openmp_threads()
    progress = StageProgress()
    run_control = RunControl(control.cancel, control.on_token, notes.append, progress.report, progress.begin)
    work = functools.partial(generate, prefetcher, acquire, spec.resolved, run_control, collector)
    outcome = collect(work, collector, control.cancel, progress=progress, show_progress=config.progress)
    record = make_record(asked_record(config), prompts, spec.resolved, outcome.results, notes, clock)
    return Run(outcome.results, record, outcome.interrupted, outcome.failure, tuple(notes))


def _check_constraints(spec: BackendSpec, prompts: Sequence[RowPrompt]) -> None:
    """Compile the constraints of all prompts before anything loads; a server compiles them itself.

    Raises
    ------
    ConfigError
        The backend cannot constrain answers, or llguidance refuses a constraint or the tokenizer.
    MissingExtra
        llguidance is not installed.
    """
    constraints = [prompt.constraint for prompt in prompts if isinstance(prompt, Prompt) and prompt.constraint]
    if not constraints or spec.resolved.base_url is not None:
        return
    if spec.checkpoint is None:
        raise ConfigError(
            f"backend={spec.resolved.backend!r} generates no tokens, so its answers cannot be constrained. Use "
            "backend='torch', 'onnx' or 'openai', or pass constrain=False."
        )
    if spec.resolved.num_beams > 1:
        raise ConfigError(
            f"Beam search does not support constrained answers (num_beams={spec.resolved.num_beams}). Use num_beams=1."
        )
    check_constraints(spec.checkpoint, list(dict.fromkeys(constraints)))
