"""J_t applied to tangent vectors, for a stretch of steps: what products and Lyapunov spectra are built on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.spectra.jacobians import jacobians
from rnndiag.engine.transition import Coefficients, coefficients

Row = tuple[Tensor | None, Sequence[Tensor | None]]
"""The derivatives of one state part: by the pre-activations, and by each part of the state before."""

STRETCH_BYTES = 64 * 2**20
"""Derivatives of at most about this many bytes are held at once."""

MOST_STEPS = 4096
"""Of a stretch: its steps one by one are objects of Python, a few hundred bytes each, however small the net."""


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
        """(T, B): rows of J_t that are not exactly zero, a bound of its rank. A relu unit at rest is a zero row."""
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
    """The tangents of steps start..stop-1 in the given precision."""
    part = stretch(run, start, stop).to(dtype=dtype)
    if part.cell.is_elementwise(part.weights):
        return Tangents(part, coefficients(part), None)
    return Tangents(part, None, jacobians(part))


def steps_at_once(run: LayerRun, dtype: torch.dtype) -> int:
    """How many steps of tangents fit in STRETCH_BYTES."""
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
