"""How many requests are in flight follows what a server can do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.openai_backend.in_flight import InFlight


class Clock:
    """Seconds of a server that answers up to `capacity` requests at a time, each in one second."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.now = capacity, 0.0

    def __call__(self) -> float:
        return self.now

    def answer(self, n_in_flight: int) -> None:
        self.now += 1 / min(n_in_flight, self.capacity)


@given(capacity=st.integers(1, 2000))
def test_auto_settles_at_what_the_server_can_do_and_never_at_less_than_half(capacity: int) -> None:
    clock = Clock(capacity)
    in_flight = InFlight("auto", clock)
    n_rows = 0
    while not in_flight.is_settled:
        clock.answer(in_flight.limit)
        in_flight.count_row()
        n_rows += 1

    assert n_rows <= 3 * 512
    assert in_flight.limit in (8, 16, 32, 64, 128, 256)
    assert in_flight.limit >= min(8, capacity / 2)
    assert min(capacity, 256) / 2 <= max(in_flight.limit, 8)
    assert in_flight.limit <= max(8, 2 * capacity)


@given(asked=st.integers(1, 1000))
def test_a_number_stays(asked: int) -> None:
    in_flight = InFlight(asked)
    for _ in range(100):
        in_flight.count_row()

    assert in_flight.limit == asked
