"""Jacobians J_t = ds_t/ds_{t-1} of a recorded run: applied to tangent vectors, or written out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnndiag.engine.cells import State
from rnndiag.engine.cpu_buffers import empty
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.transition import Coefficients, coefficients, flat_step
from rnndiag.errors import BadArgument, NotExact

Row = tuple[Tensor | None, Sequence[Tensor | None]]
"""The derivatives of one state part by the pre-activations, and by each part of the state before."""

STRETCH_BYTES = 64 * 2**20
"""Most bytes of derivatives that are held at once, approximately."""

MOST_STEPS = 4096
"""Most steps in a stretch: each step needs Python objects of a few hundred bytes, however small the net."""


def stretch(run: LayerRun, start: int, stop: int) -> LayerRun:
    """Steps start..stop-1 of a run as a run of their own; its s_0 is the state before step `start`."""
    first = run.initial if start == 0 else tuple(part[start - 1] for part in run.states)
    return replace(
        run,
        inputs=run.inputs[start:stop],
        states=tuple(part[start:stop] for part in run.states),
        initial=first,
        direct=tuple(part[start:stop] for part in run.direct),
        lengths=None if run.lengths is None else (run.lengths - start).clamp(0, stop - start),
        gradients={},
        input_gradient=None,
        initial_gradient=None,
        gates=None,
    )


@dataclass(frozen=True)
class Tangents:
    """The Jacobians of a stretch of steps, ready to be applied: diagonals for elementwise cells, else written out."""

    run: LayerRun
    diagonal: Coefficients | None
    written: Tensor | None

    def push(self, t: int | Tensor, vectors: Tensor) -> Tensor:
        """J_t v for tangent vectors in rows: (B, k, S) for one step t, (A, B, k, S) for steps t (A,)."""
        if self.diagonal is None:
            assert self.written is not None
            return vectors @ self.written[t].mT
        weights, blocks = self.run.weights, len(self.run.cell.blocks)
        parts = self.run.split(vectors) if len(self.run.states) > 1 else (vectors,)
        through_h = linear(parts[0], weights["weight_hh"])
        if blocks > 1:
            through_h = through_h.unflatten(-1, (blocks, -1))
        rows = self._by_step[t] if isinstance(t, int) else self._rows(t)
        out = []
        for (by_gate, by_part), part in zip(rows, parts, strict=True):
            total: Tensor | None = None
            if by_gate is not None:
                total = by_gate * through_h if blocks == 1 else (by_gate * through_h).sum(-2)
            for coefficient, before in zip(by_part, parts, strict=True):
                if coefficient is None:
                    continue
                total = (
                    coefficient * before if total is None else total.addcmul_(coefficient, before)
                )
            out.append(torch.zeros_like(part) if total is None else total)
        if "weight_hr" in weights:
            out[0] = linear(out[0], weights["weight_hr"])
        return out[0] if len(out) == 1 else torch.cat(out, -1)

    def _rows(self, t: Tensor | slice) -> list[Row]:
        """The diagonals at steps t with an axis for the tangent vectors: by gate (A, B, 1, blocks, H) or, of a single
        block, (A, B, 1, H), and by state part (A, B, 1, H); None where zero."""
        assert self.diagonal is not None
        single = len(self.run.cell.blocks) == 1

        def by_gate(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[t] if single else value[t].unsqueeze(-3)

        return [
            (by_gate(gate), [None if c is None else c[t].unsqueeze(-2) for c in parts])
            for gate, parts in zip(self.diagonal.a_hh, self.diagonal.state, strict=True)
        ]

    @cached_property
    def _by_step(self) -> list[list[Row]]:
        """`_rows` of every single step: views made at once, because a step of a small net costs less than they do."""
        steps = self.run.T

        def unbound(value: Tensor | None) -> Sequence[Tensor | None]:
            return [None] * steps if value is None else value.unbind(0)

        columns = [
            list(zip(unbound(gate), zip(*map(unbound, parts), strict=True), strict=True))
            for gate, parts in self._rows(slice(None))
        ]
        return [list(rows) for rows in zip(*columns, strict=True)]

    def rank(self) -> Tensor:
        """(T, B): number of rows of J_t that are not exactly zero, an upper bound of its rank. A relu unit at rest
        is zero."""
        if self.diagonal is None:
            assert self.written is not None
            return self.written.ne(0).any(-1).sum(-1)
        count = torch.zeros(self.run.inputs.shape[:2], dtype=torch.long, device=self.run.device)
        for p, (by_gate, by_part) in enumerate(
            zip(self.diagonal.a_hh, self.diagonal.state, strict=True)
        ):
            values = [c.ne(0) for c in by_part if c is not None]
            if by_gate is not None:
                values.append(by_gate.ne(0).any(-2))
            alive = torch.stack(values).any(0).sum(-1) if values else torch.zeros_like(count)
            count += alive.clamp(max=self.run.sizes[p])
        return count


def tangents(run: LayerRun, start: int, stop: int, dtype: torch.dtype) -> Tangents:
    """The one-step Jacobians of steps start..stop-1, ready to be multiplied, in the given precision."""
    part = stretch(run, start, stop).to(dtype=dtype)
    if part.cell.is_elementwise(part.weights):
        return Tangents(part, coefficients(part), None)
    return Tangents(part, None, jacobians(part))


def steps_at_once(run: LayerRun, dtype: torch.dtype) -> int:
    """Number of steps of tangents that fit in STRETCH_BYTES."""
    if run.cell.is_elementwise(run.weights):
        rows = len(run.cell.gates) + len(run.cell.blocks) + 2
        numbers = 2 * len(run.cell.parts) * rows * run.cell.units(run.weights)
    else:
        numbers = run.S * run.S
    return max(1, STRETCH_BYTES // max(1, numbers * run.B * dtype.itemsize))


def stretches(run: LayerRun, dtype: torch.dtype) -> Iterator[tuple[int, Tangents]]:
    """The whole run in stretches of bounded memory: (first step, its tangents)."""
    size = min(MOST_STEPS, steps_at_once(run, dtype))
    for start in range(0, run.T, size):
        yield start, tangents(run, start, min(start + size, run.T), dtype)


CHUNK_BYTES = 64 * 2**20
"""Approximate memory limit beside the result, in bytes: some steps at a time."""


@torch.no_grad()
def jacobians(run: LayerRun, times: Sequence[int] | Tensor | None = None) -> Tensor:
    """J_t = ds_t/ds_{t-1} written out, in the precision and on the device of the run.

    Work is blocks * H * R numbers a step for elementwise cells, S VJPs a step for others.

    Args:
        run: A layer run.
        times: Steps, 0 .. T-1. Default: all.

    Returns:
        (T', B, S, S): row = unit of s_t, column = unit of s_{t-1}, the parts of the state side by side. Zeros past a
        sequence's length.

    Raises:
        BadArgument: A step is not one of the run's.

    Example:
        >>> rnndiag.jacobians(layer_run, times=[3, 4]).shape
        torch.Size([2, 4, 10, 10])
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
    """Indices of the requested steps (T',), all if None; raises for steps outside of the run."""
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
    """Number of steps whose coefficients (elementwise cells) or graph (others) fit into CHUNK_BYTES."""
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


def require_finite(run: LayerRun) -> None:
    """Raise if a state or a weight of the run is not finite."""
    alive = run.mask().unsqueeze(-1)
    for name, part in zip(run.cell.parts, run.states, strict=True):
        broken = (~part.isfinite() & alive).any(-1).any(-1).nonzero()
        if len(broken):
            raise NotExact(
                f"The state {name} of {run.name} is not finite from step {int(broken[0])} on, "
                "so its Jacobians have no spectrum.",
                "Look at what overflowed before that step: the learning rate, or a loss that diverged.",
            )
    fixed = {
        **run.weights,
        **{f"initial {n}": s for n, s in zip(run.cell.parts, run.initial, strict=True)},
    }
    for name, value in fixed.items():
        if not bool(torch.isfinite(value).all()):
            raise NotExact(
                f"{name} of {run.name} holds numbers that are not finite.",
                "Its Jacobians have no spectrum: go back to a checkpoint before it diverged.",
            )
