"""One reference for all tests of the folder: its answers are kept, also those of the faults that it tries."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.model_fixtures import one_thread  # noqa: F401

from qwenvl_kit.conformance.cases import Round
from qwenvl_kit.conformance.engines import Reference
from qwenvl_kit.conformance.run import rounds_of
from qwenvl_kit.demo.exported import export_checkpoint


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference()


@pytest.fixture(scope="session")
def rounds(reference: Reference) -> dict[str, Round]:
    return rounds_of(reference, 0)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The embedded model in the layouts of transformers 5 and 4."""
    return export_checkpoint(tmp_path_factory.mktemp("exported"))
