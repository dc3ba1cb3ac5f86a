"""Across the seam: what chunked training with a carried, detached state throws away.

The inputs and states of earlier chunks are kept, up to a bound, and the losses of the chunk at hand are followed back
through them as if nothing had been detached.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.truncation.chain import Chain
from rnndiag.engine.truncation.credit import CreditLedger, lag_count, profile_of
from rnndiag.engine.truncation.parameters import layout_of
from rnndiag.engine.truncation.stack import Runs, chain_of, joined_links
from rnndiag.engine.truncation.travel import rows_of, travel
from rnndiag.engine.truncation.walks import gradient_of, total_adjoint
from rnndiag.errors import BadArgument, NotSupported


@dataclass(frozen=True)
class Seam:
    """What lies beyond the start of a chunk, for the losses of that chunk."""

    name: str
    own_steps: int
    """Steps of the chunk at hand, through which the training step carries its gradient."""
    kept_steps: int
    """Steps of earlier chunks that were kept."""
    log_profile: Tensor
    """ln of the credit profile over lag, own steps and kept ones, (D,)."""
    credit_beyond: float
    """Share of all credit, Σ C[u, s] over the chunk's losses, that lies at states before the seam."""
    gradient_beyond: float
    """|g_beyond| / |g|: g_beyond is what the states before the seam add to the gradient g of the chunk's losses."""
    cosine: float
    """cos between the gradient with and without what lies beyond the seam."""
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What the seam costs, in words."""
        return (
            f"Cutting the state every {self.own_steps} steps throws away {self.credit_beyond:.0%} of the credit and "
            f"changes the gradient by {self.gradient_beyond:.0%} (cosine {self.cosine:.3f}), as far as the "
            f"{self.kept_steps} steps kept before the seam tell."
        )


class SeamMemory:
    """Keeps the layer runs of the last chunks of one layer, at most `max_steps` steps of them."""

    def __init__(self, max_steps: int) -> None:
        if max_steps < 1:
            raise BadArgument(f"max_steps is {max_steps}.", "Keep 1 step or more.")
        self.max_steps = max_steps
        self._chunks: deque[LayerRun] = deque()

    @property
    def chunks(self) -> tuple[LayerRun, ...]:
        """What is kept, the oldest first."""
        return tuple(self._chunks)

    def keep(self, run: LayerRun) -> None:
        """Keep the inputs and states of one chunk; the oldest ones make room, whole chunks at a time."""
        self._chunks.append(
            replace(run, pre=None, gradients={}, input_gradient=None, initial_gradient=None)
        )
        while len(self._chunks) > 1 and sum(chunk.T for chunk in self._chunks) > self.max_steps:
            self._chunks.popleft()

    def clear(self) -> None:
        """Forget everything: a new sequence begins."""
        self._chunks.clear()


@torch.no_grad()
def seam_sweep(earlier: Sequence[Runs], layer_run: Runs, max_lag: int | None = None) -> Seam:
    """Follow the losses of one chunk back into the chunks before it, oldest first.

    Give layer runs, or for a stack the runs of each chunk, lowest first. Each chunk must start from the state that
    the one before it ended with.
    """
    own = chain_of(layer_run)
    before = [_as_runs(one) for one in earlier]
    if not before:
        raise BadArgument("No earlier chunk was given.", "Keep the chunk before this one first.")
    runs, notes = [], []
    for number, link in enumerate(own.links):
        joined, moved = _join([chunk[number] for chunk in before], link.run)
        runs.append(joined)
        if moved > 0:
            notes.append(
                f"The weights of {link.run.name} moved by {moved:.1e} between the chunks; "
                "the states before the seam are taken as they were, the Jacobians with today's weights."
            )
    kept = runs[0].T - own.T
    direct = [tuple(_padded(part, kept) for part in link.direct) for link in own.links]
    chain = Chain(tuple(joined_links(runs, direct))).prepared()
    return _measure(chain, own, kept, lag_count(chain, max_lag), tuple(notes))


def _measure(chain: Chain, own: Chain, kept: int, lags: int, notes: tuple[str, ...]) -> Seam:
    ledger = CreditLedger(chain, rows_of(chain), lags)
    for lag in travel(chain, ledger.rows, lags, lambda _: False):
        ledger.add(lag)
    outputs = ledger.outputs
    source = outputs[:, None] - torch.arange(lags, device=outputs.device)[None, :]
    table = ledger.by_lag[outputs]
    all_credit = torch.where(source >= 0, table, -math.inf).flatten().logsumexp(0)
    lost = torch.where((source >= 0) & (source < kept), table, -math.inf).flatten().logsumexp(0)
    layout, delta = layout_of(chain), total_adjoint(chain)
    inside = (torch.arange(chain.T, device=outputs.device) >= kept).to(delta[0].dtype)
    full = gradient_of(chain, layout, delta)[0]
    cut = gradient_of(chain, layout, delta, 1, inside)[0]
    return Seam(
        name=chain.name,
        own_steps=own.T,
        kept_steps=kept,
        log_profile=profile_of(ledger, 1.0, 1.0).log,
        credit_beyond=float((lost - all_credit).exp()),
        gradient_beyond=float((full - cut).norm() / full.norm()),
        cosine=float(full @ cut / (full.norm() * cut.norm())),
        notes=notes,
    )


def _as_runs(runs: Runs) -> tuple[LayerRun, ...]:
    return (runs,) if isinstance(runs, LayerRun) else tuple(runs)


def _padded(part: Tensor, steps: int) -> Tensor:
    return torch.cat([part.new_zeros(steps, *part.shape[1:]), part])


def _join(earlier: Sequence[LayerRun], run: LayerRun) -> tuple[LayerRun, float]:
    """One run over all chunks, and how far the weights moved since the oldest, relative."""
    chunks = [*earlier, run]
    for one, two in pairwise(chunks):
        _check_pair(one, two)
    first = chunks[0]
    moved = max(_distance(first.weights[key], value) for key, value in run.weights.items())
    joined = replace(
        run,
        inputs=torch.cat([chunk.inputs for chunk in chunks]),
        states=_cat([chunk.states for chunk in chunks]),
        initial=first.initial,
        direct=_cat([*[_zeros(chunk.direct) for chunk in earlier], run.direct]),
        lengths=None,
        pre=None,
        gradients={},
        input_gradient=None,
        initial_gradient=None,
    )
    return joined, moved


def _check_pair(one: LayerRun, two: LayerRun) -> None:
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
    for end, start in zip(one.states, two.initial, strict=True):
        if not torch.allclose(end[-1], start.to(end.dtype), rtol=1e-4, atol=1e-6):
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
