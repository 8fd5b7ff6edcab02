"""Plan a run: group rows that share their images, and resolve rows that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenvl_kit.errors import RowError
from qwenvl_kit.images import classify
from qwenvl_kit.prompts import check_whole, no_prompt
from qwenvl_kit.types import Prompt, Result

if TYPE_CHECKING:
    from qwenvl_kit.options import ImageSrcType
    from qwenvl_kit.types import ImageSource, RowPrompt


@dataclass(frozen=True, slots=True)
class PromptRef:
    """One row's prompt; `sample_index` counts the rows before it with the same images and prompt."""

    row: int
    prompt: Prompt
    sample_index: int


@dataclass(frozen=True, slots=True)
class Group:
    """Rows with the same images, which are loaded once."""

    sources: tuple[ImageSource, ...]
    prompts: tuple[PromptRef, ...]

    def is_remote(self) -> bool:
        """Whether any of its images comes from a host."""
        return any(source.kind in ("url", "remote") for source in self.sources)


@dataclass(frozen=True, slots=True)
class Plan:
    """Groups to run, in order of first appearance, and results of rows that need no model."""

    groups: tuple[Group, ...]
    results: tuple[Result, ...]

    def shared_sources(self) -> frozenset[str]:
        """Return the keys of sources that stand in more than one group, such as a reference image beside others."""
        seen: set[str] = set()
        shared: set[str] = set()
        for group in self.groups:
            for key in dict.fromkeys(source.key for source in group.sources):
                (shared if key in seen else seen).add(key)
        return frozenset(shared)


def make_plan(cells: Sequence[object], prompts: Sequence[RowPrompt], image_src_type: ImageSrcType) -> Plan:
    """Group the rows by their images.

    Parameters
    ----------
    cells : sequence
        One image, or list of images, per row.
    prompts : sequence of str, Prompt, RowError or None
        One per row; None is that row's error, and so is an error.
    image_src_type : str
        How to read texts and bytes among the cells.

    Returns
    -------
    Plan
        It holds each row exactly once.

    Examples
    --------
    >>> plan = make_plan(["a.png", None, "a.png"], ["What?", "What?", "Where?"], "auto")
    >>> [[ref.row for ref in group.prompts] for group in plan.groups], [result.status for result in plan.results]
    ([[0, 2]], ['null_image'])
    """
    results: list[Result] = []
    sources_of: dict[tuple[str, ...], tuple[ImageSource, ...]] = {}
    prompts_of: dict[tuple[str, ...], list[PromptRef]] = {}
    n_seen: dict[tuple[tuple[str, ...], Prompt], int] = {}
    for row, (cell, given) in enumerate(zip(cells, prompts, strict=True)):
        fault = given if isinstance(given, RowError) else None
        prompt = Prompt(given) if isinstance(given, str) else None if isinstance(given, RowError) else given
        try:
            sources = classify(cell, image_src_type)
            if sources and prompt is None:
                raise fault or no_prompt()
            if sources and prompt is not None:
                check_whole(prompt.text)
                for label in prompt.labels:
                    check_whole(label, "label")
        except RowError as error:
            results.append(Result.failed(row, error))
            continue
        if not sources or prompt is None:
            results.append(Result(row, "null_image"))
            continue
        key = tuple(source.key for source in sources)
        sample_index = n_seen.get((key, prompt), 0)
        n_seen[key, prompt] = sample_index + 1
        sources_of.setdefault(key, sources)
        prompts_of.setdefault(key, []).append(PromptRef(row, prompt, sample_index))
    groups = tuple(Group(sources, tuple(prompts_of[key])) for key, sources in sources_of.items())
    return Plan(groups, tuple(results))
