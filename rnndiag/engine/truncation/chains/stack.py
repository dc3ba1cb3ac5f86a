"""Chains from layer runs: of one layer, or of a one-directional stack whose layers are cut together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rnndiag.engine.adjoints import adjoints
from rnndiag.engine.cells import State
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.truncation.chains.chain import Chain, ChainLink
from rnndiag.errors import BadArgument, NotSupported

Runs = LayerRun | Sequence[LayerRun]
"""A layer run (layer semantics), or the layer runs of one stack, lowest first (stack semantics)."""

ROUNDING = 64
"""Direct gradients below this many rounding errors of the subtracted gradients count as zero."""


def chain_of(runs: Runs) -> Chain:
    """The chain of one layer run, or of the runs of a stack (lowest first; each one's outputs feed the next).

    Call `prepared` before moving cotangents along it.
    """
    for run in (runs,) if isinstance(runs, LayerRun) else runs:
        if run.open:
            raise NotSupported(
                f"The lags of {run.name} cannot be told from its layer run: {run.open}.",
                "Its adjoints and contributions hold; probe.recording has what was measured on the graph.",
            )
    if isinstance(runs, LayerRun):
        return Chain((ChainLink(runs, _masked(runs, runs.direct)),))
    stack = tuple(runs)
    if not stack:
        raise BadArgument("No layer run was given.", "Give one, or the runs of one stack.")
    _check_directions(stack)
    # A layer whose squared gradients leave the range of float32 was recorded in float64.
    widest = max((run.dtype for run in stack), key=lambda dtype: dtype.itemsize)
    stack = tuple(run if run.dtype == widest else run.to(widest) for run in stack)
    links = joined_links(stack, [_masked(run, run.direct) for run in stack])
    for k in reversed(range(len(links) - 1)):
        links[k] = _without_upper(links[k], links[k + 1])
    return Chain(tuple(links))


def feeds(lower: LayerRun, upper: LayerRun) -> bool:
    """Whether the lower layer's output is the upper one's input, possibly through dropout, at the same step."""
    if (
        lower.open
        or upper.open
        or lower.reverse
        or upper.reverse
        or (lower.T, lower.B) != (upper.T, upper.B)
    ):
        return False
    h, x = lower.states[0], upper.inputs
    if h.shape != x.shape or not bool(((h != 0) & (x != 0)).any()):
        return False
    try:
        gain = _gain(lower, upper)
    except NotSupported:
        return False
    return _sends_back(lower, upper, gain)


_UPPER_LAYER = re.compile(r"(?:^|\.)l[1-9]")


def _sends_back(lower: LayerRun, upper: LayerRun, gain: Tensor | None) -> bool:
    """Whether the gradient of the upper layer's inputs flows back into the lower one unchanged, not detached.

    True for runs made by hand and for layers of one module, where nothing contradicts it.
    """
    if not upper.gradients or _UPPER_LAYER.search(upper.name):
        return True
    if upper.input_gradient is None:
        return False
    sent = upper.input_gradient if gain is None else upper.input_gradient * gain
    arrived = lower.direct[0]
    size = float((sent * sent).sum(dtype=torch.float64))
    if not 0 < size < float("inf"):
        return True
    # everything that arrived is one multiple of what was sent: a node in between scales or reverses gradients
    factor = float((sent * arrived).sum(dtype=torch.float64)) / size
    rest = float((arrived - factor * sent).norm(dtype=torch.float64))
    multiple = rest <= 1e-4 * float(arrived.norm(dtype=torch.float64))
    return not (multiple and abs(factor - 1) > 1e-3)


def recurrences(runs: Sequence[LayerRun]) -> list[tuple[LayerRun, ...]]:
    """Runs that are consecutive layers of one stack grouped, lowest first; the others alone."""
    found: list[tuple[LayerRun, ...]] = []
    for run in runs:
        if found and feeds(found[-1][-1], run):
            found[-1] = (*found[-1], run)
        else:
            found.append((run,))
    return found


def joined_links(stack: Sequence[LayerRun], direct: Sequence[State]) -> list[ChainLink]:
    """The layers of a stack with these direct gradients, and the dropout masks between them."""
    lower: Sequence[LayerRun | None] = (None, *stack[:-1])
    return [
        ChainLink(run, e, None if below is None else _gain(below, run))
        for below, run, e in zip(lower, stack, direct, strict=True)
    ]


def _check_directions(stack: tuple[LayerRun, ...]) -> None:
    if len({run.reverse for run in stack}) > 1:
        raise NotSupported(
            f"{stack[0].name} to {stack[-1].name} run in both directions.",
            "A bidirectional stack has no common time step to cut at: measure its layer runs one by one.",
        )
    for lower, upper in pairwise(stack):
        if (lower.T, lower.B) != (upper.T, upper.B):
            raise BadArgument(
                f"{lower.name} has (T, B) = {(lower.T, lower.B)} and {upper.name} has {(upper.T, upper.B)}.",
                "Give the runs of one stack in one forward pass, the lowest first.",
            )


def _masked(run: LayerRun, direct: State) -> State:
    if run.lengths is None:
        return direct
    keep = run.mask()[..., None]
    return tuple(torch.where(keep, part, torch.zeros_like(part)) for part in direct)


def _gain(lower: LayerRun, upper: LayerRun) -> Tensor | None:
    """The dropout mask between two layers, from the recorded inputs and outputs; None: there is none."""
    h, x = lower.states[0], upper.inputs
    if h.shape != x.shape:
        raise NotSupported(
            f"{upper.name} takes inputs of size {x.shape[-1]}, but {lower.name} gives {h.shape[-1]}.",
            "A stack is cut together only where each layer's output is the next one's input; "
            "measure the layer runs one by one.",
        )
    if torch.equal(h, x):
        return None
    kept = (x != 0) & (h != 0)
    ratio = x[kept].double() / h[kept].double()
    factor = float(ratio.median()) if ratio.numel() else 1.0
    slack = 1e3 * torch.finfo(x.dtype).eps
    if ratio.numel() and float((ratio - factor).abs().max()) > slack * abs(factor):
        raise NotSupported(
            f"What stands between {lower.name} and {upper.name} is neither nothing nor dropout.",
            "A stack is cut together only through those; measure the layer runs one by one.",
        )
    return torch.where(x != 0, torch.full_like(x, factor), torch.zeros_like(x))


def _without_upper(link: ChainLink, upper: ChainLink) -> ChainLink:
    """The layer's direct gradient without the part that its outputs get through the upper layer of the chain."""
    through = adjoints(upper.run).inputs()
    if upper.gain is not None:
        through = through * upper.gain
    whole = link.direct[0]
    rest = whole - through
    floor = ROUNDING * torch.finfo(whole.dtype).eps * (upper.run.T**0.5)
    size = torch.linalg.vector_norm(whole, dim=-1) + torch.linalg.vector_norm(through, dim=-1)
    noise = torch.linalg.vector_norm(rest, dim=-1) <= floor * size
    rest = torch.where(noise[..., None], torch.zeros_like(rest), rest)
    return ChainLink(link.run, (rest, *link.direct[1:]), link.gain)
