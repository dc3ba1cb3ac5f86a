"""When is recorded: every n steps, a callable, or within the budget."""

from __future__ import annotations

import re
import time
from typing import Any

from fits import Net, fit
from hypothesis import given
from hypothesis import strategies as st

import rnndiag
from rnndiag.recorder.measures.measure import GroupCost
from rnndiag.recorder.schedule.overhead import Overhead
from rnndiag.recorder.schedule.planned_recordings import known_ticks
from rnndiag.recorder.schedule.schedule import FLOOR, EveryN, WithinBudget

GROUPS = {
    "base": GroupCost(steps=1.0),
    "lags": GroupCost(steps=10.0),
    "dear": GroupCost(steps=100.0, every=10, ends=True),
}
ALWAYS = ("base", "lags")


class FakeLedger(Overhead):
    """A training of equal steps, in which every part costs what it says."""

    step: float = 0.01

    def __init__(self, known: bool = True) -> None:
        super().__init__()
        self.now, self.known, self.prices = 0.0, known, {"base": 0.01, "lags": 0.02, "dear": 0.5}

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
    ledger = FakeLedger()
    schedule = WithinBudget(budget, ledger, GROUPS, total)
    recorded, groups = [], []
    for tick in range(length):
        ledger.now += ledger.step
        if tick < schedule.next_tick:
            continue
        decision = schedule.decide(tick)
        schedule.adopt(decision)
        if decision.record:
            recorded.append(tick)
            groups.append(decision.groups)
            ledger.record(decision.groups)
            assert set(decision.groups) | set(decision.left_out) >= set(GROUPS)
    return recorded, ledger, groups


def test_a_long_fit_keeps_its_budget_and_is_denser_early() -> None:
    recorded, ledger, groups = simulate(0.03, 20_000, 20_000)
    assert ledger.spent <= 0.0301 * ledger.training + ledger.prices["dear"]  # at the end
    assert ledger.spent >= 0.015 * ledger.training  # and uses it
    assert recorded[0] == 0
    assert recorded[-1] == 19_999
    early = sum(tick < 5_000 for tick in recorded)
    assert early > 0.28 * len(recorded)
    assert all(set(ALWAYS) <= set(chosen) for chosen in groups)
    assert [i for i, chosen in enumerate(groups) if "dear" in chosen] == [0, len(groups) - 1]


def test_a_fit_of_unknown_length_keeps_its_budget_at_any_time() -> None:
    for length in (2_000, 5_000, 20_000):
        recorded, ledger, _ = simulate(0.03, length, None)
        assert ledger.spent <= 0.03 * ledger.training + FLOOR + 0.6
        assert sum(tick >= 0.6 * length for tick in recorded) >= 2


