"""Adjoints of every state and pre-activation, δ_t = e_t + J_{t+1}^T δ_{t+1}, by a backward scan over recorded states.

The gates of all steps are computed from the recorded states in one matrix product; only the recursion itself goes step
by step. The network is not run again, so the scan cannot leave the recorded trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnndiag.engine.cells import State
from rnndiag.engine.cpu_buffers import empty, empty_parts
from rnndiag.engine.layer_run import LayerRun, named_sizes
from rnndiag.engine.transition import (
    Coefficients,
    coefficients,
    flat_step,
    preactivations,
    project_back,
    pulled_back,
    step,
    weighted,
)
from rnndiag.errors import BadArgument


def scan_stretch(
    run: LayerRun,
    diagonal: Coefficients,
    direct: State,
    delta: State,
    a_hh: Tensor,
    carry: State,
    start: int,
) -> State:
    """The recursion over adjacent steps, writing δ and a_hh in place. Returns J^T δ of the first of these steps."""
    weight_hh = run.weights["weight_hh"]
    weight_hr = run.weights.get("weight_hr")
    lengths = run.lengths
    steps = slice(start, start + diagonal.projected.shape[0])
    rows = [
        (part[steps].unbind(0), own[steps].unbind(0))
        for part, own in zip(delta, direct, strict=True)
    ]
    flat = a_hh[steps].flatten(-2).unbind(0)
    within = None if diagonal.within is None else diagonal.within.unbind(0)
    seen = diagonal.gates or (slice(None),) * len(delta)
    by_gate = [
        (p, c.unbind(0), a_hh[steps, :, gates].unbind(0))
        for p, (c, gates) in enumerate(zip(diagonal.a_hh, seen, strict=True))
        if c is not None
    ]
    by_part = [
        [(p, c.unbind(0)) for p, row in enumerate(diagonal.state) if (c := row[q]) is not None]
        for q in range(len(delta))
    ]
    for k in reversed(range(len(flat))):
        back = [
            torch.add(own[k], add, out=part[k])
            for (part, own), add in zip(rows, carry, strict=True)
        ]
        if weight_hr is not None:
            back[0] = back[0] @ weight_hr
        if within is not None:
            # Nested derivatives: the last part also acts through h of the same step.
            back[-1] = torch.addcmul(back[-1], within[k], back[0])
        if not by_gate:
            flat[k].zero_()
        for place, (p, coefficient, gates) in enumerate(by_gate):
            # Nested: each gate belongs to one part, so there is nothing to add up.
            if place == 0 or within is not None:
                torch.mul(coefficient[k], back[p].unsqueeze(-2), out=gates[k])
            else:
                gates[k].addcmul_(coefficient[k], back[p].unsqueeze(-2))
        carried = [_sum_of([(c[k], back[p]) for p, c in terms]) for terms in by_part]
        through_h = carried[0]
        carried[0] = (
            flat[k] @ weight_hh if through_h is None else through_h.addmm_(flat[k], weight_hh)
        )
        carry = tuple(map(_or_zeros, carried, carry))
        if lengths is not None:
            # Steps past the end of a sequence send nothing back; `where` also drops a NaN there.
            alive = (lengths > start + k).to(delta[0].device)[:, None]
            carry = tuple(torch.where(alive, part, torch.zeros_like(part)) for part in carry)
    return carry


def _or_zeros(value: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if value is None else value


def _sum_of(terms: list[tuple[Tensor, Tensor]]) -> Tensor | None:
    """Σ coefficient * cotangent in a new tensor; None if there are no terms."""
    if not terms:
        return None
    total = torch.mul(*terms[0])
    for coefficient, cotangent in terms[1:]:
        total.addcmul_(coefficient, cotangent)
    return total


CHUNK_BYTES = 4 * 2**20
"""Diagonal derivatives are computed for as many steps at once as fit into this many bytes, to stay in the CPU cache."""

GRAPH_BYTES = 64 * 2**20
"""Memory limit of the pre-activations that autograd differentiates in one graph, in bytes."""


class ForwardGap:
    """Accumulates |recomputed − recorded|² over adjacent steps; padded steps are left out."""

    def __init__(self, run: LayerRun, wide: bool = False) -> None:
        """wide: accumulate squares in double precision."""
        self._run, self._wide = run, wide or run.dtype.itemsize <= 2
        self._keep = None if run.lengths is None else run.mask()[..., None]
        self._off = torch.zeros((), dtype=torch.float64, device=run.device)

    def add(self, out: State, start: int, stop: int) -> None:
        """Add steps start..stop-1 from the output of a cell's `pointwise` (h before its projection)."""
        weight_hr = self._run.weights.get("weight_hr")
        h = out[0] if weight_hr is None else linear(out[0], weight_hr)
        self.add_states((h, *out[1:]), start, stop)

    def add_states(self, states: State, start: int, stop: int) -> None:
        """Add steps start..stop-1 from whole states."""
        for value, recorded in zip(states, self._run.states, strict=True):
            self._off += self._square(value - recorded[start:stop], start, stop)

    def _square(self, values: Tensor, start: int, stop: int) -> Tensor:
        if self._keep is not None:
            values = torch.where(self._keep[start:stop], values, torch.zeros_like(values))
        flat = values.flatten().double() if self._wide else values.flatten()
        return (flat @ flat).double()

    def relative(self) -> float | None:
        """|recomputed − recorded| / |recorded| over all added steps; None if their squares overflow."""
        size = sum(self._square(part, 0, self._run.T) for part in self._run.states)
        off, size = float(self._off) ** 0.5, float(size) ** 0.5
        if not off + size < float("inf"):
            return float("nan") if self._wide else None
        return 0.0 if off == 0.0 else off / size if size > 0.0 else float("inf")


