"""The cost of the diagnostics: their own seconds compared with those of the training."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

PLAIN_STEPS = 4
"""Number of unrecorded steps that must be timed before the duration of a step counts as known."""


@dataclass
class Overhead:
    """Times of one fit on one rank, in seconds.

    A recorded step costs the time in the recorder's hooks, which is measured, and the slowdown of its forward and
    backward passes: the duration of the step less the median of the unrecorded ones.
    """

    spent: float = 0.0
    """Time of the diagnostics so far."""
    light: float = 0.0
    """The part of `spent` in steps that are not recorded: history, and references kept for the black box."""
    plain: int = 0
    """Number of steps that were not recorded."""
    by_group: dict[str, float] = field(default_factory=dict)
    """The part of `spent` by group of measures."""
    started: float = field(default_factory=perf_counter)
    paused: float = 0.0
    """Time of validation, which does not count as training."""
    _plain: deque[float] = field(default_factory=lambda: deque(maxlen=51))
    _costs: deque[float] = field(default_factory=lambda: deque(maxlen=5))
    _group_costs: dict[str, deque[float]] = field(default_factory=dict)
    _batch_started: float | None = None
    _spent_at_start: float = 0.0
    _spent_at_end: float = 0.0
    _groups_at_end: float = 0.0
    _since: float = 0.0
    _watching: float = 0.0
    """Accumulated slowdown of recorded passes."""
    _depth: int = 0
    _pause_started: float | None = None

    def own(self, group: str | None = None) -> Own:
        """Context whose time counts as diagnostics and, if named, as that group's. Nested contexts count once."""
        return Own(self, group)

    def enter(self) -> None:
        """Start of a stretch of diagnostics."""
        if self._depth == 0:
            self._since = perf_counter()
        self._depth += 1

    def leave(self) -> None:
        """End of a stretch of diagnostics."""
        self._depth -= 1
        if self._depth == 0:
            self.spent += perf_counter() - self._since

    def _up_to_now(self) -> float:
        """Update `spent` within a stretch of diagnostics; returns the current time."""
        now = perf_counter()
        if self._depth:
            self.spent += now - self._since
            self._since = now
        return now

    def batch_started(self) -> None:
        """Start of a training step."""
        self._batch_started = self._up_to_now()
        self._spent_at_start = self.spent

    def batch_ended(self, recorded: bool) -> float | None:
        """End of a training step.

        Args:
            recorded: Whether something was measured of it.

        Returns:
            Of a step that was not recorded: the recorder's own seconds.
        """
        if self._batch_started is None:
            return None
        now = self._up_to_now()
        own = self.spent - self._spent_at_start
        duration = now - self._batch_started - own
        self._batch_started = None
        if not recorded:
            self._plain.append(duration)
            self.plain += 1
            light = self.spent - self._spent_at_end
            self.light += light
            self._spent_at_end = self.spent
            return light
        step = self.step_seconds
        if step is not None:
            # single steps vary, so a recorded one may seem cheaper than a plain one: only the sum is meaningful
            before = max(0.0, self._watching)
            self._watching += duration - step
            self.spent += max(0.0, self._watching) - before
            own += max(0.0, duration - step)
        self._spent_at_end = self.spent
        groups = sum(self.by_group.values())
        self.recording_cost(max(0.0, own - (groups - self._groups_at_end)))
        self._groups_at_end = groups
        return None

    def batch_dropped(self) -> None:
        """Discard the timing of a training step that was not completed."""
        self._batch_started = None

    def recording_cost(self, seconds: float) -> None:
        """Store the cost of one recording without the optional groups."""
        self._costs.append(seconds)

    def pause(self) -> None:
        """Start of validation."""
        self._pause_started = perf_counter()

    def resume(self) -> None:
        """End of validation."""
        if self._pause_started is not None:
            self.paused += perf_counter() - self._pause_started
            self._pause_started = None

    def clock(self) -> float:
        """Return a time in seconds that does not advance during validation."""
        return perf_counter() - self.paused

    @property
    def step_seconds(self) -> float | None:
        """Median duration of an unrecorded training step; None until enough were timed."""
        return median(self._plain) if len(self._plain) >= PLAIN_STEPS else None

    @property
    def light_seconds(self) -> float:
        """Mean cost of a step that is not recorded."""
        return self.light / self.plain if self.plain else 0.0

    @property
    def base_cost(self) -> float | None:
        """Median cost of the last recordings without the optional groups."""
        return median(self._costs) if self._costs else None

    def group_cost(self, group: str) -> float | None:
        """Median cost of the last measurements of the group."""
        costs = self._group_costs.get(group)
        return median(costs) if costs else None

    @property
    def training(self) -> float:
        """Seconds of training so far: wall time less validation and diagnostics."""
        return max(perf_counter() - self.started - self.paused - self.spent, 1e-9)

    @property
    def share(self) -> float:
        """Time of the diagnostics as a share of training time."""
        return self.spent / self.training


class Own:
    """Context manager of `Overhead.own`; a class, since a generator costs more and unrecorded steps pay for it too."""

    __slots__ = ("_group", "_overhead", "_start")

    def __init__(self, overhead: Overhead, group: str | None) -> None:
        self._overhead, self._group, self._start = overhead, group, 0.0

    def __enter__(self) -> None:
        self._overhead.enter()
        self._start = perf_counter()

    def __exit__(self, *error: object) -> None:
        overhead, group = self._overhead, self._group
        if group is not None:
            seconds = perf_counter() - self._start
            overhead.by_group[group] = overhead.by_group.get(group, 0.0) + seconds
            overhead._group_costs.setdefault(group, deque(maxlen=5)).append(seconds)
        overhead.leave()
