"""Tables of the docs are those of the package, and the files that the docs name exist."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from qwenvl_kit.options import option_docs

ROOT = Path(__file__).parent.parent
PAGES = [*(ROOT / "docs").glob("*.md"), ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"]


def test_the_page_of_options_is_generated() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "generate_options.py"))["page"]()

    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == page, "run: python docs/generate_options.py"


def test_the_chinese_table_has_the_same_options() -> None:
    text = (ROOT / "docs" / "zh.md").read_text(encoding="utf-8")
    table = text.partition("<!-- parameters -->\n")[2].partition("<!-- /parameters -->")[0]
    rows = [row.split(" | ")[:3] for row in table.strip().splitlines()[2:]]

    assert rows == [[f"| `{option.name}`", option.kind, f"`{option.default!r}`"] for option in option_docs()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_named_file_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    inside = (
        r"`((?:tests|docs|notebooks|\.ci)/[\w./]+|(?:accessor|(?:checkpoints|executors|inference|pipeline)/\w+)\.py)`"
    )
    named = re.findall(inside, text)
    linked = [page.parent / link for link in re.findall(r"\]\(([\w./]+\.\w+)", text) if not link.startswith("http")]

    assert [name for name in named if not any((ROOT / top / name).exists() for top in ("", "qwenvl_kit"))] == []
    assert [link for link in linked if not link.exists()] == []
