"""The numbers that `memory_need` measures; the verdict depends on them alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

Limit = Literal["given", "window", "reach"]
"""Origin of `beyond`: given by the caller, the window in use, or the reach of the gradient."""
LIMITS: tuple[Limit, ...] = ("given", "window", "reach")

P = 0.05
GATE = 0.01
"""Effects below this share of the scale R raise no verdict."""
CONTROL = 0.03
"""A need of this share of R must be found by the positive control; otherwise finding none proves nothing."""
FEWEST_SEQUENCES, FEWEST_ROWS = 32, 64


class Gain(NamedTuple):
    """A reduction of the loss on held-out sequences, with its 95 % interval."""

    gain: float
    lower: float
    upper: float


class LagGain(NamedTuple):
    """A gain with two tests: above 0, and above the gain from another sequence's past."""

    gain: float
    lower: float
    upper: float
    p: float
    p_over_control: float

    def passes(self, gate: float) -> bool:
        """Whether both tests are significant and the interval lies above `gate`."""
        return self.significant and self.lower > gate

    @property
    def significant(self) -> bool:
        """Whether both tests are significant."""
        return self.p <= P and self.p_over_control <= P


class Group(NamedTuple):
    """The gain of the inputs `low` .. `high` steps back, beyond the state and all nearer inputs."""

    low: int
    high: int
    gain: float
    lower: float
    upper: float
    p: float
    p_over_control: float
    significant: bool


class Use(NamedTuple):
    """The rise of the loss when outputs are computed from the last `inputs` inputs only."""

    inputs: int
    rise: float
    lower: float
    upper: float


@dataclass(frozen=True)
class NeedNumbers:
    """What `memory_need` measured of one layer.

    Gains and rises are in units of the loss. Intervals are 95 %, over held-out sequences, given the fit.
    """

    layer: str
    """The layer whose outputs the skips were added to."""
    loss: float
    """L, the loss of the net on the test sequences in eval mode."""
    groups: tuple[Group, ...]
    """NEED by group of lags, nearest first."""
    present: Gain
    """The gain by functions of the present input and state: information that the state already holds."""
    present_p: float
    within: LagGain
    """The gain of all groups nearer than `beyond`."""
    further: LagGain
    """The gain of all groups `beyond` or more steps back."""
    use: tuple[Use, ...]
    """USE by number of inputs, as a running minimum."""
    used_memory: int | None
    """Number of last inputs that the net uses; None: no use of past inputs was measurable."""
    burn_in: int
    """Steps after which 95 % of the sequences have forgotten their start state to within 1 %."""
    floor: float
    """The smallest share of R that the positive control found; inf: none found; NaN: not run."""
    beyond: int
    limit: Limit
    max_lag: int
    """D, the longest lag tested."""
    sequences: int
    """Number of test units: sequences, or blocks of overlapping ones."""
    n_sequences: int
    """Number of all sequences read."""
    rows: int
    """Number of outputs with a loss in the sequences that the skips were fitted to."""
    reach: float = math.nan
    """Steps within which 90 % of the credit lies; NaN: not measured."""
    peak_lag: float = math.nan
    """The lag with the highest score in the screen."""
    autocorrelation: float = math.nan
    """Autocorrelation time of the inputs in steps: gains spread over about as many neighbouring lags."""
    gap: float = 0.0
    """Largest relative error of splitting a gain over sequences, before it was corrected."""
    plain_steps: float = math.nan
    """Cost in plain training steps."""
    notes: tuple[str, ...] = ()
    """Limits of this answer, in sentences."""

    @property
    def scale(self) -> float:
        """R, the loss of the net without memory: the scale with which all effects are compared."""
        return abs(self.loss) + max([0.0, *(point.rise for point in self.use)])

    @property
    def gate(self) -> float:
        """The smallest effect that raises a verdict, in units of the loss."""
        return GATE * self.scale
