"""One step back: how a cotangent of a chain's state at t is carried to t-1, and what it gives on its way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnndiag.engine.cells import State
from rnndiag.engine.cpu_buffers import empty
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.transition import (
    Coefficients,
    flat_step,
    preactivations,
    project_back,
)
from rnndiag.engine.truncation.chains.chain import Chain, ChainLink, pick
from rnndiag.engine.truncation.sweep.row_steps import Where, piece, take
from rnndiag.engine.truncation.sweep.scratch import Scratch, rows_at_once


@dataclass(frozen=True)
class StepBack:
    """What a cotangent of the states of some rows gives to one layer, rows (K, N)."""

    link: ChainLink
    where: Where
    cotangent: State
    """Of the layer's own state, what comes from the layers above at the same step included."""
    a_ih: Tensor | None = None
    a_hh: Tensor | None = None
    projected: Tensor | None = None


PIECE_BYTES = 64 * 2**20
"""Diagonal derivatives that are not kept are made for stretches of rows of at most this size."""


def step_back(
    chain: Chain,
    where: Where,
    cotangent: State,
    *,
    gradients: bool = True,
    carry: bool = True,
    scratch: Scratch | None = None,
) -> tuple[tuple[StepBack, ...], State]:
    """Carry cotangents (K, N, S_p) of the states of rows one step back: visits by layer, and J^T a.

    With `gradients` the visits hold what the parameters' gradients need; without, only J^T a is made.
    Without `carry`, J^T a may be left out (nothing comes back).
    """
    visits: list[StepBack] = []
    before: list[State] = []
    if scratch is not None:
        scratch.turn ^= 1
    rest, from_above = list(cotangent), None
    for number, link in reversed(list(enumerate(chain.links))):
        count = len(link.direct)
        own = tuple(rest[len(rest) - count :])
        rest = rest[: len(rest) - count]
        if from_above is not None:
            own = (own[0] + from_above, *own[1:])
        if link.elementwise:
            memory = None if scratch is None else (scratch, number)
            wanted = (gradients, number > 0, carry)
            if link.diagonal is None:
                found, back, down = _visit_in_pieces(link, where, own, *wanted)
            elif memory is not None and not gradients and number == 0 and carry:
                found, back, down = _only_carry(link, where, own, memory)
            else:
                found, back, down = _visit_diagonal(link, where, own, *wanted, memory)
        else:
            found, back, down = _visit_by_autograd(link, where, own, number > 0)
        if down is not None and link.gain is not None:
            down = down * take(link.gain, where)
        from_above = down
        visits.append(found)
        before.append(back)
    return tuple(reversed(visits)), tuple(part for back in reversed(before) for part in back)


Visited = tuple[StepBack, State, Tensor | None]


def _visit_diagonal(
    link: ChainLink,
    where: Where,
    own: State,
    gradients: bool,
    has_below: bool,
    carry: bool,
    memory: tuple[Scratch, int] | None,
) -> Visited:
    run, diagonal = link.run, link.at(where)
    back = _within(diagonal, project_back(run, own), memory)
    a_hh = _gates(diagonal, diagonal.a_hh, back, memory, "a_hh")
    a_ih = None
    if gradients or has_below:
        a_ih = a_hh if run.cell.additive else _gates(diagonal, diagonal.a_ih, back, memory, "a_ih")
    down = a_ih @ run.weights["weight_ih"] if has_below and a_ih is not None else None
    found = StepBack(link, where, own, a_ih, a_hh, diagonal.projected)
    if not carry:
        return found, (), down
    into = tuple(
        _room(memory, f"carried {q}", like, like.shape, in_turn=True) for q, like in enumerate(own)
    )
    _carried(run, diagonal, back, a_hh, into)
    return found, into, down


