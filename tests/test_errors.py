"""What users catch errors by, and that errors survive the way back from a worker."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from qwenvl_kit import errors
from qwenvl_kit.errors import (
    BackendBusy,
    BackendFailed,
    CheckpointError,
    ColumnNotFound,
    ConfigError,
    CostWarning,
    ExportFailed,
    ForkedProcess,
    InsufficientMemory,
    Interrupted,
    MissingExtra,
    ModelNotFound,
    OptionWarning,
    QwenVLError,
    QwenVLWarning,
    RowError,
    RowErrors,
    RowErrorWarning,
    ServerError,
    StoreError,
    StoreWarning,
    UnknownOption,
)

EXAMPLES: list[BaseException] = [
    BackendBusy("busy"),
    BackendFailed("broke", results=["a"]),
    CheckpointError("none"),
    ColumnNotFound("no column 'a'"),
    ConfigError("wrong"),
    CostWarning("an hour"),
    ExportFailed("no room"),
    ForkedProcess("forked"),
    InsufficientMemory("15 GiB of 8"),
    Interrupted("stopped", results=["a", None]),
    ServerError("refused"),
    MissingExtra("reading s3:// addresses", "s3"),
    ModelNotFound("nowhere"),
    OptionWarning("dropped"),
    QwenVLError("any"),
    QwenVLWarning("any"),
    RowError("decode", "no picture"),
    RowErrorWarning("1 of 2"),
    RowErrors("1 of 2 rows failed", results=["a", None]),
    StoreError("locked"),
    StoreWarning("moved"),
    UnknownOption("no such option"),
]


def test_every_error_has_an_example_here() -> None:
    named = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BaseException)}

    assert {type(error) for error in EXAMPLES} == named


@pytest.mark.parametrize(
    ("kind", "also"),
    [
        (ConfigError, ValueError),
        (UnknownOption, TypeError),
        (ColumnNotFound, KeyError),
        (ModelNotFound, FileNotFoundError),
        (CheckpointError, ValueError),
        (StoreError, OSError),
        (ServerError, ConnectionError),
        (MissingExtra, ImportError),
        (InsufficientMemory, MemoryError),
        (BackendBusy, RuntimeError),
        (ExportFailed, RuntimeError),
        (ForkedProcess, RuntimeError),
        (BackendFailed, RuntimeError),
    ],
)
def test_an_error_is_caught_as_ours_and_as_what_python_would_raise(
    kind: type[Exception], also: type[Exception]
) -> None:
    assert issubclass(kind, QwenVLError)
    assert issubclass(kind, also)


def test_an_interrupt_stops_run_all_and_is_no_error_that_a_broad_except_would_swallow() -> None:
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert not issubclass(Interrupted, Exception)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("travel", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy], ids=["pickle", "copy"])
def test_errors_come_back_whole_from_a_worker(error: BaseException, travel: object) -> None:
    error.add_note("row 3 (index 'c')")

    arrived = travel(error)  # type: ignore[operator]

    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)


def test_a_missing_column_is_told_without_the_quotes_of_a_key_error() -> None:
    assert str(ColumnNotFound("there is no column 'a'")) == "there is no column 'a'"


def test_a_missing_extra_names_its_install_command() -> None:
    assert str(MissingExtra("reading tos:// addresses", "tos")) == (
        "reading tos:// addresses requires an extra. Install it: pip install 'qwenvl_kit[tos]'"
    )


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert not [type(error).__name__ for error in EXAMPLES if type(error).__name__ not in (errors.__doc__ or "")]
