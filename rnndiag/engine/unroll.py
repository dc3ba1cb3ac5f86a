"""A layer run made without a model: a cell unrolled step by step, with given direct gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rnndiag.engine.cells import Cell, State
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.transition import step
from rnndiag.errors import BadArgument


@torch.no_grad()
def unroll(
    cell: Cell,
    weights: Mapping[str, Tensor],
    inputs: Tensor,
    direct: State,
    initial: State | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    name: str = "layer",
) -> LayerRun:
    """The layer run of a cell unrolled from its initial state.

    Args:
        cell: The cell.
        weights: Its weights by key.
        inputs: (T, B, I).
        direct: e_t, (T, B, S_p) for each part of the state.
        initial: (B, S_p) for each part. Default: zeros.
        lengths: (B,). Default: every sequence has T steps.
        name: Name of the layer.

    Raises:
        BadArgument: A weight is missing, or shapes do not fit together.
    """
    _require_weights(cell, weights, inputs)
    if initial is None:
        if cell.pointwise is None:
            raise BadArgument(
                f"The cell {cell.name!r} does not say how large its state is.", "Pass initial=."
            )
        initial = tuple(inputs.new_zeros(inputs.shape[1], size) for size in cell.sizes(weights))
    _require_states(cell, weights, inputs, direct, initial)
    states: list[State] = []
    state = initial = tuple(part.detach() for part in initial)
    for now in inputs:
        state = step(cell, weights, now, state)
        states.append(state)
    run = LayerRun(
        name=name,
        cell=cell,
        weights={key: value.detach() for key, value in weights.items()},
        inputs=inputs.detach(),
        states=tuple(torch.stack(part) for part in zip(*states, strict=True)),
        initial=initial,
        direct=tuple(part.detach() for part in direct),
        lengths=_lengths(inputs, lengths),
        tie="zero" if all(not part.any() for part in initial) else "given",
    )
    if lengths is None:
        return run
    past = ~run.mask()
    return replace(
        run,
        inputs=run.inputs.masked_fill(past.view(*past.shape, *[1] * (inputs.dim() - 2)), 0),
        states=tuple(part.masked_fill(past[..., None], 0.0) for part in run.states),
        direct=tuple(part.masked_fill(past[..., None], 0.0) for part in run.direct),
    )


def _require_weights(cell: Cell, weights: Mapping[str, Tensor], inputs: Tensor) -> None:
    if inputs.dim() < 2 or not len(inputs):
        raise BadArgument(
            f"The inputs have shape {tuple(inputs.shape)}.",
            "Give (T, B, I) with at least one step.",
        )
    if cell.pointwise is None:
        return
    needed = ("weight_ih", "weight_hh", *cell.extras)
    missing = [key for key in needed if key not in weights]
    if missing:
        raise BadArgument(
            f"The cell {cell.name!r} was given no {', '.join(missing)}.",
            f"Its weights are {', '.join(needed)}, and the biases bias_ih and bias_hh if it has them.",
        )
    width = int(weights["weight_ih"].shape[1])
    if inputs.dim() != 3 or inputs.shape[-1] != width:
        raise BadArgument(
            f"The inputs have shape {tuple(inputs.shape)}, but weight_ih takes (T, B, {width}).",
            "Put time first, then the batch.",
        )
    if inputs.dtype != weights["weight_ih"].dtype:
        raise BadArgument(
            f"The inputs are {inputs.dtype}, the weights {weights['weight_ih'].dtype}.",
            "Convert one of the two.",
        )


def _require_states(
    cell: Cell, weights: Mapping[str, Tensor], inputs: Tensor, direct: State, initial: State
) -> None:
    if not len(direct) == len(initial) == len(cell.parts):
        raise BadArgument(
            f"The cell {cell.name!r} has the state parts {cell.parts}, but {len(direct)} direct gradients "
            f"and {len(initial)} initial states were given.",
            "Give one tensor a part.",
        )
    given = [part.shape[-1] for part in initial]
    sizes = given if cell.pointwise is None else cell.sizes(weights)
    lead = tuple(inputs.shape[:2])
    for part, size, start, e in zip(cell.parts, sizes, initial, direct, strict=True):
        pairs = (("initial", start, (lead[1], size)), ("direct", e, (*lead, size)))
        for what, value, expected in pairs:
            if tuple(value.shape) != expected:
                raise BadArgument(
                    f"{what} has shape {tuple(value.shape)} for the part {part}.",
                    f"Give {expected}.",
                )


def _lengths(inputs: Tensor, lengths: Tensor | Sequence[int] | None) -> Tensor | None:
    if lengths is None:
        return None
    steps, batch = inputs.shape[:2]
    found = torch.as_tensor(lengths, dtype=torch.int64)
    if found.shape != (batch,) or bool(((found < 0) | (found > steps)).any()):
        raise BadArgument(
            f"The lengths {found.tolist()} do not fit {batch} sequences of {steps} steps.",
            f"Give {batch} numbers from 0 to {steps}.",
        )
    return found
