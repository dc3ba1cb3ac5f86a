"""Describes a wrong gradient: a multiple of the truth, blocks (gates) in another order, wrong sequences."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

BLOCKS = (2, 3, 4)
"""Numbers of gates tried for packed parameters and inputs."""
CLOSE = 1e-3
"""A description is accepted if it leaves at most this share of the truth unexplained."""


def describe(
    found: Tensor | None,
    truth: Tensor | None,
    rows: int,
    batch: int | None,
    time: int | None = None,
) -> str:
    """A few words on how `found` differs from `truth`; empty if no description fits.

    Args:
        found: The wrong gradient.
        truth: What it should be.
        rows: Dimension along which gates are stacked.
        batch: Dimension of the sequences, None where there is none.
        time: Dimension of the steps, None where there is none.
    """
    if truth is None or found is None or found.shape != truth.shape:
        return ""
    a, b = found.detach().double(), truth.detach().double().to(found.device)
    if not bool(a.isfinite().all()):
        bad = [int(i[0]) for i in torch.nonzero(~a.isfinite())[:1]]
        return f"not finite, first at index {bad[0]}" if a.ndim else "not finite"
    if not bool(a.any()):
        return ""
    words = [_multiple(a, b), gate_order(a, b, rows), _sequences(a, b, batch)]
    words += [shifted(a, b, time)] if time is not None else []
    return "; ".join(word for word in words if word)


def _multiple(a: Tensor, b: Tensor) -> str:
    """ "2 times the truth" if the wrong entries are one multiple of it; else empty."""
    wrong = (a - b).abs() > CLOSE * b.abs().max()
    x, y = a[wrong], b[wrong]
    if not len(y) or not bool(y.any()):
        return ""
    factor = float((x * y).sum() / (y * y).sum())
    if (
        float((x - factor * y).norm()) > 10 * CLOSE * float(y.norm())
        or len(y) < 2
        or abs(factor - 1) < 5e-3
    ):
        return ""
    where = "" if bool(wrong.all()) else "where it is wrong, "
    return f"{where}{factor:.3g} times the truth" if abs(factor) > CLOSE else f"{where}zero"


def gate_order(a: Tensor, b: Tensor, dim: int) -> str:
    """The order of blocks along `dim` in which the truth equals `found`."""
    if not a.ndim:
        return ""
    for blocks in BLOCKS:
        if a.shape[dim] % blocks or a.shape[dim] < blocks:
            continue
        parts = b.chunk(blocks, dim)
        for order in permutations(range(blocks)):
            if order == tuple(range(blocks)):
                continue
            off = float((torch.cat([parts[k] for k in order], dim) - a).norm())
            if off <= CLOSE * float(b.norm()):
                return f"the truth with its {blocks} blocks (gates) in the order {order}"
    return ""


def _sequences(a: Tensor, b: Tensor, batch: int | None) -> str:
    """Which sequences of the batch are wrong while others are right; empty if that does not describe the error."""
    if batch is None or a.shape[batch] < 2:
        return ""
    rows = (a - b).movedim(batch, 0).flatten(1).norm(dim=1)
    wrong = rows > CLOSE * b.movedim(batch, 0).flatten(1).norm(dim=1).max()
    if not bool(wrong.any()) or bool(wrong.all()):
        return ""
    return f"in sequence {', '.join(str(int(i)) for i in torch.nonzero(wrong).flatten())} of the batch only"


def shifted(a: Tensor, b: Tensor, time: int) -> str:
    """ "the truth one step late" if the gradient equals that of neighbouring steps; else empty."""
    steps = a.shape[time]
    for by, word in ((1, "late"), (-1, "early")):
        if steps < 3:
            break
        mine, theirs = a.narrow(time, max(by, 0), steps - 1), b.narrow(time, max(-by, 0), steps - 1)
        if bool(theirs.any()) and float((mine - theirs).norm()) <= CLOSE * float(theirs.norm()):
            return f"the truth one step {word}"
    return ""


def is_rounding(size: float, eps: float) -> bool:
    """Whether an error of a kernel in higher precision is as large as the rounding of float16 or bfloat16."""
    return eps < 1e-6 and 2e-5 < size < 8e-3
