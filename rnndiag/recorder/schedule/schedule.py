"""Selects the training steps to record, and the groups of measures for each.

A schedule counts ticks: optimizer steps if the user asked for every n-th, batches under a budget, since the length of a
fit and its duration are known in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rnndiag.recorder.facts.training_loop import TrainingLoop
from rnndiag.recorder.measures import MEASURES
from rnndiag.recorder.measures.measure import GroupCost
from rnndiag.recorder.schedule.overhead import Overhead
from rnndiag.recorder.schedule.planned_recordings import PlannedRecordings
from rnndiag.recorder.settings import Settings

FLOOR = 2.0
"""Seconds per fit that planned recordings may take even if that is more than the budget."""
EARLY = 0.7
"""Allowed spending grows with this power of the steps made; below 1, so that more is spent early."""
START = 1000.0
"""Steps after which spending slows down in a fit of unknown length."""


@dataclass(frozen=True)
class Decision:
    """What to do at a tick, and at which tick to decide next."""

    record: bool
    groups: tuple[str, ...] = ()
    next_tick: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Group -> why it is not measured this time."""
    untimed: bool = False
    """Whether the price of optional groups is unknown, as no training step has been timed under a budget."""
    thrifty: bool = False
    """Whether to skip optional parts of the chosen groups because the budget is short."""


class Schedule(Protocol):
    """Decides at ticks. In a fit of several ranks, rank 0 decides for all."""

    next_tick: int
    """No decision is needed before this tick."""
    by_batch: bool
    """Whether ticks are batches; else optimizer steps."""
    wanted: Callable[[int], bool] | None
    """The user's selection of ticks, called once per tick; None if `next_tick` suffices."""

    def decide(self, tick: int) -> Decision:
        """The decision for this tick. Ticks must increase."""

    def adopt(self, decision: Decision) -> None:
        """Apply a decision made here or by rank 0."""


def rotating(groups: Mapping[str, GroupCost], index: int) -> tuple[tuple[str, ...], dict[str, str]]:
    """The groups for recording number `index`, costlier ones less often; and the others with reasons."""
    chosen = tuple(name for name, cost in groups.items() if index % cost.every == 0)
    left = {
        name: f"measured on every {cost.every}th recording"
        for name, cost in groups.items()
        if name not in chosen
    }
    return chosen, left


@dataclass
class OncePerTick:
    """The user's callable, called only once per tick."""

    picks: Callable[[int], bool]
    _tick: int = -1
    _answer: bool = False

    def __call__(self, tick: int) -> bool:
        """Whether this tick is recorded."""
        if tick != self._tick:
            self._answer = bool(self.picks(tick))
            self._tick = tick
        return self._answer


