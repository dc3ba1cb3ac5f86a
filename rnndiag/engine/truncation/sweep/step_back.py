"""One step back: J_t^T a for cotangents a of a chain's state at step t, and the factors of the parameter gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnndiag.engine.cells import State
from rnndiag.engine.cpu_buffers import Scratch, empty
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.transition import (
    Coefficients,
    flat_step,
    preactivations,
    project_back,
    pulled_back,
)
from rnndiag.engine.truncation.chains.chain import Chain, ChainLink
from rnndiag.engine.truncation.sweep.row_steps import Where, count, piece, take

PIECE_BYTES = 64 * 2**20
"""If diagonal derivatives are too large to be kept, they are computed for pieces of rows of at most this many bytes."""
CACHED_ROWS = 1024
"""On a CPU, rows per thread (times sequences) to process at a time, so that the gates' cotangents stay in the cache."""


@dataclass(frozen=True)
class StepBack:
    """The result of one step back for one layer, for cotangents of rows (K, N)."""

    link: ChainLink
    where: Where
    """The time steps that the rows are at."""
    cotangent: State
    """Cotangent of the layer's own state, including the part from layers above at the same step, (K, N, S_p)."""
    a_ih: Tensor | None = None
    """Cotangents of the input pre-activations, (K, N, gates * H)."""
    a_hh: Tensor | None = None
    """Cotangents of the recurrent pre-activations."""
    projected: Tensor | None = None
    """Cotangent of h before its projection, (K, N, H)."""


def step_back(
    chain: Chain,
    where: Where,
    cotangent: State,
    *,
    gradients: bool = True,
    carry: bool = True,
    scratch: Scratch | None = None,
) -> tuple[tuple[StepBack, ...], State]:
    """Move cotangents of a chain's state one step back.

    Args:
        chain: The chain, prepared.
        where: The steps t that the rows are at.
        cotangent: a, (K, N, S_p) a part of the state.
        gradients: Whether the results hold what the parameters' gradients need.
        carry: Whether J^T a is computed.
        scratch: Buffers to reuse; the results of the last call but one are overwritten.

    Returns:
        The `StepBack` of every layer, lowest first, and J^T a, empty without `carry`.
    """
    results: list[StepBack] = []
    before: list[State] = []
    if scratch is not None:
        scratch.turn ^= 1
    rest, from_above = list(cotangent), None
    for number, link in reversed(list(enumerate(chain.links))):
        parts = len(link.direct)
        own = tuple(rest[len(rest) - parts :])
        rest = rest[: len(rest) - parts]
        if from_above is not None:
            own = (own[0] + from_above, *own[1:])
        buffers = _Buffers(scratch, number)
        through = _through_elementwise if link.elementwise else _through_autograd
        found, back, down = through(link, where, own, gradients, number > 0, carry, buffers)
        if down is not None and link.gain is not None:
            down = down * take(link.gain, where)
        from_above = down
        results.append(found)
        before.append(back)
    return tuple(reversed(results)), tuple(part for back in reversed(before) for part in back)


@dataclass(frozen=True)
class _Buffers:
    """Buffers of one layer, reused between calls if there is a scratch."""

    scratch: Scratch | None
    number: int

    def get(self, name: str, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        if self.scratch is None:
            return empty(shape, like.dtype, like.device)
        return self.scratch.buffer((self.number, name), like, tuple(shape))

    def get_in_turn(self, name: str, like: Tensor) -> Tensor:
        """One of two alternating buffers, so that a result does not overwrite the argument that it is computed from."""
        turn = 0 if self.scratch is None else self.scratch.turn
        return self.get(f"{name} {turn}", like, like.shape)


_LayerResult = tuple[StepBack, State, Tensor | None]
"""The factors, J^T a of the layer's own state, and the cotangent of its inputs (None for the lowest layer)."""


def _through_elementwise(
    link: ChainLink,
    where: Where,
    own: State,
    gradients: bool,
    has_below: bool,
    carry: bool,
    buffers: _Buffers,
) -> _LayerResult:
    """Step back through a layer with diagonal derivatives, in pieces of rows if that saves memory or uses the cache
    better."""
    run, rows = link.run, own[0].shape[0]
    needs_gates = gradients or has_below
    size = _piece_size(link, where, own[0], needs_gates)
    carried: State = ()
    if carry:
        carried = tuple(buffers.get_in_turn(f"carried {q}", part) for q, part in enumerate(own))
    whole, pieces = link.at(where) if size >= rows else None, []
    for start in range(0, rows, size):
        part = slice(start, start + size)
        diagonal = link.at(piece(where, start, start + size)) if whole is None else whole
        back = _within(diagonal, project_back(run, tuple(p[part] for p in own)), buffers)
        # Results that are joined later must not be in a buffer that the next piece overwrites.
        out = buffers if size >= rows or not needs_gates else _Buffers(None, 0)
        a_hh = _gates(diagonal, diagonal.a_hh, back, out, "a_hh")
        if carry:
            _carry(run, diagonal, back, a_hh, tuple(p[part] for p in carried))
        if needs_gates:
            a_ih = a_hh
            if not run.cell.additive:
                a_ih = _gates(diagonal, diagonal.a_ih, back, out, "a_ih")
            pieces.append((a_ih, a_hh, diagonal.projected))
    if not needs_gates:
        return StepBack(link, where, own), carried, None
    a_ih, a_hh, projected = (
        parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*pieces, strict=True)
    )
    down = a_ih @ run.weights["weight_ih"] if has_below else None
    found = StepBack(link, where, own, a_ih, a_hh, projected)
    return found, carried, down


