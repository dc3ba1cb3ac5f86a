"""When is recorded: every n steps, a callable, or within the budget."""

from __future__ import annotations

import re
import time
from itertools import pairwise
from typing import Any

from fits import Net, fit
from hypothesis import given
from hypothesis import strategies as st

import rnndiag
from rnndiag.recorder.measures.measure import GroupCost
from rnndiag.recorder.schedule.overhead import Overhead
from rnndiag.recorder.schedule.schedule import MIN_RECORDINGS, EveryN, WithinBudget

GROUPS = {
    "base": GroupCost(steps=1.0, share=0.0, every=1),
    "lags": GroupCost(steps=10.0, share=0.4, every=1, promised=True),
    "dear": GroupCost(steps=100.0, share=0.2, every=10),
}


class FakeLedger(Overhead):
    """A training of equal steps, in which every part costs what it says."""

    step: float = 0.01

    def __init__(self, known: bool = True) -> None:
        super().__init__()
        self.now, self.known, self.prices = 0.0, known, {"base": 0.01, "lags": 0.1, "dear": 1.0}

    @property
    def step_seconds(self) -> float | None:
        return self.step if self.known else None

    @property
    def training(self) -> float:
        return max(self.now, 1e-9)

    def record(self, groups: tuple[str, ...]) -> None:
        for group in groups:
            self.spent += self.prices[group]
            self.by_group[group] = self.by_group.get(group, 0.0) + self.prices[group]
            self._group_costs.setdefault(group, __import__("collections").deque()).append(
                self.prices[group]
            )
        self.recording_cost(0.001)
        self.spent += 0.001


def simulate(budget: float, length: int, total: int | None) -> tuple[list[int], FakeLedger, Any]:
    overhead = FakeLedger()
    schedule = WithinBudget(budget, overhead, GROUPS, total)
    recorded, groups = [], []
    for tick in range(length):
        overhead.now += overhead.step
        if tick < schedule.next_tick:
            continue
        decision = schedule.decide(tick)
        schedule.adopt(decision)
        if decision.record:
            recorded.append(tick)
            groups.append(decision.groups)
            overhead.record(decision.groups)
            assert set(decision.groups) | set(decision.left_out) >= set(GROUPS)
    return recorded, overhead, groups


def test_a_long_fit_keeps_its_budget_and_is_denser_early() -> None:
    recorded, overhead, groups = simulate(0.03, 20_000, 20_000)
    assert overhead.spent <= 0.0301 * overhead.training
    assert overhead.spent >= 0.015 * overhead.training  # and uses it
    assert recorded[0] == 0
    early = sum(tick < 5_000 for tick in recorded)
    assert early > 0.3 * len(recorded)
    assert sum("lags" in g for g in groups) > sum("dear" in g for g in groups) > 0


def test_a_fit_of_unknown_length_keeps_its_budget_at_any_time() -> None:
    for length in (2_000, 5_000, 20_000):
        recorded, overhead, _ = simulate(0.03, length, None)
        first = 0.111  # the first recording comes at once
        assert overhead.spent <= 0.03 * overhead.training + first + 0.011
        assert len(recorded) > 3


@given(st.integers(8, 3_000), st.sampled_from([1e-6, 0.001, 0.03]))
def test_a_fit_of_known_length_has_eight_recordings(total: int, budget: float) -> None:
    recorded, _, groups = simulate(budget, total, total)
    assert len(recorded) >= MIN_RECORDINGS
    assert recorded[0] == 0
    assert recorded[-1] >= 0.9 * (total - 1) - 2
    assert "lags" in groups[0]
    assert any("lags" in chosen for chosen in groups[1:])


def test_a_fit_of_unknown_length_is_denser_early_on() -> None:
    recorded, overhead, _ = simulate(0.03, 40_000, None)
    gaps = [b - a for a, b in pairwise(recorded[1:])]
    early = [gap for at, gap in zip(recorded[1:], gaps, strict=False) if at < 5_000]
    late = [gap for at, gap in zip(recorded[1:], gaps, strict=False) if at > 20_000]
    assert sum(late) / len(late) > 1.5 * sum(early) / len(early)
    assert overhead.spent > 0.005 * overhead.training


