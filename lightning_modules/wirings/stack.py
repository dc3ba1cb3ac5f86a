"""One layer, or several above one another."""

from __future__ import annotations

from functools import partial

from torch import nn

from lightning_modules.recurrence import Chain, Kernel, Recurrence
from lightning_modules.wirings.wiring import WIRINGS, Plan, Wiring, chosen


def build(plan: Plan) -> Recurrence:
    """torch's own stack where the cell has one and nothing must stand between its layers."""
    cell, rule = chosen(plan), plan.regularisation
    if cell.kernel is not None and rule.between is None:
        dropout = rule.layer_dropout if plan.layers > 1 else 0.0
        return Kernel(cell.kernel, cell.parts, plan.inputs, plan.hidden, plan.layers, dropout)
    between, ends = rule.between, True
    if between is None and rule.layer_dropout:
        between, ends = partial(nn.Dropout, rule.layer_dropout), False

    def layer(size: int) -> Recurrence:
        return cell.layer(size, plan.hidden)

    return Chain(layer, plan.inputs, plan.layers, between, ends=ends)


WIRINGS.add("stack", Wiring("layers above one another", build))
