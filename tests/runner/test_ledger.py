"""Each row is settled once, and equal rows share an answer."""

from __future__ import annotations

import pytest

from qwenvl_kit import Result
from qwenvl_kit.errors import RowError
from qwenvl_kit.runner.ledger import Ledger


class Memory:
    """A store of the simplest kind."""

    def __init__(self) -> None:
        self.kept: dict[str, Result] = {}

    def get(self, key: str) -> Result | None:
        return self.kept.get(key)

    def put(self, key: str, result: Result) -> None:
        self.kept[key] = result

    def get_source(self, name: str) -> tuple[str, str] | None:
        return None

    def put_source(self, name: str, mark: str, digest: str) -> None:
        pass


def missing(row: int) -> Result:
    return Result(row, "cancelled")


def ok(row: int, text: str = "a cat") -> Result:
    return Result(row, "ok", text=text, seconds=0.5)


def test_only_the_first_of_equal_rows_is_asked_and_the_others_get_its_answer() -> None:
    ledger = Ledger(3)
    assert [ledger.claim(0, "key"), ledger.claim(1, "key")] == [True, False]
    ledger.settle(ok(0))
    assert not ledger.claim(2, "key")

    results = ledger.close(missing)

    assert [result.text for result in results] == ["a cat"] * 3
    assert [result.cached for result in results] == [False, True, True]
    assert [result.seconds for result in results] == [0.5, 0, 0]


def test_a_fault_is_shared_too_but_never_counts_as_a_cached_answer() -> None:
    ledger = Ledger(3, Memory())
    ledger.claim(0, "key")
    ledger.claim(1, "key")
    ledger.fail(0, RowError("generate", "too dark"))
    ledger.claim(2, "key")

    results = ledger.close(missing)

    assert [(result.status, result.error, result.cached) for result in results] == [("error", "too dark", False)] * 3


def test_rows_without_a_key_share_nothing() -> None:
    ledger = Ledger(2, Memory())

    assert ledger.claim(0, None)
    assert ledger.claim(1, None)


def test_only_answers_are_stored_and_before_they_are_told() -> None:
    store = Memory()
    stored_when_told: list[bool] = []
    ledger = Ledger(3, store, lambda _: stored_when_told.append("good" in store.kept))
    for row, key in enumerate(["good", "bad", "stopped"]):
        ledger.claim(row, key)

    ledger.settle(ok(0))
    ledger.fail(1, RowError("generate", "no"))
    ledger.settle(Result(2, "cancelled"))

    assert list(store.kept) == ["good"]
    assert stored_when_told == [True] * 3


def test_a_stored_answer_settles_its_row_and_those_that_wait_for_it() -> None:
    store = Memory()
    store.kept["key"] = ok(0)
    ledger = Ledger(2, store)

    assert not ledger.claim(1, "key")
    assert not ledger.claim(0, "key")
    assert [(result.text, result.cached) for result in ledger.close(missing)] == [("a cat", True)] * 2


@pytest.mark.parametrize("row", [1, 2, -1], ids=["twice", "beyond the last", "before the first"])
def test_an_answer_to_a_row_that_has_none_to_get_is_refused(row: int) -> None:
    ledger = Ledger(2)
    ledger.settle(ok(1))

    with pytest.raises(RuntimeError, match=f"row {row}"):
        ledger.settle(ok(row))

    assert [result.status for result in ledger.close(missing)] == ["cancelled", "ok"]


def test_what_comes_after_the_close_changes_nothing_and_is_not_told() -> None:
    told: list[int] = []
    ledger = Ledger(2, on_result=lambda result: told.append(result.row))
    results = ledger.close(missing)

    ledger.settle(ok(0))

    assert [result.status for result in results] == ["cancelled", "cancelled"]
    assert told == []
