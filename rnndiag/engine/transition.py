"""One step of a cell for any leading batch, its diagonal derivatives, and its transposed Jacobian."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnndiag.engine.cells import Cell, State
from rnndiag.engine.cells.nested import Nested
from rnndiag.engine.layer_run import LayerRun


def preactivations(
    cell: Cell, weights: Mapping[str, Tensor], inputs: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    """a_ih (..., gates*H) and a_hh (..., recurrent gates*H). For an additive cell a_ih is their sum and a_hh zero."""
    if cell.additive and _in_place(h):
        biases = [weights[key] for key in ("bias_ih", "bias_hh") if key in weights]
        # One bias and a product added in place save two passes over a large result.
        bias = torch.stack(biases).sum(0) if biases else None
        a_ih = linear(inputs, weights["weight_ih"], bias)
        a_ih.flatten(0, -2).addmm_(h.flatten(0, -2), weights["weight_hh"].mT)
        return a_ih, a_ih.new_zeros(())
    a_ih = linear(inputs, weights["weight_ih"], weights.get("bias_ih"))
    a_hh = linear(h, weights["weight_hh"], weights.get("bias_hh"))
    if not cell.additive:
        return a_ih, a_hh
    total = a_ih + a_hh
    return total, total.new_zeros(())


def _in_place(h: Tensor) -> bool:
    """Whether the second product may be added in place: neither autograd nor a functorch transform is active."""
    plain = torch._C._functorch.peek_interpreter_stack() is None
    return plain and h.dim() > 1 and not torch.is_grad_enabled()


def step(cell: Cell, weights: Mapping[str, Tensor], inputs: Tensor, state: State) -> State:
    """s_t from x_t (N, I) and s_{t-1}, a tuple of (N, S_p). Differentiable; N is any leading batch."""
    if cell.run_step is not None:
        return cell.run_step(weights, inputs, state)
    assert cell.pointwise is not None
    a_ih, a_hh = preactivations(cell, weights, inputs, state[0])
    h, *rest = cell.pointwise(a_ih, a_hh, state, **cell.extra_weights(weights))
    if "weight_hr" in weights:
        h = linear(h, weights["weight_hr"])
    return (h, *rest)


def flat_step(cell: Cell, weights: Mapping[str, Tensor], inputs: Tensor, state: State) -> State:
    """`step` for inputs (T, B, ...) and state parts (T, B, S_p): time and batch on one axis."""
    if cell.run_step is None:
        return step(cell, weights, inputs, state)
    lead = inputs.shape[:2]
    out = step(cell, weights, inputs.flatten(0, 1), tuple(part.flatten(0, 1) for part in state))
    return tuple(part.unflatten(0, lead) for part in out)


@dataclass(frozen=True)
class Coefficients:
    """Diagonal derivatives of an elementwise cell's `pointwise`, for some adjacent steps.

    Of state part p (h before its projection): `a_hh[p]` (T, B, blocks, H), `a_ih[p]` (T, B, gates, H) (the same tensor
    for an additive cell) and `state[p][q]` (T, B, H) by part q of s_{t-1}; None where the derivative is zero.
    """

    a_ih: tuple[Tensor | None, ...]
    a_hh: tuple[Tensor | None, ...]
    state: tuple[tuple[Tensor | None, ...], ...]
    projected: Tensor
    """h before its projection (T, B, H); h itself without a projection."""
    others: State = ()
    """The other state parts returned by `pointwise`, (T, B, H) each."""
    within: Tensor | None = None
    """∂h_t/∂(last part)_t (T, B, H) if the other derivatives of h are taken at a fixed last part; None: expanded."""
    gates: tuple[slice, ...] | None = None
    """The gates covered by `a_hh[p]` if each gate belongs to one part only; None: all."""


def coefficients(
    run: LayerRun,
    start: int = 0,
    stop: int | None = None,
    previous: State | None = None,
    *,
    nested: bool = False,
) -> Coefficients:
    """The diagonal derivatives of steps start..stop-1. The cell must be elementwise.

    Unit j of an output depends on unit j of the arguments alone, so one VJP with ones per part is the whole Jacobian.
    nested: keep h as a function of the new last part where the cell offers that: half as many numbers.
    """
    cell, weights = run.cell, run.weights
    if previous is None:
        before = run.previous(start, stop)
    else:
        before = tuple(part[start:stop] for part in previous)
    with torch.no_grad():
        if cell.nested is not None:
            gate = _gates(run, before, start, stop)
            found = cell.nested(gate, before, **cell.extra_weights(weights))
            if nested:
                return _left_nested(found)
            out, rows = found.out, found.written_out()
        elif cell.diagonal is None:
            a_ih, a_hh = preactivations(cell, weights, run.inputs[start:stop], before[0])
            out, rows = _diagonals_by_autograd(run, a_ih, a_hh, before)
        else:
            gate = _gates(run, before, start, stop)
            out, rows = cell.diagonal(gate, before, **cell.extra_weights(weights))
    units = cell.units(weights)

    def blocks(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.unflatten(-1, (-1, units))

    return Coefficients(
        a_ih=tuple(blocks(row[0]) for row in rows),
        a_hh=tuple(blocks(row[0 if cell.additive else 1]) for row in rows),
        state=tuple(tuple(row[2:]) for row in rows),
        projected=out[0],
        others=out[1:],
    )


def _left_nested(found: Nested) -> Coefficients:
    return Coefficients(
        a_ih=found.by_gate,
        a_hh=found.by_gate,
        state=((None, None), (None, found.carried)),
        projected=found.out[0],
        others=found.out[1:],
        within=found.within,
        gates=found.gates,
    )


def _gates(run: LayerRun, before: State, start: int, stop: int | None) -> Mapping[str, Tensor]:
    """Values of the gates of steps start..stop-1, `before` being their s_{t-1}."""
    if run.gates is not None:
        return {name: value[start:stop] for name, value in run.gates.items()}
    return gates(run.cell, run.weights, run.inputs[start:stop], before)


def gates(
    cell: Cell, weights: Mapping[str, Tensor], inputs: Tensor, state: State
) -> Mapping[str, Tensor]:
    """Values of the gates (..., H) from x_t and s_{t-1}, of a cell that names them."""
    assert cell.activations is not None
    pre = preactivations(cell, weights, inputs, state[0])
    return cell.activations(*pre, state, **cell.extra_weights(weights))


def _diagonals_by_autograd(
    run: LayerRun, a_ih: Tensor, a_hh: Tensor, before: State
) -> tuple[State, list[list[Tensor | None]]]:
    cell = run.cell
    assert cell.pointwise is not None
    with torch.enable_grad():
        a_ih = a_ih.detach().requires_grad_()
        a_hh = a_hh.detach().requires_grad_(not cell.additive)
        parts = tuple(part.detach().requires_grad_() for part in before)
        out = cell.pointwise(a_ih, a_hh, parts, **cell.extra_weights(run.weights))
        # a_hh is a constant zero in an additive cell.
        leaves = (a_ih, *parts) if cell.additive else (a_ih, a_hh, *parts)
        rows = [
            list(_diagonal(value, leaves, last=p + 1 == len(out))) for p, value in enumerate(out)
        ]
    if cell.additive:
        rows = [[row[0], None, *row[1:]] for row in rows]
    return tuple(value.detach() for value in out), rows


def _diagonal(value: Tensor, leaves: tuple[Tensor, ...], last: bool) -> tuple[Tensor | None, ...]:
    if not value.requires_grad:
        return (None,) * len(leaves)
    return torch.autograd.grad(
        value, leaves, torch.ones_like(value), retain_graph=not last, allow_unused=True
    )


def weighted(terms: list[tuple[Tensor | None, Tensor]]) -> Tensor | None:
    """Σ coefficient * cotangent over terms with a coefficient; None if there are none."""
    total: Tensor | None = None
    for coefficient, cotangent in terms:
        if coefficient is None:
            continue
        total = (
            coefficient * cotangent
            if total is None
            else torch.addcmul(total, coefficient, cotangent)
        )
    return total


def project_back(run: LayerRun, cotangent: State) -> State:
    """Convert a cotangent of s_t to one of (h before its projection, other parts)."""
    if "weight_hr" not in run.weights:
        return cotangent
    return (cotangent[0] @ run.weights["weight_hr"], *cotangent[1:])


def transposed_by_autograd(run: LayerRun, cotangent: State, times: Tensor | None = None) -> State:
    """J_t^T a by torch.autograd with time on the batch axis, for any cell: a is one tensor (T', B, S_p) a part.

    `times` (T',) picks the steps t; None: all. The slow, obvious form, which the proofs rely on.
    """
    before = run.previous() if times is None else run.previous_at(times)
    inputs = run.inputs if times is None else run.inputs[times]
    with torch.enable_grad():
        leaves = tuple(part.detach().requires_grad_() for part in before)
        out = flat_step(run.cell, run.weights, inputs.detach(), leaves)
        return pulled_back(out, cotangent, leaves)


def pulled_back(out: State, cotangent: State, leaves: State) -> State:
    """Σ (∂out/∂leaf)^T a, a tensor a leaf, by torch.autograd; a part that depends on no leaf adds nothing."""
    kept = [(o, a) for o, a in zip(out, cotangent, strict=True) if o.requires_grad]
    if not kept:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(
        [o for o, _ in kept], leaves, [a for _, a in kept], materialize_grads=True
    )
