"""A layer run made by hand: a cell run step by step from its initial state, with the direct gradients given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rnndiag.engine.cells import Cell, State
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.transition import step
from rnndiag.errors import BadArgument


def unroll(
    cell: Cell,
    weights: Mapping[str, Tensor],
    inputs: Tensor,
    direct: State,
    initial: State | None = None,
    lengths: Tensor | None = None,
    name: str = "layer",
) -> LayerRun:
    """A layer run made by hand: inputs (T, B, I) run through the cell step by step, with the direct gradients given."""
    if initial is None:
        if cell.pointwise is None:
            raise BadArgument(
                f"The cell {cell.name!r} does not tell the size of its state.", "Pass initial=."
            )
        initial = tuple(inputs.new_zeros(inputs.shape[1], size) for size in cell.sizes(weights))
    if not len(direct) == len(initial) == len(cell.parts):
        raise BadArgument(
            f"The cell {cell.name!r} has the state parts {cell.parts}, but {len(direct)} direct gradients "
            f"and {len(initial)} initial states were given.",
            "Give one tensor a part.",
        )
    states: list[State] = []
    state = initial
    with torch.no_grad():
        for now in inputs:
            state = step(cell, weights, now, state)
            states.append(state)
    run = LayerRun(
        name=name,
        cell=cell,
        weights=weights,
        inputs=inputs,
        states=tuple(torch.stack(part) for part in zip(*states, strict=True)),
        initial=initial,
        direct=direct,
        lengths=lengths,
        tie="zero" if all(not part.any() for part in initial) else "given",
    )
    keep = run.mask()[..., None]
    return replace(
        run,
        states=tuple(part * keep for part in run.states),
        direct=tuple(part * keep for part in run.direct),
    )
