"""The numbers that `memory_need` measures; the verdict follows from them alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

Limit = Literal["given", "window", "reach"]
"""Where `beyond` comes from: the caller, the window in use, or the reach of the gradient."""
LIMITS: tuple[Limit, ...] = ("given", "window", "reach")

P = 0.05
GATE = 0.01
"""Effects below this share of the scale R raise no verdict."""
CONTROL = 0.03
"""The positive control has to find a need of this share of R, or silence is not resolved."""
FEWEST_SEQUENCES, FEWEST_ROWS = 32, 64


class Gain(NamedTuple):
    """A fall of the loss on held-out sequences, with its 95 % interval."""

    gain: float
    lower: float
    upper: float


class LagGain(NamedTuple):
    """A gain with its tests: above 0, and above the gain of another sequence's past."""

    gain: float
    lower: float
    upper: float
    p: float
    p_over_control: float

    def passes(self, gate: float) -> bool:
        """Both tests pass and the interval lies above the gate."""
        return self.significant and self.lower > gate

    @property
    def significant(self) -> bool:
        """Both tests pass."""
        return self.p <= P and self.p_over_control <= P


class Group(NamedTuple):
    """What the inputs `low` .. `high` steps back add to all nearer ones and to the state."""

    low: int
    high: int
    gain: float
    lower: float
    upper: float
    p: float
    p_over_control: float
    significant: bool


class Use(NamedTuple):
    """The rise of the loss where outputs see the last `inputs` inputs only."""

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
    """L, the loss of the net on the test sequences, in eval mode."""
    groups: tuple[Group, ...]
    """NEED by groups of lags, nearest first."""
    present: Gain
    """What the state already holds: the gain of functions of the present input and state."""
    present_p: float
    within: LagGain
    """All groups nearer than `beyond`."""
    further: LagGain
    """All groups `beyond` or more steps back."""
    use: tuple[Use, ...]
    """USE over the number of inputs, a running minimum."""
    used_memory: int | None
    """How many of the last inputs the net draws on; None: it draws on no past that could be measured."""
    burn_in: int
    """Steps after which a start state is forgotten, to 1 %, in 95 % of the sequences."""
    floor: float
    """The smallest share of R that the positive control found; inf: none; NaN: not tried."""
    beyond: int
    limit: Limit
    max_lag: int
    """D, the longest lag tested."""
    sequences: int
    """Sequences that gains were measured on, or blocks of overlapping ones."""
    n_sequences: int
    """All sequences that were looked at."""
    rows: int
    """Outputs with a loss in the sequences that the skips were fitted to."""
    reach: float = math.nan
    """Steps within which 90 % of the credit lies; NaN: not measured."""
    peak_lag: float = math.nan
    """The lag at which the screen stands out most."""
    autocorrelation: float = math.nan
    """Autocorrelation time of the inputs in steps: gains smear over about as many lags."""
    gap: float = 0.0
    """Largest error of the split of gains over sequences before correction, relative to the gain."""
    plain_steps: float = math.nan
    """What it cost, in plain training steps."""
    notes: tuple[str, ...] = ()
    """Limits of this answer, in sentences."""

    @property
    def scale(self) -> float:
        """R, the loss that the net would have without memory: all effects are compared with it."""
        return abs(self.loss) + max([0.0, *(point.rise for point in self.use)])

    @property
    def gate(self) -> float:
        """The smallest effect that raises a verdict, in loss."""
        return GATE * self.scale
