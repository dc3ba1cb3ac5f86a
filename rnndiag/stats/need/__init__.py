"""Need of memory: the numbers of `rnndiag.memory_need`, its verdict and its sentences (numpy only)."""

from rnndiag.stats.need.memory_need import MemoryNeed
from rnndiag.stats.need.numbers import Gain, Group, LagGain, NeedNumbers, Use
from rnndiag.stats.need.screen import ScreenCurve, screens_in
from rnndiag.stats.need.stored import need_measurements, needs_in
from rnndiag.stats.need.verdict import Lead

__all__ = [
    "Gain",
    "Group",
    "LagGain",
    "Lead",
    "MemoryNeed",
    "NeedNumbers",
    "ScreenCurve",
    "Use",
    "need_measurements",
    "needs_in",
    "screens_in",
]
