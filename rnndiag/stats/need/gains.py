"""Gains on held-out sequences by level of skips, and their tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rnndiag.stats.need.flips import Array, family_wise_p, in_blocks, mean_with_error, p_of_sum
from rnndiag.stats.need.numbers import GATE, Gain, Group, LagGain, P

FLIPS = 1999
NORMAL_95 = 1.96


@dataclass(frozen=True)
class HeldOutGains:
    """Reductions of the loss by skips, one value per test sequence (n of them).

    If sequences overlap, `block` consecutive ones are averaged and form one unit of the tests.
    """

    present: Array
    """(n,) by functions of the present."""
    groups: Array
    """(groups, n) by each group of lags, added to all nearer groups."""
    control: Array
    """(groups, n) by the same skips, given the past of another sequence with a similar present."""
    block: int = 1
    seed: int = 0

    @property
    def units(self) -> int:
        """Number of test units: sequences, or blocks of them."""
        return len(self._units(self.present))

    def of_present(self) -> tuple[Gain, float]:
        """Gain by the present, and its p."""
        values = self._units(self.present)
        return Gain(*interval(values)), p_of_sum(values, FLIPS, self.seed)

    def of_lags(self, chosen: Sequence[bool]) -> LagGain:
        """Summed gain of the chosen groups, its p, and the p of its excess over the control."""
        groups = np.asarray(chosen, dtype=bool)
        values = self._units(self.groups[groups].sum(0))
        excess = values - self._units(self.control[groups].sum(0))
        return LagGain(
            *interval(values),
            p_of_sum(values, FLIPS, self.seed),
            p_of_sum(excess, FLIPS, self.seed),
        )

    def by_group(
        self, lags: Sequence[range], passed: Sequence[bool], scale: float
    ) -> tuple[Group, ...]:
        """The gain of each group, its p corrected for the number of groups.

        Args:
            lags: Lags of each group.
            passed: Whether the sum that a group belongs to passed both of its tests: a place is named only then.
            scale: R.
        """
        values = self._units(self.groups)
        excess = values - self._units(self.control)
        found = []
        for one, row, p, over, whole in zip(
            lags,
            values,
            family_wise_p(values, FLIPS, self.seed),
            family_wise_p(excess, FLIPS, self.seed),
            passed,
            strict=True,
        ):
            gain, lower, upper = interval(row)
            significant = whole and p <= P and over <= P and lower > GATE * scale
            found.append(Group(one[0], one[-1], gain, lower, upper, p, over, significant))
        return tuple(found)

    def _units(self, values: Array) -> Array:
        return in_blocks(values, self.block)


def interval(values: Array) -> tuple[float, float, float]:
    """Mean and the bounds of its 95 % interval."""
    mean, error = mean_with_error(values)
    if not np.any(values):
        return 0.0, 0.0, 0.0
    return mean, mean - NORMAL_95 * error, mean + NORMAL_95 * error
