"""Count the tokens of each row of a run, from the headers of its images: nothing is decoded and no model is loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qwenvl_kit.errors import RowError
from qwenvl_kit.images import ImageLoader, Sizing
from qwenvl_kit.images.headers import HeaderReader
from qwenvl_kit.pipeline.plan import make_plan
from qwenvl_kit.pipeline.progress import progress_bar

if TYPE_CHECKING:
    from qwenvl_kit.options import Config
    from qwenvl_kit.types import ImageSource, PatchGeometry, RowPrompt, Status

Size = tuple[int, int]
"""``(height, width)`` in pixels."""

CountText = Callable[[int, str], int]
"""From a number of images and a prompt to the tokens of the text around the visual ones; may raise a RowError."""

_MAX_READERS = 16  # threads that read headers: they wait for disks and hosts, 16 of which a host allows at a time


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """What a row asks of a model.

    Attributes
    ----------
    row : int
        Its position.
    status : {"ok", "null_image", "error"}
    sizes : tuple of (int, int)
        Upright ``(height, width)`` of its images.
    resized : tuple of (int, int)
        The sizes that the model sees.
    visual_tokens : int or None
        Of all its images.
    prompt_tokens : int or None
        Of the whole prompt, visual tokens included; None where there is no tokenizer.
    error : RowError or None
        Why it cannot run.
    """

    row: int
    status: Status
    sizes: tuple[Size, ...] = ()
    resized: tuple[Size, ...] = ()
    visual_tokens: int | None = None
    prompt_tokens: int | None = None
    error: RowError | None = field(default=None, repr=False)


def plan_rows(
    cells: Sequence[object],
    prompts: Sequence[RowPrompt],
    config: Config,
    geometry: PatchGeometry,
    count_text: CountText | None,
    check: Callable[[int], None] = lambda _: None,
) -> list[PlannedRow]:
    """Return what each row asks of a model, in order.

    Parameters
    ----------
    cells, prompts : sequence
        As of a run.
    config : Config
        Its image and fetch options decide sizes, and what may be read.
    geometry : PatchGeometry
        The checkpoint's.
    count_text : callable or None
        Counts tokens of texts; None where there is no tokenizer.
    check : callable
        Raises a RowError for a prompt of too many tokens.
    """
    plan = make_plan(cells, prompts, config.image_src_type)
    sizing = Sizing.of(config.image, geometry)
    sources = {source.key: source for group in plan.groups for source in group.sources}
    found = _read_sizes(list(sources.values()), HeaderReader.of(config.fetch), shown=config.progress)
    rows = [
        PlannedRow(one.row, one.status, error=None if one.stage is None else RowError(one.stage, one.error or ""))
        for one in plan.results
    ]
    count = None if count_text is None else functools.cache(count_text)
    for group in plan.groups:
        sizes = [found[source.key] for source in group.sources]
        for ref in group.prompts:
            rows.append(_planned(ref.row, ref.prompt.text, group.sources, sizes, sizing, count, check))
    return sorted(rows, key=lambda one: one.row)


def _planned(
    row: int,
    prompt: str,
    sources: Sequence[ImageSource],
    sizes: Sequence[Size | RowError],
    sizing: Sizing,
    count: CountText | None,
    check: Callable[[int], None],
) -> PlannedRow:
    good = tuple(size for size in sizes if not isinstance(size, RowError))
    first_error = next((size for size in sizes if isinstance(size, RowError)), None)
    if first_error is not None:
        return PlannedRow(row, "error", error=first_error)
    try:
        resized = tuple(_target(source, size, sizing) for source, size in zip(sources, good, strict=True))
        n_visual = sum(height * width for height, width in resized) // sizing.geometry.factor**2
        n_prompt = None if count is None else n_visual + count(len(resized), prompt)
        if n_prompt is not None:
            check(n_prompt)
    except RowError as error:
        return PlannedRow(row, "error", good, error=error)
    return PlannedRow(row, "ok", good, resized, n_visual, n_prompt)


def _target(source: ImageSource, size: Size, sizing: Sizing) -> Size:
    try:
        return sizing.target(size)
    except RowError as error:
        error.name_source(source.label)
        raise


def _read_sizes(sources: Sequence[ImageSource], reader: HeaderReader, *, shown: bool) -> dict[str, Size | RowError]:
    """Return the size of each source by its key, or its error."""
    found: dict[str, Size | RowError] = {}
    pool = ThreadPoolExecutor(_MAX_READERS, "qwenvl_kit-headers")
    try:
        with progress_bar(len(sources), shown=shown and len(sources) > 1) as tick:
            for source, size in _sizes_of(sources, reader, pool):
                found[source.key] = size
                tick(len(found), 0, "")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        ImageLoader.close_idle()
    return found


def _sizes_of(
    sources: Sequence[ImageSource], reader: HeaderReader, pool: ThreadPoolExecutor
) -> Iterator[tuple[ImageSource, Size | RowError]]:
    """Yield sizes as they are read: of remote sources and files in threads, of pixels in memory here."""
    futures: dict[Future[Size | RowError], ImageSource] = {}
    for source in sources:
        if source.kind in ("pil", "array", "bytes", "base64"):
            yield source, _size_of(source, reader)
        else:
            futures[pool.submit(_size_of, source, reader)] = source
    for future in as_completed(futures):
        yield futures[future], future.result()


def _size_of(source: ImageSource, reader: HeaderReader) -> Size | RowError:
    try:
        return reader.size(source)
    except RowError as error:
        return error
