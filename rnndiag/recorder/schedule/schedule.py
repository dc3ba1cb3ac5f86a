"""Which training steps are recorded, and which groups of measures each of them gets.

A schedule counts ticks: optimizer steps where a person asked for every n-th, batches where a budget is kept, as the
length of a fit and the time it takes are known in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rnndiag.recorder.facts.trainer import batches_so_far, total_batches
from rnndiag.recorder.measures import MEASURES
from rnndiag.recorder.measures.measure import GroupCost
from rnndiag.recorder.schedule.overhead import Overhead
from rnndiag.recorder.settings import Settings

_NOT_YET = "what it costs here is not known yet"
MIN_RECORDINGS = 8
"""So many recordings a fit of known length gets, whatever the budget says."""

EARLY = 0.7
"""What may be spent grows with this power of the steps made: less than 1, so that it is spent early on."""
START = 1000.0
"""Steps over which a fit of unknown length may spend its whole budget, before it spends ever less of it."""


@dataclass(frozen=True)
class Decision:
    """What to do at a tick, and the tick at which to decide again."""

    record: bool
    groups: tuple[str, ...] = ()
    next_tick: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Group -> why it is not measured this time."""
    thrifty: bool = False
    """Leave out of the chosen groups what can be done without, as the budget is short."""


class Schedule(Protocol):
    """Decides at ticks. In a fit of several ranks, rank 0 decides for all."""

    next_tick: int
    """Ticks before this one need no decision."""
    by_batch: bool
    """Whether ticks are batches; else optimizer steps."""

    def decide(self, tick: int) -> Decision:
        """The decision for this tick. Ticks only ever go up."""

    def adopt(self, decision: Decision) -> None:
        """Take over a decision, one's own or that of rank 0."""


def rotating(groups: Mapping[str, GroupCost], index: int) -> tuple[tuple[str, ...], dict[str, str]]:
    """The groups of the index-th recording, the costlier ones on fewer recordings; and the rest with reasons."""
    chosen = tuple(name for name, cost in groups.items() if index % cost.every == 0)
    left = {
        name: f"measured on every {cost.every}th recording"
        for name, cost in groups.items()
        if name not in chosen
    }
    return chosen, left


