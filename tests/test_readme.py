"""The README's quickstart prints what it shows, and the files that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import qwenvl_kit

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh.md").read_text(encoding="utf-8")
IGNORED = {"README.md", "README.zh.md", "docs/zh.md"}  # one language links to the other


def block(marker: str) -> str:
    """The fenced block after a marker, without its fences."""
    found = re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, flags=re.DOTALL)
    assert found is not None, marker
    return found[1]


def links(text: str) -> set[str]:
    return {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text)}


@pytest.mark.model
def test_the_quickstart_prints_the_frame_that_it_shows(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.warns(qwenvl_kit.RowErrorWarning, match="fetch: missing.jpg"):
        exec(compile(block("quickstart"), "README.md", "exec"), {})

    assert capsys.readouterr().out == block("quickstart output")


def test_the_commands_stand_where_ci_looks_for_them() -> None:
    assert block("demo").strip().endswith("qwenvl-kit demo")
    assert block("tests").strip().endswith('python -m pytest -m ""')


def test_the_readme_fits_on_a_page() -> None:
    assert len(README.splitlines()) <= 150


def test_every_linked_file_exists() -> None:
    named = links(README) | links(CHINESE)

    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    assert len(named) > 10


def test_the_chinese_readme_has_the_same_code_and_links() -> None:
    blocks = re.findall(r"```.*?```", README, flags=re.DOTALL)

    assert re.findall(r"```.*?```", CHINESE, flags=re.DOTALL) == blocks
    assert len(blocks) >= 9
    assert links(CHINESE) - IGNORED == links(README) - IGNORED
