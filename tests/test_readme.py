"""What the README says is what the package has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qwenvl_kit.options import OptionDoc, option_docs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def row(option: OptionDoc) -> str:
    return f"| `{option.name}` | {option.kind} | `{option.default!r}` | {option.doc} |"


@pytest.mark.parametrize("option", option_docs(), ids=lambda option: option.name)
def test_the_table_of_parameters_has_every_option_as_it_is(option: OptionDoc) -> None:
    assert row(option) in README, "run: python tests/test_readme.py"


def test_every_file_that_the_readme_names_exists() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"`(tests/[\w./]+)`", README)

    assert [name for name in named if not (ROOT / name).exists()] == []
    assert len(named) > 5


def update() -> None:
    """Write the table of parameters into the README."""
    rows = ["| parameter | type | default | meaning |", "|---|---|---|---|", *map(row, option_docs())]
    table = "<!-- parameters -->\n" + "\n".join(rows) + "\n<!-- /parameters -->"
    new = re.sub(r"<!-- parameters -->.*<!-- /parameters -->", lambda _: table, README, flags=re.DOTALL)
    (ROOT / "README.md").write_text(new, encoding="utf-8")


if __name__ == "__main__":
    update()
