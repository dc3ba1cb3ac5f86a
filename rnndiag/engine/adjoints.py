"""Adjoints of every state and pre-activation: δ_t = e_t + J_{t+1}^T δ_{t+1}, by a teacher-forced backward scan.

All gates of all steps are computed from the recorded states in one matrix product; only the backward recursion goes
step by step. The network is never run again, so the scan cannot leave the recorded trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.cpu_buffers import empty, empty_parts
from rnndiag.engine.forward_error import ForwardGap
from rnndiag.engine.layer_run import LayerRun, named_sizes
from rnndiag.engine.scan_stretch import scan_stretch
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

CHUNK_BYTES = 4 * 2**20
"""Diagonal derivatives of at most this many bytes are held at once, a stretch of steps: they stay in the cache."""

GRAPH_BYTES = 64 * 2**20
"""Pre-activations of at most this many bytes are differentiated at once where autograd does it."""


@dataclass(frozen=True, repr=False)
class Adjoints:
    """Adjoints of one layer run, in its processing order; zeros past a sequence's length."""

    run: LayerRun
    parts: State
    """δ_t, one tensor (T, B, S_p) a state part."""
    a_ih: Tensor | None
    """∂L/∂a_ih (T, B, gates*H); None for a cell without pre-activations."""
    a_hh: Tensor | None
    """∂L/∂a_hh (T, B, blocks*H). For a GRU's n block it carries r_t, so it differs from `a_ih`; else one tensor."""
    initial: State
    """∂L/∂s_0, one tensor (B, S_p) a part."""
    projected: Tensor | None = None
    """h before its projection W_hr, (T, B, H), where there is one."""
    forward_error: float | None = None
    """Relative error of the states recomputed on the way against the recorded ones; None: not told on the way."""

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
    """The adjoints of one layer run. Elementwise cells take a scan over diagonals, all others autograd step by step.

    So do elementwise cells where something is not finite: a diagonal times NaN is NaN even where autograd's rule says
    zero (a relu at rest, a gate that the part does not reach), and the map of units is to be autograd's.
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
    """δ_t alone, (T, B, S_p) a part; `diagonal`: the derivatives of all steps, where they are known already."""
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
    """One pass in most cases: a finite sum has finite terms, and only another sum needs a look at each."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def _require_shapes(run: LayerRun) -> None:
    """A tensor of another shape would be broadcast or rounded, and the numbers wrong without a word."""
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
    """Any cell: states cut at each step, one small graph a step, walked from the end."""
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
    """∂L/∂a_ih, ∂L/∂a_hh and h before its projection: a VJP with a stretch of steps on the batch axis."""
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