@dataclass
class EveryN:
    """One tick of every block of n, the first one seen; or the steps that a callable picks."""

    n: int
    groups: Mapping[str, GroupCost]
    wanted: Callable[[int], bool] | None = None
    next_tick: int = 0
    by_batch: bool = False
    _index: int = 0

    def decide(self, tick: int) -> Decision:
        """Record at the first tick of a block that is seen, as several optimizers make steps jump."""
        if self.wanted is not None:
            following = tick + 1
            if not self.wanted(tick):
                return Decision(False, next_tick=following)
        else:
            following = (tick // self.n + 1) * self.n
        groups, left = rotating(self.groups, self._index)
        return Decision(True, groups, following, left)

    def adopt(self, decision: Decision) -> None:
        """Count the recordings, for the groups that do not run on all of them."""
        self.next_tick = decision.next_tick
        self._index += decision.record


@dataclass
class WithinBudget:
    """Recordings spread so that all diagnostics stay within a share of training time, more densely early on."""

    budget: float
    overhead: Overhead
    groups: Mapping[str, GroupCost]
    total: int | None
    """Batches of the fit, where that is known."""
    first: int = 0
    next_tick: int = 0
    by_batch: bool = True
    _count: int = 0
    _closed: bool = False

    def decide(self, tick: int) -> Decision:
        """Record if it can be paid for, if it is the first, or if the promised few would not come together."""
        seconds = self.overhead.step_seconds
        if self._count == 0:
            return Decision(True, self._with_promised(), tick + 1, self._later())
        last = self._is_last_promise(tick)
        due = last or self._due(tick)
        if seconds is None:
            groups = self._with_promised() if last else self._always()
            return Decision(due, groups if due else (), tick + 1, self._later())
        price = self._base_price(seconds)
        allowed = self._allowed(tick, seconds)
        room = allowed - self._spent - price
        short = room < 0 or self._base_spent + price > self._base_share * allowed
        if short and not due:
            return Decision(False, next_tick=self._affordable(tick, price, seconds))
        groups, left = self._affordable_groups(allowed, seconds, room)
        if last:
            promised = self._with_promised()
            groups = tuple(name for name in self.groups if name in groups or name in promised)
            left = {name: why for name, why in left.items() if name not in groups}
        following = self._affordable(tick, 2 * price, seconds)
        return Decision(True, groups, following, left, self._falls_short(seconds, price))

    def adopt(self, decision: Decision) -> None:
        """Count the recordings."""
        self.next_tick = decision.next_tick
        self._count += decision.record

    def _always(self) -> tuple[str, ...]:
        return tuple(name for name, cost in self.groups.items() if cost.share == 0)

    def _with_promised(self) -> tuple[str, ...]:
        return tuple(name for name, cost in self.groups.items() if cost.share == 0 or cost.promised)

    def _later(self) -> dict[str, str]:
        first = self._with_promised()
        return {name: _NOT_YET for name in self.groups if name not in first}

    @property
    def _spent(self) -> float:
        """By recordings: what every step costs is taken off the budget beforehand."""
        return self.overhead.spent - self.overhead.light

    @property
    def _base_share(self) -> float:
        """What the optional groups leave of the budget for recording at all."""
        return 1.0 - sum(cost.share for cost in self.groups.values())

    @property
    def _base_spent(self) -> float:
        optional = (name for name, cost in self.groups.items() if cost.share > 0)
        return self._spent - sum(self.overhead.by_group.get(name, 0.0) for name in optional)

    def _base_price(self, step_seconds: float) -> float:
        always = sum(self._price(name, step_seconds) for name in self._always())
        return (self.overhead.base_cost or 0.0) + always

    def _price(self, group: str, step_seconds: float) -> float:
        known, cost = self.overhead.group_cost(group), self.groups[group]
        return max(cost.steps * step_seconds, cost.seconds) if known is None else known

    def _allowed(self, tick: int, step_seconds: float) -> float:
        """Seconds that recordings may have taken by this tick."""
        done = tick - self.first + 1
        per_step = max(step_seconds, self.overhead.training / done)
        left = max(0.0, self.budget * per_step - self.overhead.light_seconds)
        if self.total is None:
            return left * START * float((1.0 + done / START) ** EARLY - 1.0) / EARLY
        total = max(self.total - self.first, done)
        return left * total * float((done / total) ** EARLY)

    def _falls_short(self, step_seconds: float, price: float) -> bool:
        """Whether the promised recordings to come, at this price, would break the budget of the whole fit."""
        if self.total is None:
            return False
        promised = sum(self._price(name, step_seconds) for name in self._with_promised())
        always = sum(self._price(name, step_seconds) for name in self._always())
        to_come = max(0, MIN_RECORDINGS - self._count) * price
        if not self._closed:
            to_come += promised - always
        return self._spent + to_come > self._allowed(self.total, step_seconds)

    def _affordable(self, tick: int, price: float, step_seconds: float) -> int:
        """The next tick at which a recording of that price can be paid for (found by doubling, then halving)."""
        need = max(self._spent + price, (self._base_spent + price) / self._base_share)
        low, high = tick, tick + 1
        while self._allowed(high, step_seconds) < need and high - tick < 10**9:
            low, high = high, tick + 2 * (high - tick)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (
                (low, middle) if self._allowed(middle, step_seconds) >= need else (middle, high)
            )
        return min(high, self._next_promise(tick))

    def _affordable_groups(
        self, allowed: float, seconds: float, room: float
    ) -> tuple[tuple[str, ...], dict[str, str]]:
        """The groups whose own share of the budget pays for them now, within the room that is left."""
        chosen, left = list(self._always()), {}
        for name, cost in self.groups.items():
            if cost.share == 0:
                continue
            price = self._price(name, seconds)
            own = self.overhead.by_group.get(name, 0.0)
            if price <= room and own + price <= cost.share * allowed:
                chosen.append(name)
                room -= price
            else:
                left[name] = (
                    f"it takes about {price:.3g} s, and its share of the budget had "
                    f"{max(0.0, min(room, cost.share * allowed - own)):.3g} s left"
                )
        return tuple(name for name in self.groups if name in chosen), left

    def _positions(self) -> list[int]:
        if self.total is None:
            return []
        total = self.total - self.first
        last = max(MIN_RECORDINGS - 1, int(0.97 * (total - 1)))
        spread = [last * (i / (MIN_RECORDINGS - 1)) ** 1.5 for i in range(MIN_RECORDINGS)]
        return [self.first + min(max(round(p), i), total - 1) for i, p in enumerate(spread)]

    def _due(self, tick: int) -> bool:
        """Whether a promised recording is to be made by now."""
        return sum(1 for position in self._positions() if position <= tick) > self._count

    def _next_promise(self, tick: int) -> int:
        """The next tick at which a recording is made whatever it costs."""
        positions = self._positions()
        later = [p for k, p in enumerate(positions) if p > tick and k >= self._count]
        if not later and positions and positions[-1] > tick:
            later = positions[-1:]
        return later[0] if later else 10**12

    def _is_last_promise(self, tick: int) -> bool:
        """Whether this is the first decision at or after the last promised position."""
        positions = self._positions()
        if self._closed or not positions or tick < positions[-1]:
            return False
        self._closed = True
        return True


def schedule_for(
    settings: Settings, groups: Sequence[str], overhead: Overhead, trainer: Any, module: Any
) -> Schedule:
    """Every n steps, a person's own callable, or within the budget."""
    costs = {name: MEASURES[name].cost for name in groups}
    if settings.schedule is not None:
        return EveryN(1, costs, settings.schedule)
    if settings.every_n_steps is not None:
        return EveryN(settings.every_n_steps, costs)
    return WithinBudget(
        settings.budget,
        overhead,
        costs,
        total=total_batches(trainer, module),
        first=batches_so_far(trainer),
    )