@dataclass(frozen=True, repr=False)
class Adjoints:
    """Adjoints of one layer run, in its processing order; zeros past a sequence's length."""

    run: LayerRun
    parts: State
    """δ_t, one tensor (T, B, S_p) a state part."""
    a_ih: Tensor | None
    """∂L/∂a_ih (T, B, gates*H); None for a cell without pre-activations."""
    a_hh: Tensor | None
    """∂L/∂a_hh (T, B, blocks*H). The n block of a GRU contains the factor r_t; for other cells it is the same
    tensor as `a_ih`."""
    initial: State
    """∂L/∂s_0, one tensor (B, S_p) a part."""
    projected: Tensor | None = None
    """h before its projection W_hr, (T, B, H); None without a projection."""
    forward_error: float | None = None
    """Relative error of the states recomputed by the scan against the recorded ones; None: not computed."""

    def __repr__(self) -> str:
        run = self.run
        return f"Adjoints(of {run.name}, T={run.T}, B={run.B}, {named_sizes(run)})"

    @property
    def state(self) -> Tensor:
        """δ_t of the whole state, (T, B, S)."""
        return torch.cat(self.parts, -1)

    @torch.inference_mode(False)
    @torch.no_grad()
    def inputs(self) -> Tensor:
        """∂L/∂x_t, (T, B, I)."""
        if self.a_ih is not None:
            return self.a_ih @ self.run.weights["weight_ih"]
        return _input_gradient_by_autograd(self.run, self.parts)


@torch.inference_mode(False)
@torch.no_grad()
def adjoints(run: LayerRun) -> Adjoints:
    """The adjoints of one layer run, δ_t = e_t + J_{t+1}^T δ_{t+1}.

    Elementwise cells take a scan over diagonal derivatives, all others a VJP per step. So do elementwise cells where
    something is not finite: a diagonal times NaN is NaN even where autograd gives zero (a relu at rest).

    Args:
        run: A layer run.

    Returns:
        δ_t of every part of the state, and the gradients by the pre-activations and by the initial state.

    Raises:
        BadArgument: Shapes or precisions of the run's tensors do not fit together.

    Example:
        >>> rnndiag.adjoints(layer_run).state.shape
        torch.Size([12, 4, 10])
    """
    _require_shapes(run)
    if run.cell.is_elementwise(run.weights):
        found = _scan_diagonals(run)
        if all(_is_finite(part) for part in (*found.parts, *found.initial)):
            return found
    return _scan_by_autograd(run)


