"""What is installed is what is in the repository."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_package_is_listed_for_installation() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "qwenvl_kit").rglob("__init__.py")}

    assert there <= listed
    assert "optimum.commands.register" in listed


def test_the_folder_of_optimums_commands_is_a_namespace() -> None:
    hook = ROOT / "qwenvl_kit" / "optimum_hook"

    assert [file.name for file in hook.glob("*.py")] == ["qwenvl.py"], "an __init__.py would hide other packages'"


def test_the_import_contract_reads_every_file() -> None:
    roots = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]
    files = (ROOT / "qwenvl_kit").rglob("*.py")
    namespaces = {".".join(f.parent.relative_to(ROOT).parts) for f in files if not (f.parent / "__init__.py").is_file()}

    assert {"qwenvl_kit", *namespaces} == set(roots)


def test_markers_by_need_name_files_that_exist() -> None:
    needs = runpy.run_path(str(ROOT / "tests" / "helpers" / "markers.py"))["NEEDS"]
    places = [place for marker, places in needs.items() for place in places if marker != "gpu"]

    assert [place for place in places if not (ROOT / place).exists()] == []
