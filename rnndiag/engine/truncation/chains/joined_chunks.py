"""Chunks of one sequence joined into one chain, as if the state had not been detached between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.chains.stack import Runs, chain_of, joined_links
from rnndiag.errors import BadArgument, NotSupported


def joined_chunks(earlier: Sequence[Runs], layer_run: Runs) -> tuple[Chain, int, tuple[str, ...]]:
    """The chain over all chunks with the losses of the last one, the steps before the seam, and notes."""
    own = chain_of(layer_run)
    before = [(one,) if isinstance(one, LayerRun) else tuple(one) for one in earlier]
    if not before:
        raise BadArgument("No earlier chunk was given.", "Keep the chunk before this one first.")
    found = [
        _join([chunk[number] for chunk in before], link.run)
        for number, link in enumerate(own.links)
    ]
    runs, moved = [run for run, _ in found], max(distance for _, distance in found)
    notes: tuple[str, ...] = ()
    if moved > 0:
        notes = (
            f"The weights moved by {moved:.1e} between the chunks; the states before the seam are taken as they were, "
            "the Jacobians with today's weights.",
        )
    kept = runs[0].T - own.T
    direct = [tuple(_padded(part, kept) for part in link.direct) for link in own.links]
    return Chain(tuple(joined_links(runs, direct))), kept, notes


def _padded(part: Tensor, steps: int) -> Tensor:
    return torch.cat([part.new_zeros(steps, *part.shape[1:]), part])


def _join(earlier: Sequence[LayerRun], run: LayerRun) -> tuple[LayerRun, float]:
    """One run over all chunks, and the relative change of the weights since the oldest one."""
    chunks = [*earlier, run]
    for one, two in pairwise(chunks):
        _check_pair(one, two)
    first = chunks[0]
    moved = max(_distance(first.weights[key], value) for key, value in run.weights.items())
    joined = LayerRun(
        name=run.name,
        cell=run.cell,
        weights=run.weights,
        inputs=torch.cat([chunk.inputs for chunk in chunks]),
        states=_cat([chunk.states for chunk in chunks]),
        initial=first.initial,
        direct=_cat([*[_zeros(chunk.direct) for chunk in earlier], run.direct]),
        parameters=run.parameters,
        tie=first.tie,
        independent=run.independent,
    )
    return joined, moved


def continues(one: LayerRun, two: LayerRun) -> bool:
    """Whether the second run starts from the final state of the first."""
    return (
        one.B == two.B
        and len(one.states) == len(two.initial)
        and all(
            end[-1].shape == start.shape
            and torch.allclose(end[-1], start.to(end.dtype), rtol=1e-4, atol=1e-6)
            for end, start in zip(one.states, two.initial, strict=True)
        )
    )


def _check_pair(one: LayerRun, two: LayerRun) -> None:
    """Raise unless the second chunk continues the sequences of the first."""
    if one.reverse or two.reverse:
        raise NotSupported(
            f"{two.name} runs backwards in time.", "Only a forward layer carries a state over."
        )
    if one.B != two.B:
        raise NotSupported(
            f"Two chunks of {two.name} have {one.B} and {two.B} sequences.",
            "A state is carried over only between chunks of the same sequences.",
        )
    for run in (one, two):
        if run.lengths is not None and bool((run.lengths != run.T).any()):
            raise NotSupported(
                f"A chunk of {run.name} has sequences that end inside it.",
                "The sweep across the seam needs sequences that go on.",
            )
    if not continues(one, two):
        raise NotSupported(
            f"A chunk of {two.name} does not start from the state that the one before it ended with.",
            "Clear the memory where a new sequence begins.",
        )


def _cat(chunks: Sequence[State]) -> State:
    return tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))


def _zeros(state: State) -> State:
    return tuple(torch.zeros_like(part) for part in state)


def _distance(one: Tensor, two: Tensor) -> float:
    size = float(two.norm())
    return float((one - two).norm()) / size if size else 0.0
