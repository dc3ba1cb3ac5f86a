"""What a wiring is given, and what it makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightning_modules.cells.cell import CellEntry
from lightning_modules.recurrence.recurrence import Recurrence
from lightning_modules.registry import Registry
from lightning_modules.regularisation.regularisation import Regularisation
from rnndiag.errors import BadArgument


@dataclass(frozen=True)
class Plan:
    """A recurrence to build: I inputs, H hidden units, how many layers of which cell."""

    inputs: int
    hidden: int
    layers: int
    outputs: int
    """Size of the model's predictions, for a wiring that feeds them back."""
    classifies: bool
    """Whether those are logits of a softmax."""
    cell: CellEntry | None
    regularisation: Regularisation


@dataclass(frozen=True)
class Wiring:
    """One wiring. `own_step`: it brings its own transition, so no cell is chosen."""

    summary: str
    build: Callable[[Plan], Recurrence]
    own_step: bool = False

    def make(self, plan: Plan, name: str) -> Recurrence:
        """The recurrence, once the plan fits."""
        if self.own_step and plan.cell is not None:
            raise BadArgument(
                f"The wiring {name!r} has a transition of its own and takes no cell.",
                "Leave `cell` out, or take the wiring 'stack'.",
            )
        if not self.own_step and plan.cell is None:
            raise BadArgument(f"The wiring {name!r} needs a cell.", "Say which: `cell: lstm`.")
        if plan.layers < 1 or plan.hidden < 1:
            raise BadArgument(
                f"{plan.layers} layers of {plan.hidden} units are no recurrence.",
                "Take at least 1.",
            )
        if self.own_step and plan.layers > 1:
            raise BadArgument(
                f"The wiring {name!r} is one layer, not {plan.layers}.", "Leave `layers` at 1."
            )
        return self.build(plan)


WIRINGS: Registry[Wiring] = Registry("wiring", "lightning_modules.wirings")


def chosen(plan: Plan) -> CellEntry:
    """The cell of a plan that has one."""
    if plan.cell is None:
        raise ValueError("this wiring needs a cell")
    return plan.cell
