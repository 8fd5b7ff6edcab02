"""Markers by need, and property tests that depend neither on the machine's speed nor on chance."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[2]
# What the tests and doctests of these folders and files need. Single tests bear their marker themselves.
NEEDS = {
    "model": (
        "qwenvl_kit/checkpoints/generation_config.py",
        "qwenvl_kit/checkpoints/loading.py",
        "qwenvl_kit/checkpoints/preflight.py",
        "qwenvl_kit/demo/training/",
        "qwenvl_kit/inference/constraints.py",
        "qwenvl_kit/inference/preflight.py",
        "qwenvl_kit/onnx_backend/",
        "qwenvl_kit/torch_backend/",
        "tests/checkpoints/test_footprint.py",
        "tests/checkpoints/test_generation_config.py",
        "tests/checkpoints/test_lora.py",
        "tests/checkpoints/test_preflight.py",
        "tests/cli/test_bench.py",
        "tests/cli/test_conform.py",
        "tests/cli/test_demo.py",
        "tests/cli/test_doctor.py",
        "tests/cli/test_export.py",
        "tests/conformance/test_faults.py",
        "tests/conformance/test_conform.py",
        "tests/demo/training/",
        "tests/inference/test_constraints.py",
        "tests/inference/test_equality.py",
        "tests/inference/test_mrope.py",
        "tests/inference/test_patches.py",
        "tests/onnx_backend/",
        "tests/test_former_names.py",  # imports all backends
        "tests/torch_backend/",
    ),
    "ray": ("tests/executors/test_daft.py", "tests/executors/test_las_udf.py", "tests/executors/test_ray.py"),
    "browser": ("tests/browser/", "tests/notebooks/"),
    "gpu": ("tests/gpu/",),
    "slow": (
        "tests/reliability/test_fault_injection.py",
        "tests/reliability/test_forks.py",
        "tests/reliability/test_fuzz.py",
    ),
}
MODEL_FIXTURES = {"demo_onnx", "own_onnx", "published"}

settings.register_profile("here", deadline=None)  # two busy cores are slow enough to fail any deadline
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


def needs(path: Path) -> set[str]:
    """Markers of all tests of a file or folder."""
    place = f"{path.relative_to(ROOT).as_posix()}/" if path.is_relative_to(ROOT) else ""
    return {marker for marker, places in NEEDS.items() if place.startswith(places)}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import neither tools without tests, nor files of which the fast set runs nothing: torch alone takes seconds."""
    name = collection_path.name
    if collection_path.is_relative_to(ROOT / "tests") and name.endswith(".py") and not name.startswith("test_"):
        return True
    selected = config.option.markexpr
    deselected = set(selected[5:-1].split(" or ")) if selected.startswith("not (") else set()
    return True if needs(collection_path) & deselected else None


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        found = needs(item.path)
        if MODEL_FIXTURES & set(getattr(item, "fixturenames", ())):
            found.add("model")
        for marker in found:
            item.add_marker(marker)