def _piece_size(link: ChainLink, where: Where, own: Tensor, needs_gates: bool) -> int:
    """Number of rows to process at a time."""
    rows, width = own.shape[0], own.shape[1]
    if count(where) != rows:  # many draws of one step: the derivatives are broadcast
        return rows
    if link.diagonal is None:
        run = link.run
        parts = len(run.cell.parts)
        numbers = parts * (len(run.cell.blocks) + len(run.cell.gates) + parts)
        row_bytes = width * run.cell.units(run.weights) * numbers * own.element_size()
        return max(1, PIECE_BYTES // max(1, row_bytes))
    if needs_gates or own.device.type != "cpu":
        return max(1, rows)
    return max(1, CACHED_ROWS * torch.get_num_threads() // max(1, width))


def _carry(run: LayerRun, diagonal: Coefficients, back: State, a_hh: Tensor, out: State) -> None:
    """out = J^T a: through the pre-activations, and through carried parts of the state."""
    flat, weight_hh = a_hh.flatten(0, -2), run.weights["weight_hh"]
    for q, value in enumerate(out):
        terms = [(row[q], part) for row, part in zip(diagonal.state, back, strict=True)]
        is_empty = not _weighted_sum(value, terms)
        if q == 0:
            value.view(-1, value.shape[-1]).addmm_(flat, weight_hh, beta=0 if is_empty else 1)
        elif is_empty:
            value.zero_()


def _within(diagonal: Coefficients, back: State, buffers: _Buffers) -> State:
    """Add the gradient that the last part gets through h of the same step, if the derivatives are nested."""
    if diagonal.within is None:
        return back
    last = back[-1]
    total = buffers.get("within", last, last.shape)
    return (*back[:-1], torch.addcmul(last, diagonal.within, back[0], out=total))


def _gates(
    diagonal: Coefficients,
    rows: tuple[Tensor | None, ...],
    back: State,
    buffers: _Buffers,
    name: str,
) -> Tensor:
    """Cotangents of the pre-activations, (K, N, gates * H): Σ over parts of derivative times cotangent."""
    like = next(c for c in rows if c is not None)
    gates = like.shape[-2]
    if diagonal.gates is not None:
        gates = max(of_part.stop for of_part in diagonal.gates)
    total = buffers.get(name, like, (*back[0].shape[:-1], gates, like.shape[-1]))
    if diagonal.gates is not None:
        for c, part, of_part in zip(rows, back, diagonal.gates, strict=True):
            assert c is not None
            torch.mul(c, part.unsqueeze(-2), out=total[..., of_part, :])
    else:
        _weighted_sum(total, [(c, p.unsqueeze(-2)) for c, p in zip(rows, back, strict=True)])
    return total.flatten(-2)


def _weighted_sum(out: Tensor, terms: list[tuple[Tensor | None, Tensor]]) -> bool:
    """out = Σ coefficient * cotangent over terms with a coefficient; False if there are none."""
    known = [(c, part) for c, part in terms if c is not None]
    for number, (c, part) in enumerate(known):
        if number == 0:
            torch.mul(c, part, out=out)
        else:
            out.addcmul_(c, part)
    return bool(known)


def _through_autograd(
    link: ChainLink,
    where: Where,
    own: State,
    gradients: bool,
    has_below: bool,
    carry: bool,
    buffers: _Buffers,
) -> _LayerResult:
    """Step back through any other layer by one VJP, also of the pre-activations if the cell has them."""
    run, cell, rows = link.run, link.run.cell, own[0].shape[0]
    # The inputs too, so that the pre-activations are in the graph and have gradients.
    inputs = _widen(take(run.inputs, where), rows).detach().requires_grad_()
    before = tuple(
        _widen(take(part, where), rows).detach().requires_grad_() for part in link.previous
    )
    leaves = (*before, inputs) if has_below else before
    gates: tuple[Tensor, ...] = ()
    projected = None
    with torch.enable_grad():
        if cell.pointwise is None:
            out = flat_step(cell, run.weights, inputs, before)
        else:
            a_ih, a_hh = preactivations(cell, run.weights, inputs, before[0])
            gates = (a_ih,) if cell.additive else (a_ih, a_hh)
            out = cell.pointwise(a_ih, a_hh, before, **cell.extra_weights(run.weights))
            projected = out[0].detach()
            if "weight_hr" in run.weights:
                out = (linear(out[0], run.weights["weight_hr"]), *out[1:])
        found = pulled_back(out, own, (*gates, *leaves))
    to_gates = found[: len(gates)]
    carried = found[len(gates) : len(gates) + len(before)]
    result = StepBack(link, where, own)
    if to_gates:
        result = StepBack(link, where, own, to_gates[0], to_gates[-1], projected)
    return result, carried, found[-1] if has_below else None


def _widen(values: Tensor, rows: int) -> Tensor:
    """(1, ...) -> (rows, ...): the same step for many draws."""
    return values if values.shape[0] == rows else values.expand(rows, *values.shape[1:])