@dataclass
class EveryN:
    """Records the first tick seen in every block of n; or the steps that a callable selects."""

    n: int
    groups: Mapping[str, GroupCost]
    wanted: Callable[[int], bool] | None = None
    next_tick: int = 0
    by_batch: bool = False
    _index: int = 0

    def __post_init__(self) -> None:
        if self.wanted is not None:
            self.wanted = OncePerTick(self.wanted)

    def decide(self, tick: int) -> Decision:
        """Record at the first tick seen in a block: with several optimizers the step count jumps."""
        if self.wanted is not None:
            following = tick + 1
            if not self.wanted(tick):
                return Decision(False, next_tick=following)
        else:
            following = (tick // self.n + 1) * self.n
        groups, left = rotating(self.groups, self._index)
        return Decision(True, groups, following, left)

    def adopt(self, decision: Decision) -> None:
        """Count the recordings, since some groups are not in all of them."""
        self.next_tick = decision.next_tick
        self._index += decision.record


@dataclass
class WithinBudget:
    """The planned recordings, and as many more as a share of training time pays for, more of them early on.

    Every recording holds all that a diagnosis needs. The planned ones are made at any price, and complete within budget
    and `FLOOR`; further ones only as far as the budget pays for all of them.
    """

    budget: float
    overhead: Overhead
    groups: Mapping[str, GroupCost]
    total: int | None
    """Batches of the fit, over which the budget is spread; None: unknown."""
    first: int = 0
    ends_early: bool = False
    """Whether the fit may end before `total`: recordings are then planned as if its length were unknown."""
    next_tick: int = 0
    by_batch: bool = True
    wanted: Callable[[int], bool] | None = None
    plan: PlannedRecordings = field(init=False)
    _planned_spent: float = 0.0
    _spent_before: float = 0.0
    _was_planned: bool = False

    def __post_init__(self) -> None:
        self.plan = PlannedRecordings(None if self.ends_early else self.total, self.first)

    def decide(self, tick: int) -> Decision:
        """Record if it is planned, or if the budget pays for it."""
        self._settle()
        seconds = self.overhead.step_seconds
        if self.plan.due(tick):
            groups, left = self._planned_groups(tick, seconds)
            self._was_planned = True
            following, short = self._after(tick, seconds), self._is_short(seconds)
            return Decision(True, groups, following, left, seconds is None, short)
        if seconds is None:
            return Decision(False, next_tick=tick + 1)
        if self._needed(1, seconds) > self._allowed(tick, seconds):
            return Decision(False, next_tick=self._affordable(tick, 1, seconds))
        groups, left = self._always, dict.fromkeys(self._ends, _AT_ENDS)
        return Decision(True, groups, self._affordable(tick, 2, seconds), left)

    def adopt(self, decision: Decision) -> None:
        """Set the tick of the next decision to that of `decision`."""
        self.next_tick = decision.next_tick

    @property
    def over_budget(self) -> bool:
        """Whether more was spent than budget plus FLOOR."""
        spent = self.overhead.spent - FLOOR
        return spent > self.budget * self.overhead.training

    # -- groups ----------------------------------------------------------------------------------------------------

    @property
    def _always(self) -> tuple[str, ...]:
        return tuple(name for name, cost in self.groups.items() if not cost.ends)

    @property
    def _ends(self) -> tuple[str, ...]:
        return tuple(name for name, cost in self.groups.items() if cost.ends)

    def _planned_groups(
        self, tick: int, seconds: float | None
    ) -> tuple[tuple[str, ...], dict[str, str]]:
        """All groups at the start and end of a fit, as far as FLOOR and budget pay for them; and the others with
        reasons."""
        left = dict.fromkeys(self._ends, _AT_ENDS)
        if not self.plan.is_end(tick):
            return self._always, left
        room = FLOOR / 2  # for each end, of which a fit of unknown length has several
        if self.plan.total is None:
            room = min(room, FLOOR - self._planned_spent)
        if seconds is not None:
            room = max(room, self._allowed(tick, seconds) - self._charged)
        for name in self._ends:
            price = self._group_price(name, seconds or 0.0)
            if price <= room:
                room -= price
                del left[name]
            else:
                left[name] = f"it takes about {price:.3g} s, and {max(room, 0):.3g} s were left"
        return tuple(name for name in self.groups if name not in left), left

    # -- seconds ---------------------------------------------------------------------------------------------------

    @property
    def _spent(self) -> float:
        """Seconds spent by recordings: the cost of every step is subtracted from the budget beforehand."""
        return self.overhead.spent - self.overhead.light

    def _settle(self) -> None:
        """Add what was spent since the last decision to the planned recordings, if the last one was planned."""
        if self._was_planned:
            self._planned_spent += self._spent - self._spent_before
        self._was_planned, self._spent_before = False, self._spent

    @property
    def _charged(self) -> float:
        """Seconds spent so far that count against the budget."""
        return self._spent - min(self._planned_spent, FLOOR)

    def _reserved(self, step_seconds: float) -> float:
        """Seconds that planned recordings to come will take beyond FLOOR."""
        left = max(0.0, FLOOR - self._planned_spent)
        return max(0.0, self.plan.to_come * self._price(step_seconds) - left)

    def _needed(self, recordings: int, step_seconds: float) -> float:
        """Seconds spent after so many recordings more, and all that are planned."""
        return self._spent + (recordings + self.plan.to_come) * self._price(step_seconds)

    def _price(self, step_seconds: float) -> float:
        """Estimated seconds of one recording with the groups that are always measured."""
        always = sum(self._group_price(name, step_seconds) for name in self._always)
        return (self.overhead.base_cost or 0.0) + always

    def _group_price(self, group: str, step_seconds: float) -> float:
        known, cost = self.overhead.group_cost(group), self.groups[group]
        return max(cost.steps * step_seconds, cost.seconds) if known is None else known

    def _is_short(self, step_seconds: float | None) -> bool:
        """Whether the planned recordings to come are too expensive for the budget of the whole fit."""
        if step_seconds is None or self.total is None:
            return False
        return self._charged + self._reserved(step_seconds) > self._allowed(
            self.total, step_seconds
        )

    def _allowed(self, tick: int, step_seconds: float) -> float:
        """Seconds that recordings may have taken by this tick."""
        done = tick - self.first + 1
        per_step = max(step_seconds, self.overhead.training / done)
        left = max(0.0, self.budget * per_step - self.overhead.light_seconds)
        if self.total is None:
            return left * START * float((1.0 + done / START) ** EARLY - 1.0) / EARLY
        total = max(self.total - self.first, done)
        return left * total * float((done / total) ** EARLY)

    # -- ticks -----------------------------------------------------------------------------------------------------

    def _after(self, tick: int, step_seconds: float | None) -> int:
        """The tick of the next decision after a planned recording."""
        return tick + 1 if step_seconds is None else self._affordable(tick, 1, step_seconds)

    def _affordable(self, tick: int, recordings: int, step_seconds: float) -> int:
        """The tick at which `recordings` more can be paid for, found by doubling then bisection; at most the next
        planned one."""
        need = self._needed(recordings, step_seconds)
        low, high = tick, tick + 1
        while self._allowed(high, step_seconds) < need and high - tick < 10**9:
            low, high = high, tick + 2 * (high - tick)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (
                (low, middle) if self._allowed(middle, step_seconds) >= need else (middle, high)
            )
        planned = self.plan.next_tick
        return high if planned is None else max(tick + 1, min(high, planned))


_AT_ENDS = "within a budget it is measured in the first and the last recording"


def schedule_for(
    settings: Settings, groups: Sequence[str], overhead: Overhead, loop: TrainingLoop
) -> Schedule:
    """The schedule by settings: every n steps, the user's callable, or within the budget."""
    costs = {name: MEASURES[name].cost for name in groups}
    if settings.schedule is not None:
        return EveryN(1, costs, settings.schedule)
    if settings.every_n_steps is not None:
        return EveryN(settings.every_n_steps, costs)
    return WithinBudget(
        settings.budget,
        overhead,
        costs,
        total=loop.total_batches,
        first=loop.batches + 1,  # the index of the last batch begun, -1 before the first
        ends_early=loop.may_end_early,
    )