@torch.inference_mode(False)
@torch.no_grad()
def state_adjoints(run: LayerRun, diagonal: Coefficients | None = None) -> State:
    """δ_t alone, parts (T, B, S_p); `diagonal`: the derivatives of all steps, if computed already."""
    if diagonal is None:
        return adjoints(run).parts
    _require_shapes(run)
    delta = empty_parts((run.T, run.B), run.sizes, run.dtype, run.device)
    a_hh = _empty(run, len(run.cell.blocks), run.cell.units(run.weights))
    carry: State = tuple(run.direct[0].new_zeros(run.B, size) for size in run.sizes)
    carry = scan_stretch(run, diagonal, _masked_direct(run), delta, a_hh, carry, 0)
    finite = all(_is_finite(part) for part in (*delta, *carry))
    return delta if finite else _scan_by_autograd(run).parts


def _is_finite(values: Tensor) -> bool:
    """Whether all values are finite. A finite sum has finite terms, so mostly one pass is enough."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def _require_shapes(run: LayerRun) -> None:
    """Raise if shapes or precisions differ: such tensors would be broadcast or rounded silently."""
    states = [tuple(part.shape) for part in run.states]
    expected = {
        "direct": states,
        "initial": [(run.B, size) for size in run.sizes],
        "inputs": [(run.T, run.B)],
    }
    given = {
        "direct": [tuple(part.shape) for part in run.direct],
        "initial": [tuple(part.shape) for part in run.initial],
        "inputs": [tuple(run.inputs.shape[:2])],
    }
    for name, shapes in expected.items():
        if given[name] != shapes:
            raise BadArgument(
                f"{name} of {run.name} has shapes {given[name]} beside states {states}.",
                f"Give {shapes}: time, batch, units, one tensor for each of {run.cell.parts}.",
            )
    for part, e in zip(run.states, run.direct, strict=True):
        if e.dtype != part.dtype:
            raise BadArgument(
                f"direct of {run.name} is {e.dtype} beside states of {part.dtype}.",
                "Give both in one precision; `LayerRun.to(dtype)` converts a whole run.",
            )


def _masked_direct(run: LayerRun) -> State:
    if run.lengths is None:
        return run.direct
    keep = run.mask()[..., None]
    return tuple(torch.where(keep, part, torch.zeros_like(part)) for part in run.direct)


def _steps_at_once(run: LayerRun) -> int:
    units = run.cell.units(run.weights)
    rows = len(run.cell.parts) * (len(run.cell.gates) + len(run.cell.blocks) + 2)
    return max(1, CHUNK_BYTES // max(1, rows * run.B * units * run.states[0].element_size()))


def _scan_diagonals(run: LayerRun) -> Adjoints:
    direct = _masked_direct(run)
    units = run.cell.units(run.weights)
    delta = empty_parts((run.T, run.B), run.sizes, run.dtype, run.device)
    a_hh = _empty(run, len(run.cell.blocks), units)
    a_ih = a_hh if run.cell.additive else _empty(run, len(run.cell.gates), units)
    has_projection = "weight_hr" in run.weights
    projected = _empty(run, units) if has_projection else None
    carry: State = tuple(direct[0].new_zeros(run.B, size) for size in run.sizes)
    size, gap = _steps_at_once(run), ForwardGap(run)
    for start in reversed(range(0, run.T, size)):
        stop = min(start + size, run.T)
        diagonal = coefficients(run, start, stop, nested=True)
        if projected is not None:
            projected[start:stop] = diagonal.projected
        gap.add((diagonal.projected, *diagonal.others), start, stop)
        carry = scan_stretch(run, diagonal, direct, delta, a_hh, carry, start)
        if not run.cell.additive:
            back = project_back(run, tuple(part[start:stop] for part in delta))
            terms = [(c, p.unsqueeze(-2)) for c, p in zip(diagonal.a_ih, back, strict=True)]
            value = weighted(terms)
            a_ih[start:stop] = 0.0 if value is None else value
    flat = a_hh.flatten(-2)
    flat_ih = flat if run.cell.additive else a_ih.flatten(-2)
    return Adjoints(run, delta, flat_ih, flat, carry, projected, gap.relative())


def _empty(run: LayerRun, *shape: int) -> Tensor:
    return empty((run.T, run.B, *shape), run.dtype, run.device)


def _scan_by_autograd(run: LayerRun) -> Adjoints:
    """Adjoints of any cell: one small autograd graph per step, from the last step to the first."""
    cell, weights = run.cell, run.weights
    direct, previous = _masked_direct(run), run.previous()
    alive = None if run.lengths is None else run.mask()[..., None]
    delta = tuple(torch.empty_like(part) for part in direct)
    carry: State = tuple(torch.zeros_like(part[0]) for part in direct)
    for t in reversed(range(run.T)):
        for p, part in enumerate(delta):
            torch.add(direct[p][t], carry[p], out=part[t])
        carry = _pull(run, t, tuple(part[t] for part in previous), tuple(part[t] for part in delta))
        if alive is not None:
            carry = tuple(torch.where(alive[t], part, torch.zeros_like(part)) for part in carry)
    if cell.pointwise is None:
        return Adjoints(run, delta, None, None, carry)
    a_ih, a_hh, projected = _preactivation_adjoints(run, previous, delta)
    return Adjoints(run, delta, a_ih, a_hh, carry, projected if "weight_hr" in weights else None)


def _pull(run: LayerRun, t: int, before: State, cotangent: State) -> State:
    with torch.enable_grad():
        leaves = tuple(part.detach().requires_grad_() for part in before)
        out = step(run.cell, run.weights, run.inputs[t].detach(), leaves)
        return pulled_back(out, cotangent, leaves)


def _preactivation_adjoints(
    run: LayerRun, previous: State, delta: State
) -> tuple[Tensor, Tensor, Tensor]:
    """∂L/∂a_ih, ∂L/∂a_hh and h before its projection, by VJPs with many steps on the batch axis."""
    row = len(run.cell.gates) * run.B * run.cell.units(run.weights) * delta[0].element_size()
    size = max(1, GRAPH_BYTES // max(1, row))
    stretches = [slice(start, start + size) for start in range(0, run.T, size)]
    found = [_preactivation_stretch(run, rows, previous, delta) for rows in stretches]
    by_ih, by_hh, projected = zip(*found, strict=True)
    a_ih = torch.cat(by_ih)
    return a_ih, a_ih if run.cell.additive else torch.cat(by_hh), torch.cat(projected)


def _preactivation_stretch(
    run: LayerRun, rows: slice, previous: State, delta: State
) -> tuple[Tensor, Tensor, Tensor]:
    cell = run.cell
    assert cell.pointwise is not None
    before = tuple(part[rows].detach() for part in previous)
    with torch.no_grad():
        a_ih, a_hh = preactivations(cell, run.weights, run.inputs[rows], before[0])
    back = project_back(run, tuple(part[rows] for part in delta))
    with torch.enable_grad():
        a_ih = a_ih.detach().requires_grad_()
        a_hh = a_hh.detach().requires_grad_(not cell.additive)
        out = cell.pointwise(a_ih, a_hh, before, **cell.extra_weights(run.weights))
        leaves = (a_ih,) if cell.additive else (a_ih, a_hh)
        grads = pulled_back(out, back, leaves)
    return grads[0], grads[-1], out[0].detach()


def _input_gradient_by_autograd(run: LayerRun, delta: State) -> Tensor:
    if not run.inputs.is_floating_point():
        raise BadArgument(
            f"The inputs of {run.name} are {run.inputs.dtype}, which have no gradient.",
            "Ask for the contributions to the weights that take them, such as an embedding's.",
        )
    with torch.enable_grad():
        inputs = run.inputs.detach().requires_grad_()
        out = flat_step(run.cell, run.weights, inputs, tuple(p.detach() for p in run.previous()))
        (grad,) = pulled_back(out, delta, (inputs,))
    return grad