def test_what_every_step_takes_is_taken_off_the_budget() -> None:
    counts = {}
    for light in (0.0, 0.0001, 0.001):
        overhead = FakeLedger()
        schedule = WithinBudget(0.03, overhead, GROUPS, 10_000)
        count = 0
        for tick in range(10_000):
            overhead.now += overhead.step
            overhead.spent += light
            overhead.light += light
            overhead.plain += 1
            if tick >= schedule.next_tick:
                decision = schedule.decide(tick)
                schedule.adopt(decision)
                if decision.record:
                    count += 1
                    overhead.record(decision.groups)
        counts[light] = count
        if light < 0.0003:
            assert overhead.spent <= 0.0301 * overhead.training
    assert counts[0.0] > counts[0.0001] > counts[0.001] == MIN_RECORDINGS


def test_a_recording_that_breaks_the_budget_is_a_thrifty_one() -> None:
    for total, thrifty in ((20_000, False), (200, True)):
        overhead = FakeLedger()
        schedule = WithinBudget(0.03, overhead, GROUPS, total)
        decisions = []
        for tick in range(min(total, 2_000)):
            overhead.now += overhead.step
            if tick >= schedule.next_tick:
                decision = schedule.decide(tick)
                schedule.adopt(decision)
                if decision.record:
                    overhead.record(decision.groups)
                    decisions.append(decision)
        assert not decisions[0].thrifty  # the first one shows everything
        assert {decision.thrifty for decision in decisions[1:]} == {thrifty}


def test_short_fits_before_a_step_is_timed() -> None:
    overhead = FakeLedger(known=False)
    schedule = WithinBudget(0.03, overhead, GROUPS, 8)
    recorded = []
    for tick in range(8):
        decision = schedule.decide(tick)
        schedule.adopt(decision)
        if decision.record:
            recorded.append(tick)
    assert recorded == list(range(8))


def test_one_step_of_every_block() -> None:
    schedule = EveryN(10, GROUPS)
    recorded = []
    for step in (0, 2, 4, 9, 11, 13, 19, 20, 35, 38):
        if step >= schedule.next_tick:
            decision = schedule.decide(step)
            schedule.adopt(decision)
            recorded += [step] * decision.record
    assert recorded == [0, 11, 20, 35]


def test_costlier_groups_come_with_fewer_recordings() -> None:
    schedule = EveryN(1, GROUPS)
    found = []
    for step in range(21):
        decision = schedule.decide(step)
        schedule.adopt(decision)
        found.append("dear" in decision.groups)
        assert ("dear" in decision.left_out) != found[-1]
    assert [step for step, dear in enumerate(found) if dear] == [0, 10, 20]


def test_a_callable_decides(diagnostics: Any) -> None:
    callback = diagnostics(schedule=lambda step: step in (1, 3), measures=["contributions"])
    fit(Net, [callback])
    assert rnndiag.open_run(callback.run_dir).steps_of("train").tolist() == [1, 3]


def test_the_ledger_counts_nested_work_once() -> None:
    overhead = Overhead()
    with overhead.own():
        with overhead.own("group"):
            time.sleep(0.01)
        time.sleep(0.01)
    assert 0.019 < overhead.spent < 0.2
    assert 0.009 < overhead.by_group["group"] < overhead.spent


def test_the_default_makes_eight_recordings_and_says_what_they_cost(
    diagnostics: Any, capsys: Any
) -> None:
    callback = diagnostics(budget=0.03, measures=["contributions"])
    fit(Net, [callback], steps=12, enable_progress_bar=True)
    run = rnndiag.open_run(callback.run_dir)
    assert len(run.steps_of("train")) >= MIN_RECORDINGS
    shown = capsys.readouterr().out
    stored = run.at(12, phase="end").notes["overhead"]["share"]
    said = float(re.search(r"cost ([\d.]+) % of training time", shown)[1]) / 100  # type: ignore[index]
    assert 0.5 * stored < said < 1.5 * stored
    assert "over the budget of 3%" in shown


def test_overhead_is_stored_with_every_recording(diagnostics: Any) -> None:
    callback = diagnostics(measures=["contributions"])
    fit(Net, [callback])
    run = rnndiag.open_run(callback.run_dir)
    seconds = run["overhead_seconds"].values
    assert (seconds[1:] > seconds[:-1]).all()
    assert (run["overhead_share"].values > 0).all()
