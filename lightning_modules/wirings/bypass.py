"""A stack with bypass connections: the input reaches every layer, and every layer reaches the output."""

from __future__ import annotations

from lightning_modules.recurrence import Chain, Recurrence
from lightning_modules.wirings.wiring import WIRINGS, Plan, Wiring, chosen


def build(plan: Plan) -> Recurrence:
    """One recurrence a layer, joined by concatenation."""
    cell = chosen(plan)
    return Chain(
        lambda size: cell.layer(size, plan.hidden),
        plan.inputs,
        plan.layers,
        plan.regularisation.between,
        bypass=True,
    )


WIRINGS.add("bypass", Wiring("stack, input to every layer, every layer to the output", build))
