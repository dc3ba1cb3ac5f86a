"""The recordings that every fit gets: start, quarters, end, and two in the last 40 % wherever it ends."""

from __future__ import annotations

from itertools import pairwise, takewhile

from hypothesis import given
from hypothesis import strategies as st

from rnndiag.recorder.schedule.planned_recordings import (
    PlannedRecordings,
    growing_ticks,
    known_ticks,
)


def test_a_fit_of_known_length_has_its_quarters_and_an_early_few() -> None:
    assert known_ticks(1001) == [0, 1, 4, 16, 250, 500, 750, 1000]
    assert known_ticks(1) == [0]
    assert known_ticks(9) == [0, 1, 2, 4, 6, 8]


@given(st.integers(30, 10**7))
def test_wherever_a_fit_of_unknown_length_ends_two_recordings_lie_in_its_last_part(
    end: int,
) -> None:
    made = list(takewhile(lambda tick: tick <= end, growing_ticks()))
    assert sum(tick >= 0.6 * end - 1 for tick in made) >= 2


def test_a_resumed_fit_counts_from_its_start() -> None:
    plan = PlannedRecordings(101, first=40)
    made = [tick for tick in range(40, 200) if plan.due(tick)]
    assert made == [40 + tick for tick in known_ticks(101)]
    assert plan.to_come == 0


def test_only_the_first_and_the_last_of_a_known_fit_are_its_ends() -> None:
    plan = PlannedRecordings(101)
    ends = [tick for tick in range(101) if plan.due(tick) and plan.is_end(tick)]
    assert ends == [0, 100]


def test_ends_of_a_fit_of_unknown_length_come_ever_later() -> None:
    plan = PlannedRecordings(None)
    ends = [tick for tick in range(5000) if plan.due(tick) and plan.is_end(tick)]
    assert ends[:2] == [0, 16]
    assert all(later >= 4 * earlier for earlier, later in pairwise(ends[1:]))