def _only_carry(link: ChainLink, where: Where, own: State, memory: tuple[Scratch, int]) -> Visited:
    """J^T a of a layer with none below it, a few rows at a time: what its gates get never leaves the cache."""
    rows, width = own[0].shape[0], own[0].shape[1]
    size = rows_at_once(link.run.device, width)
    whole = link.at(where)
    if rows <= size or whole.projected.shape[0] != rows:
        size = rows
    backs = tuple(
        _room(memory, f"carried {q}", like, like.shape, in_turn=True) for q, like in enumerate(own)
    )
    for k in range(0, rows, size):
        part = _rows(own, k, k + size)
        diagonal = whole if size == rows else pick(whole, slice(k, k + size))
        back = _within(diagonal, project_back(link.run, part), memory)
        a_hh = _gates(diagonal, diagonal.a_hh, back, memory, "a_hh")
        _carried(link.run, diagonal, back, a_hh, _rows(backs, k, k + size))
    return StepBack(link, where, own), backs, None


def _visit_in_pieces(
    link: ChainLink, where: Where, own: State, gradients: bool, has_below: bool, carry: bool
) -> Visited:
    """`_visit_diagonal` where the diagonal derivatives of all rows do not fit: made for a few rows at a time."""
    rows, width = own[0].shape[0], own[0].shape[1]
    run = link.run
    parts = len(run.cell.parts)
    each = width * run.cell.units(run.weights) * run.states[0].element_size()
    each *= parts * (len(run.cell.blocks) + len(run.cell.gates) + parts)
    size = max(1, PIECE_BYTES // max(1, each))
    if rows <= size or len(take(link.previous[0], where)) != rows:
        return _visit_diagonal(link, where, own, gradients, has_below, carry, None)
    found = [
        _visit_diagonal(
            link,
            piece(where, k, k + size),
            _rows(own, k, k + size),
            gradients,
            has_below,
            carry,
            None,
        )
        for k in range(0, rows, size)
    ]
    visits, backs, downs = zip(*found, strict=True)

    def joined(name: str) -> Tensor | None:
        values = [getattr(one, name) for one in visits]
        return None if values[0] is None else torch.cat(values)

    whole = StepBack(link, where, own, joined("a_ih"), joined("a_hh"), joined("projected"))
    back = tuple(torch.cat(part) for part in zip(*backs, strict=True))
    return whole, back, None if downs[0] is None else torch.cat(downs)


def _rows(state: State, start: int, stop: int) -> State:
    return tuple(part[start:stop] for part in state)


def _carried(run: LayerRun, diagonal: Coefficients, back: State, a_hh: Tensor, into: State) -> None:
    """into = J^T a: what goes through the pre-activations, and what goes through the carried parts."""
    flat, weight_hh = a_hh.flatten(0, -2), run.weights["weight_hh"]
    for q, value in enumerate(into):
        terms = [(row[q], part) for row, part in zip(diagonal.state, back, strict=True)]
        empty = not _weighted_into(value, terms)
        if q == 0:
            value.view(-1, value.shape[-1]).addmm_(flat, weight_hh, beta=0 if empty else 1)
        elif empty:
            value.zero_()


def _within(diagonal: Coefficients, back: State, memory: tuple[Scratch, int] | None) -> State:
    """With what the last part gets through h of the same step, where its derivatives are left apart."""
    if diagonal.within is None:
        return back
    last = back[-1]
    room = _room(memory, "within", last, last.shape)
    return (*back[:-1], torch.addcmul(last, diagonal.within, back[0], out=room))


def _gates(
    diagonal: Coefficients,
    rows: tuple[Tensor | None, ...],
    back: State,
    memory: tuple[Scratch, int] | None,
    name: str,
) -> Tensor:
    """Σ over parts of diagonal derivative (K, N, gates, H) times cotangent (K, N, H), summed in place."""
    like = next(c for c in rows if c is not None)
    count = like.shape[-2]
    if diagonal.gates is not None:
        count = max(gates.stop for gates in diagonal.gates)
    shape = (*back[0].shape[:-1], count, like.shape[-1])
    total = _room(memory, name, like, shape)
    if diagonal.gates is not None:
        for c, part, gates in zip(rows, back, diagonal.gates, strict=True):
            assert c is not None
            torch.mul(c, part.unsqueeze(-2), out=total[..., gates, :])
    else:
        _weighted_into(total, [(c, p.unsqueeze(-2)) for c, p in zip(rows, back, strict=True)])
    return total.flatten(-2)


def _room(
    memory: tuple[Scratch, int] | None,
    name: str,
    like: Tensor,
    shape: tuple[int, ...],
    in_turn: bool = False,
) -> Tensor:
    if memory is None:
        return empty(shape, like.dtype, like.device)
    scratch, number = memory
    return scratch.room(number, f"{name} {scratch.turn}" if in_turn else name, like, tuple(shape))


def _weighted_into(total: Tensor, terms: list[tuple[Tensor | None, Tensor]]) -> bool:
    """total = Σ coefficient * cotangent over the terms whose coefficient is not zero; False where there is none."""
    known = [(c, part) for c, part in terms if c is not None]
    for number, (c, part) in enumerate(known):
        if number == 0:
            torch.mul(c, part, out=total)
        else:
            total.addcmul_(c, part)
    return bool(known)


def _visit_by_autograd(link: ChainLink, where: Where, own: State, has_below: bool) -> Visited:
    run = link.run
    rows = own[0].shape[0]
    inputs = _widen(take(run.inputs, where), rows)
    before = tuple(_widen(take(part, where), rows) for part in link.previous)
    if run.cell.pointwise is None:
        return _visit_whole_step(link, where, own, inputs, before, has_below)
    with torch.no_grad():
        a_ih, a_hh = preactivations(run.cell, run.weights, inputs, before[0])
    with torch.enable_grad():
        a_ih = a_ih.detach().requires_grad_()
        a_hh = a_hh.detach().requires_grad_(not run.cell.additive)
        leaves = tuple(part.detach().requires_grad_() for part in before)
        out = run.cell.pointwise(a_ih, a_hh, leaves, **run.cell.extra_weights(run.weights))
        projected = out[0].detach()
        if "weight_hr" in run.weights:
            out = (linear(out[0], run.weights["weight_hr"]), *out[1:])
        wanted = (a_ih, *leaves) if run.cell.additive else (a_ih, a_hh, *leaves)
        found = _pull(out, wanted, own)
    to_ih, to_hh = found[0], found[0 if run.cell.additive else 1]
    carried = list(found[len(wanted) - len(leaves) :])
    carried[0] = carried[0] + to_hh @ run.weights["weight_hh"]
    down = to_ih @ run.weights["weight_ih"] if has_below else None
    return StepBack(link, where, own, to_ih, to_hh, projected), tuple(carried), down


def _widen(values: Tensor, rows: int) -> Tensor:
    """One step for many rows (draws of one step) becomes as many rows."""
    return values if values.shape[0] == rows else values.expand(rows, *values.shape[1:])


def _visit_whole_step(
    link: ChainLink, where: Where, own: State, inputs: Tensor, before: State, has_below: bool
) -> Visited:
    with torch.enable_grad():
        leaves = tuple(part.detach().requires_grad_() for part in before)
        x = inputs.detach()
        if has_below:
            x = x.requires_grad_()
        out = flat_step(link.run.cell, link.run.weights, x, leaves)
        found = _pull(out, (*leaves, x) if has_below else leaves, own)
    down = found[-1] if has_below else None
    return StepBack(link, where, own), tuple(found[: len(leaves)]), down


def _pull(out: State, leaves: tuple[Tensor, ...], cotangent: State) -> tuple[Tensor, ...]:
    """The VJP, with zeros where an argument is not used."""
    pairs = [(o, a) for o, a in zip(out, cotangent, strict=True) if o.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(
        [o for o, _ in pairs],
        leaves,
        [a for _, a in pairs],
        allow_unused=True,
        materialize_grads=True,
    )
