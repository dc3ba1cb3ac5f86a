"""Tails of some windows over all losses and sequences, at the cost of a few plain training steps.

The exact tail of every window needs one row per loss and one pass over all rows per lag. A block is cheaper: only the
total adjoints δ_u at every m-th step u are moved back through lags a .. a+m-1. They pass every state once, and so give
the exact tail of (k1, k2) truncation with k1 = m: a window of a .. a+m-1 steps, depending on the state. It is recorded
for the window in the middle, which is then known to within m steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.cpu_buffers import Scratch, empty_parts
from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.sweep.parameter_layout import ParameterLayout
from rnndiag.engine.truncation.sweep.products import add_gradients, right_factors
from rnndiag.engine.truncation.sweep.row_steps import Where, every
from rnndiag.engine.truncation.sweep.step_back import step_back
from rnndiag.engine.truncation.sweep.tails import Tail, tail_of

FIRST_WIDTH = 8
"""Width of the first block, lags 1 .. 8, or a quarter of all lags; doubled if the credit reaches further."""
TARGET_BIAS = 0.1
"""Relative bias near which windows are measured more densely: that of the recommended window."""
REACH_SHARE = 0.9
"""The share of the credit within the reach."""
NEGLIGIBLE_BIAS = 1e-3
"""Once a tail is below this share of the gradient, longer windows are not measured."""
BLOCK_COST = 0.5
"""Cost of one block in plain training steps: 0.3 to 0.55, measured on a CPU with benchmarks/truncation.py."""

CLOSER_COST = 2 * BLOCK_COST
"""Cost of the first block near the recommended window in plain training steps: its rows also pass all lags before
it."""


@dataclass(frozen=True)
class LagBlock:
    """Lags start .. start + width - 1, with a cut every `width` steps."""

    start: int
    width: int

    @property
    def stop(self) -> int:
        """One past its last lag."""
        return self.start + self.width

    @property
    def window(self) -> int:
        """The window in its middle."""
        return self.start + self.width // 2


def first_width(log_profile: Tensor) -> int:
    """Width of the first block: doubled if the credit reaches beyond two blocks."""
    credit = (log_profile - log_profile[0]).exp().nan_to_num()
    near = credit[: 2 * FIRST_WIDTH].sum()
    return 2 * FIRST_WIDTH if near < REACH_SHARE * credit.sum() else FIRST_WIDTH


def doubling(T: int, lags: int, first: int = FIRST_WIDTH) -> Iterator[LagBlock]:
    """Blocks that cover lags 1 .. lags-1 of T steps; the width of each equals the number of lags before it."""
    block = LagBlock(1, min(first, max(1, min(T, lags) // 4)))
    while block.start < lags:
        yield block
        wider = LagBlock(block.stop, block.stop - 1)
        block = wider if wider.stop <= T else LagBlock(block.stop, block.width)


@torch.no_grad()
def block_cotangents(
    chain: Chain, delta: State, blocks: Iterable[LagBlock]
) -> Iterator[tuple[LagBlock, Where, State]]:
    """Move δ of every m-th step back; yields the steps of the rows and their cotangents at every lag of a block.

    Args:
        chain: The chain, prepared.
        delta: The total adjoints.
        blocks: Adjacent blocks; each width is a multiple of the one before.
    """
    T, scratch, lag, stride = chain.T, Scratch(), 0, 1
    where, now = slice(1, T, 1), tuple(part[1:] for part in delta)
    for block in blocks:
        if block.width != stride:
            dropped = (-(where.start + lag) % block.width) // stride
            now = tuple(part[dropped :: block.width // stride] for part in now)
            where = slice(where.start + dropped * stride, where.stop, block.width)
            stride = block.width
        while lag < block.stop:
            if not len(now[0]):
                return
            if lag >= block.start:
                yield block, where, now
            _, now = step_back(chain, where, now, gradients=False, scratch=scratch)
            lag += 1
            where = slice(where.start - 1, where.stop - 1, stride)
            if where.start < 0:
                now = tuple(part[1:] for part in now)
                where = slice(where.start + stride, where.stop, stride)


class BlockedTails:
    """Measures tails by blocks and keeps their inner products by window.

    Args:
        chain: The chain, prepared.
        layout: Its parameters.
        full: The gradient by group of sequences, (M, P).
        delta: The total adjoints.
    """

    def __init__(self, chain: Chain, layout: ParameterLayout, full: Tensor, delta: State) -> None:
        self._chain, self._layout, self._delta = chain, layout, delta
        self._gradient = full.sum(0)
        self._rights = right_factors(chain, layout)
        self._buffer, self._scratch = torch.empty_like(full), Scratch()
        zeros = torch.zeros_like(full)
        self.tails: dict[int, Tail] = {
            0: tail_of(layout, full, self._gradient, self._gradient),
            chain.T: tail_of(layout, zeros, zeros[0], self._gradient),
        }
        self.widths: dict[int, int] = {}
        """Measured window -> width of its block."""
        self.first_tail, self.first_width = zeros, chain.T
        """The tail of the first block, (M, P): what chunks of its width leave out."""

    def measure(self, lags: int, first: int, budget: float) -> float:
        """Measure windows up to `lags`, then more densely near the one to be recommended.

        Windows are measured until the bias has settled below `TARGET_BIAS`, whatever the cost, and further ones within
        the budget.

        Args:
            lags: Longest window.
            first: Width of the first block.
            budget: Plain training steps.

        Returns:
            The cost in plain training steps.
        """
        cost = 0.0

        def blocks() -> Iterator[LagBlock]:
            nonlocal cost
            for block in doubling(self._chain.T, lags, first):
                # Longer windows only if the budget still allows one block near the recommended window.
                if self.settled and cost + BLOCK_COST + CLOSER_COST > budget:
                    return
                cost += BLOCK_COST
                yield block

        self.add_blocks(blocks())
        for fineness in (2, 4, 8):
            block = self._block_at_target(fineness)
            if block is None:
                break
            # The rows pass the lags before the block as well, which costs half as much as a block's own.
            cost_of_block = BLOCK_COST * (block.stop / block.width + 1) / 2
            if cost + cost_of_block > budget:
                break
            if self.widths.get(block.window, self._chain.T) > block.width:
                self.add_blocks([block])
                cost += cost_of_block
        return cost

    def add_blocks(self, blocks: Iterable[LagBlock]) -> None:
        """Measure adjacent blocks, each before the next one is taken from the iterable."""
        run = self._chain.links[0].run
        states = empty_parts((run.T, run.B), self._chain.sizes, run.dtype, run.device)
        for whole in states:
            whole.zero_()
        block, lags_seen = None, 0
        for block, where, now in block_cotangents(self._chain, self._delta, blocks):
            for whole, part in zip(states, now, strict=True):
                whole[where] = part
            lags_seen += 1
            if lags_seen == block.width:
                if self._add(block, states) < NEGLIGIBLE_BIAS:
                    return
                for whole in states:
                    whole.zero_()
                lags_seen = 0
        if block is not None and lags_seen:
            self._add(block, states)

    def _add(self, block: LagBlock, states: State) -> float:
        """Add the tail of a block, from its cotangents at every state; returns its relative size."""
        steps, _ = step_back(
            self._chain, every(self._chain.T), states, carry=False, scratch=self._scratch
        )
        tail = self._buffer
        add_gradients(tail, self._rights, steps, fresh=True)
        window = min(block.window, self._chain.T - 1)
        self.tails[window] = tail_of(self._layout, tail, tail.sum(0), self._gradient)
        self.widths[window] = block.width
        if block.start == 1 and self.first_width == self._chain.T:
            self.first_tail, self.first_width = tail.clone(), block.width
        return self._bias(window)

    @property
    def settled(self) -> bool:
        """True if the longest measured window has half the target bias at most, or the longest two at most the target.

        The bias may still rise at longer windows.
        """
        last = [self._bias(w) for w in sorted(self.widths)[-2:]]
        return bool(last) and (
            last[-1] <= TARGET_BIAS / 2 or (len(last) == 2 and max(last) <= TARGET_BIAS)
        )

    def _block_at_target(self, fineness: int) -> LagBlock | None:
        """A block of 1/fineness of its start where the bias finally falls to `TARGET_BIAS`; None if known closely
        enough."""
        if not all(math.isfinite(self._bias(w)) for w in self.tails):
            return None
        windows = sorted(self.tails)
        bias = {w: self._bias(w) for w in windows}
        low = max((w for w in windows if bias[w] > TARGET_BIAS), default=0)
        high = windows[windows.index(low) + 1]
        if high - low <= 1:
            return None
        # Straight line through the logarithms of the two biases.
        floor = max(bias[high], TARGET_BIAS * 1e-2)
        share = math.log(bias[low] / (0.95 * TARGET_BIAS)) / math.log(bias[low] / floor)
        at = low + (high - low) * min(max(share, 0.0), 1.0)
        start = max(1, round(at / (1 + 0.5 / fineness)))
        return LagBlock(start, max(1, start // fineness))

    def _bias(self, window: int) -> float:
        """|S| / |g|; NaN if g is zero."""
        return math.sqrt(float(self.tails[window].squares[-1] / self.tails[0].squares[-1]))
