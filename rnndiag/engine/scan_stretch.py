"""The backward recursion of an elementwise cell over one stretch of steps: all that cannot be done for all at once."""

from __future__ import annotations

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.transition import Coefficients


def scan_stretch(
    run: LayerRun,
    diagonal: Coefficients,
    direct: State,
    delta: State,
    a_hh: Tensor,
    carry: State,
    start: int,
) -> State:
    """The recursion over one stretch of steps, writing δ and a_hh. Returns J^T δ of its first step."""
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
            back[-1] = torch.addcmul(back[-1], within[k], back[0])
        if not by_gate:
            flat[k].zero_()
        for place, (p, coefficient, gates) in enumerate(by_gate):
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
            alive = (lengths > start + k).to(delta[0].device)[:, None]
            carry = tuple(torch.where(alive, part, torch.zeros_like(part)) for part in carry)
    return carry


def _or_zeros(value: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if value is None else value


def _sum_of(terms: list[tuple[Tensor, Tensor]]) -> Tensor | None:
    """Σ coefficient * cotangent in memory of its own; None if there are no terms."""
    if not terms:
        return None
    total = torch.mul(*terms[0])
    for coefficient, cotangent in terms[1:]:
        total.addcmul_(coefficient, cotangent)
    return total
