"""Two directions of time in every layer, side by side."""

from __future__ import annotations

from lightning_modules.recurrence import BothDirections, Chain, Kernel, Recurrence
from lightning_modules.wirings.wiring import WIRINGS, Plan, Wiring, chosen


def build(plan: Plan) -> Recurrence:
    """torch's own where the cell has one; else a pair of step modules a layer."""
    cell, rule = chosen(plan), plan.regularisation
    if cell.kernel is not None and rule.between is None:
        dropout = rule.layer_dropout if plan.layers > 1 else 0.0
        return Kernel(cell.kernel, cell.parts, plan.inputs, plan.hidden, plan.layers, dropout, True)

    def layer(size: int) -> Recurrence:
        return BothDirections(cell.layer(size, plan.hidden), cell.layer(size, plan.hidden))

    return Chain(layer, plan.inputs, plan.layers, rule.between)


WIRINGS.add("bidirectional", Wiring("both directions of time", build))
