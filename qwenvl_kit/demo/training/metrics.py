"""Count right answers by language and group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qwenvl_kit.demo.scenes import KINDS, LANGUAGES, Language

#: Kind of the caption of a scene with a sign, which the caption leaves out.
BESIDE_A_SIGN = "caption beside a sign"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One answer and its truth.

    Attributes
    ----------
    kind
        "caption", "schema", `BESIDE_A_SIGN` or one of the kinds of questions.
    n_things
        Objects in the scene.
    hard
        Whether it is a hard no.
    given
        The answer of the model, None for a failed row.
    """

    language: Language
    kind: str
    n_things: int
    expected: str
    given: str | None
    hard: bool = False

    @property
    def right(self) -> bool:
        """True if the whole answer is the expected one."""
        return self.given == self.expected


@dataclass(frozen=True, kw_only=True)
class Score:
    """Number of right answers of one group."""

    language: Language
    group: str
    n_right: int
    n_total: int

    @property
    def share(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.n_right / self.n_total


def score(answers: Iterable[Judged]) -> list[Score]:
    """Count the right answers of every group that has any, language by language.

    >>> answer = Judged(language="en", kind="count", n_things=1, expected="One.", given="Two.")
    >>> score([answer])
    [Score(language='en', group='count', n_right=0, n_total=1)]
    """
    rights: dict[tuple[Language, str], list[bool]] = {}
    for answer in answers:
        for group in _groups(answer):
            rights.setdefault((answer.language, group), []).append(answer.right)
    scores = [
        Score(language=language, group=group, n_right=sum(group_rights), n_total=len(group_rights))
        for (language, group), group_rights in rights.items()
    ]
    return sorted(scores, key=lambda found: (LANGUAGES.index(found.language), _rank(found.group)))


def table(scores: Iterable[Score]) -> str:
    """Return the scores as a Markdown table."""
    lines = ["| language | what | right | of | share |", "|---|---|---:|---:|---:|"]
    lines += [f"| {s.language} | {s.group} | {s.n_right} | {s.n_total} | {s.share:.3f} |" for s in scores]
    return "\n".join(lines)


def _groups(answer: Judged) -> Iterator[str]:
    yield answer.kind
    if answer.kind == "caption":
        yield f"caption, {answer.n_things} object{'s' if answer.n_things > 1 else ''}"
    if answer.kind == "is_there":
        yield f"is_there, {_truth(answer)}"


def _truth(answer: Judged) -> str:
    if answer.expected in ("有。", "Yes."):
        return "yes"
    return "hard no" if answer.hard else "other no"


def _rank(group: str) -> tuple[int, str]:
    return ("caption", *KINDS, BESIDE_A_SIGN, "schema").index(group.partition(",")[0]), group
