"""How a recurrence runs over time: torch's fused layers, step modules in a loop, and layers above one another."""

from lightning_modules.recurrence.chain import Chain
from lightning_modules.recurrence.directions import BothDirections
from lightning_modules.recurrence.kernel import Kernel
from lightning_modules.recurrence.recurrence import Recurrence, State
from lightning_modules.recurrence.stepped import Stepped

__all__ = ["BothDirections", "Chain", "Kernel", "Recurrence", "State", "Stepped"]