@given(st.integers(8, 3_000), st.sampled_from([1e-6, 0.001, 0.03]))
def test_a_fit_of_known_length_is_recorded_at_every_quarter(total: int, budget: float) -> None:
    recorded, _, groups = simulate(budget, total, total)
    quarters = {round(share * (total - 1)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    assert quarters <= set(recorded)
    assert all(set(ALWAYS) <= set(chosen) for chosen in groups)
    assert "dear" in groups[0]


def test_groups_for_the_ends_are_left_out_once_the_floor_is_spent() -> None:
    ledger = FakeLedger()
    ledger.prices["dear"] = 1.5  # beyond the second that each end has
    schedule = WithinBudget(1e-6, ledger, GROUPS, 1000)
    decisions = []
    for tick in range(1000):
        ledger.now += ledger.step
        if tick >= schedule.next_tick:
            decision = schedule.decide(tick)
            schedule.adopt(decision)
            if decision.record:
                ledger.record(decision.groups)
                decisions.append(decision)
    assert "dear" in decisions[0].groups
    assert "dear" not in decisions[-1].groups
    assert "were left" in decisions[-1].left_out["dear"]


def test_what_every_step_takes_is_taken_off_the_budget() -> None:
    counts = {}
    for light in (0.0, 0.0001, 0.001):
        ledger = FakeLedger()
        schedule = WithinBudget(0.03, ledger, GROUPS, 10_000)
        count = 0
        for tick in range(10_000):
            ledger.now += ledger.step
            ledger.spent += light
            ledger.light += light
            ledger.plain += 1
            if tick >= schedule.next_tick:
                decision = schedule.decide(tick)
                schedule.adopt(decision)
                if decision.record:
                    count += 1
                    ledger.record(decision.groups)
        counts[light] = count
        if light < 0.0003:
            assert ledger.spent <= 0.0301 * ledger.training + FLOOR
    assert counts[0.0] > counts[0.0001] > counts[0.001] == len(known_ticks(10_000))


def test_a_recording_that_breaks_the_budget_is_a_thrifty_one() -> None:
    for price, thrifty in ((0.02, False), (2.0, True)):
        ledger = FakeLedger()
        ledger.prices["lags"] = price
        schedule = WithinBudget(0.03, ledger, GROUPS, 2_000)
        decisions = []
        for tick in range(2_000):
            ledger.now += ledger.step
            if tick >= schedule.next_tick:
                decision = schedule.decide(tick)
                schedule.adopt(decision)
                if decision.record:
                    ledger.record(decision.groups)
                    decisions.append(decision)
        assert not decisions[0].thrifty  # the first one shows everything
        assert {decision.thrifty for decision in decisions[1:]} == {thrifty}


def test_planned_recordings_are_made_before_a_step_is_timed() -> None:
    ledger = FakeLedger(known=False)
    schedule = WithinBudget(0.03, ledger, GROUPS, 8)
    recorded = []
    for tick in range(8):
        decision = schedule.decide(tick)
        schedule.adopt(decision)
        if decision.record:
            recorded.append(tick)
    assert recorded == known_ticks(8) == [0, 2, 4, 5, 7]


def test_a_fit_that_may_end_early_is_recorded_as_if_its_length_were_not_known() -> None:
    for length in (60, 300, 1_500):
        ledger = FakeLedger()
        schedule = WithinBudget(1e-6, ledger, GROUPS, 100_000, ends_early=True)
        recorded = []
        for tick in range(length):
            ledger.now += ledger.step
            if tick >= schedule.next_tick:
                decision = schedule.decide(tick)
                schedule.adopt(decision)
                recorded += [tick] * decision.record
        assert recorded[:4] == [0, 1, 4, 16]
        assert sum(tick >= 0.6 * (length - 1) for tick in recorded) >= 2


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
    ledger = Overhead()
    with ledger.own():
        with ledger.own("group"):
            time.sleep(0.01)
        time.sleep(0.01)
    assert 0.019 < ledger.spent < 0.2
    assert 0.009 < ledger.by_group["group"] < ledger.spent


def test_the_default_records_the_quarters_and_says_what_it_cost(
    diagnostics: Any, capsys: Any
) -> None:
    callback = diagnostics(budget=0.03, measures=["contributions"])
    fit(Net, [callback], steps=12)
    run = rnndiag.open_run(callback.run_dir)
    assert {0, 3, 6, 8, 11} <= set(run.steps_of("train").tolist())
    shown = capsys.readouterr().out
    stored = run.at(12, phase="end").notes["overhead"]["share"]
    said = float(re.search(r"cost ([\d.]+) % of training time", shown)[1]) / 100  # type: ignore[index]
    assert 0.5 * stored < said < 1.5 * stored
    assert "over the budget" not in shown  # the floor pays for a short fit


def test_overhead_is_stored_with_every_recording(diagnostics: Any) -> None:
    callback = diagnostics(measures=["contributions"])
    fit(Net, [callback])
    run = rnndiag.open_run(callback.run_dir)
    seconds = run["overhead_seconds"].values
    assert (seconds[1:] > seconds[:-1]).all()
    assert (run["overhead_share"].values > 0).all()
