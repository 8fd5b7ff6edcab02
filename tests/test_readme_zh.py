"""The Chinese README is the twin of the English one: what changes there must change here."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh.md").read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def parameters(text: str) -> list[list[str]]:
    """Name, type and default of every row; the meaning is each language's own."""
    table = text.partition("<!-- parameters -->")[2].partition("<!-- /parameters -->")[0]
    return [row.split(" | ")[:3] for row in table.strip().splitlines()[2:]]


def test_code_blocks_are_the_same() -> None:
    blocks = re.findall(r"```.*?```", ENGLISH, flags=re.DOTALL)

    assert re.findall(r"```.*?```", CHINESE, flags=re.DOTALL) == blocks
    assert len(blocks) >= 5


def test_headings_stand_at_the_same_places_of_the_tree() -> None:
    levels = [heading.count("#") for heading in re.findall(r"^#+ ", without_code(ENGLISH), flags=re.MULTILINE)]

    assert [h.count("#") for h in re.findall(r"^#+ ", without_code(CHINESE), flags=re.MULTILINE)] == levels


def test_the_table_of_parameters_has_the_same_rows() -> None:
    assert parameters(CHINESE) == parameters(ENGLISH)
    assert len(parameters(ENGLISH)) > 15


def test_tables_pictures_and_files_are_the_same() -> None:
    for pattern in (r"^\|---", r"^\| ", r"^- "):
        counts = [len(re.findall(pattern, text, flags=re.MULTILINE)) for text in (ENGLISH, CHINESE)]
        assert counts[0] == counts[1], pattern
    links = [set(re.findall(r"\]\(([^)#:]+)\)", text)) - {"README.md", "README.zh.md"} for text in (ENGLISH, CHINESE)]
    assert links[0] == links[1]
    tests = [set(re.findall(r"`(tests/[\w./]+)`", text)) for text in (ENGLISH, CHINESE)]
    assert tests[0] == tests[1]
