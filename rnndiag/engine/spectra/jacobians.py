"""J_t = ds_t/ds_{t-1} of the whole state, written out: closed form for elementwise cells, one VJP a state unit else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.cpu_buffers import empty
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.transition import coefficients, flat_step
from rnndiag.errors import BadArgument

CHUNK_BYTES = 64 * 2**20
"""What is held beside the result while it is made: at most about this many bytes, a stretch of steps at a time."""


@torch.no_grad()
def jacobians(run: LayerRun, times: Sequence[int] | Tensor | None = None) -> Tensor:
    """J_t of every step, (T, B, S, S): row = unit of s_t, column = unit of s_{t-1}, parts of the state side by side.

    `times` picks steps (0..T-1). Zeros past a sequence's length. In the precision and on the device of the run.
    Cost: T*B*S*S numbers are returned; work is blocks*H*R numbers a step for elementwise cells, S VJPs a step else.
    """
    mask = None if run.lengths is None else run.mask()
    before = () if _recorded(run) else run.previous()
    if times is not None:
        index = step_index(run, times)
        mask = None if mask is None else mask[index]
        before, states = (tuple(part[index] for part in s) for s in (before, run.states))
        run = replace(run, inputs=run.inputs[index], states=states, lengths=None, gates=None)
    out = empty((run.T, run.B, run.S, run.S), run.dtype, run.device)
    fill = _by_recorded_state if _recorded(run) else _closed_form if _closed(run) else _by_vjp
    size = _steps_at_once(run)
    for start in range(0, run.T, size):
        fill(run, before, slice(start, start + size), out[start : start + size])
    if mask is not None:
        out.masked_fill_(~mask[..., None, None], 0.0)
    return out


def _closed(run: LayerRun) -> bool:
    return run.cell.is_elementwise(run.weights)


def _recorded(run: LayerRun) -> bool:
    """Whether φ' of h = φ(a) is read off the recorded h_t. Not in float64: it is what shorter recordings are turned
    into to compute with more digits, and near ±1 the recorded h_t has too few of them for 1 - h²."""
    known = run.cell.derivative is not None and "weight_hr" not in run.weights
    return known and _closed(run) and run.dtype != torch.float64


def step_index(run: LayerRun, times: Sequence[int] | Tensor | None) -> Tensor:
    """The steps asked for (T',), all where None; refused where the run has not got them."""
    if times is None:
        return torch.arange(run.T, device=run.device)
    index = torch.as_tensor(times, device=run.device)
    whole = index.dtype != torch.bool and not index.is_floating_point()
    index = index.long()
    if (
        not (whole or len(times) == 0)
        or index.dim() != 1
        or bool(((index < 0) | (index >= run.T)).any())
    ):
        raise BadArgument(
            f"The steps {index.tolist()} are not all steps of a run of {run.T}.",
            f"Give a list of steps from 0 to {run.T - 1}.",
        )
    return index


def _steps_at_once(run: LayerRun) -> int:
    """Steps whose coefficients (elementwise cells) or graph (others) stay within CHUNK_BYTES."""
    if run.cell.pointwise is None:
        numbers = 16 * run.S
    else:
        rows = len(run.cell.gates) + len(run.cell.blocks) + 2
        numbers = 2 * len(run.cell.parts) * rows * run.cell.units(run.weights)
    return max(1, CHUNK_BYTES // max(1, numbers * run.B * run.states[0].element_size()))


def _by_recorded_state(run: LayerRun, before: State, part: slice, out: Tensor) -> None:
    """diag(φ'(h_t)) W_hh."""
    assert run.cell.derivative is not None
    slope = run.cell.derivative(run.states[0][part])
    torch.mul(slope.unsqueeze(-1), run.weights["weight_hh"], out=out)


def _closed_form(run: LayerRun, before: State, part: slice, out: Tensor) -> None:
    """Σ over blocks of diag(derivative by the pre-activation) W_block, and the diagonals by the carried parts."""
    diagonal = coefficients(run, part.start, part.stop, before)
    weights = run.weights
    blocks = weights["weight_hh"].unflatten(0, (len(run.cell.blocks), -1))
    projection = weights.get("weight_hr")
    rows = out.split(run.sizes, -2)
    for p, (by_gate, by_part) in enumerate(zip(diagonal.a_hh, diagonal.state, strict=True)):
        target = rows[p]
        if p == 0 and projection is not None:
            target = out.new_empty(*out.shape[:2], projection.shape[1], run.S)
        columns = target.split(run.sizes, -1)
        _through_pre_activations(by_gate, blocks, columns[0])
        for q, coefficient in enumerate(by_part):
            if q > 0:
                columns[q].zero_()
            if coefficient is not None:
                columns[q].diagonal(dim1=-2, dim2=-1).add_(coefficient)
        if p == 0 and projection is not None:
            rows[p].copy_(projection @ target)


def _through_pre_activations(by_gate: Tensor | None, blocks: Tensor, target: Tensor) -> None:
    if by_gate is None:
        target.zero_()
        return
    gates = by_gate.unsqueeze(-1).unbind(2)
    torch.mul(gates[0], blocks[0], out=target)
    for derivative, block in zip(gates[1:], blocks[1:], strict=True):
        target.addcmul_(derivative, block)


def _by_vjp(run: LayerRun, before: State, part: slice, out: Tensor) -> None:
    """Any cell: one graph with time on the batch axis, and one VJP for each unit of the state."""
    with torch.enable_grad():
        leaves = tuple(p[part].detach().requires_grad_() for p in before)
        after = flat_step(run.cell, run.weights, run.inputs[part].detach(), leaves)
    out.zero_()
    rows = out.split(run.sizes, -2)
    for value, target in zip(after, rows, strict=True):
        if not value.requires_grad:
            continue
        for unit in range(value.shape[-1]):
            cotangent = torch.zeros_like(value)
            cotangent[..., unit] = 1.0
            grads = torch.autograd.grad(
                value,
                leaves,
                cotangent,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            target[..., unit, :] = torch.cat(grads, -1)
