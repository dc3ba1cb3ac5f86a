"""Some windows of the whole batch for a few training steps: every loss and sequence, but a cut only every m steps.

The tail of a window is what the total adjoints δ_u send back over more than its length. Carried back from every m-th
step u alone, through lags a .. a+m-1, they pass every state once, and so give the exact tail of (k1, k2) truncation
with k1 = m: a window of a .. a+m-1 steps, each state its own. It is written down for the middle one, so a window is
known to within m steps, where one row would be needed for every step to know it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.cpu_buffers import empty_parts
from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.sweep.products import add_gradients, right_factors
from rnndiag.engine.truncation.sweep.row_steps import Where, every
from rnndiag.engine.truncation.sweep.scratch import Scratch
from rnndiag.engine.truncation.sweep.sequence_statistics import SequenceStatistics
from rnndiag.engine.truncation.sweep.step_back import step_back
from rnndiag.engine.truncation.sweep.tails import Tail, tail_of

FIRST_WIDTH = 8
"""The first block holds lags 1 .. 8, or a quarter of all, or 1 .. 16; the next ones double where they end."""
AIM = 0.1
"""The relative bias around which windows are looked at more closely: that of the recommended window."""
REACH = 0.9
"""The share of the credit that lies within the reach."""
NOTHING = 1e-3
"""Where a tail is smaller than this share of the gradient, no window further back is measured."""


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


def first_width(profile_log: Tensor) -> int:
    """How wide the first block is: where the credit reaches beyond two of them, the two are one."""
    credit = (profile_log - profile_log[0]).exp().nan_to_num()
    near = credit[: 2 * FIRST_WIDTH].sum()
    return 2 * FIRST_WIDTH if near < REACH * credit.sum() else FIRST_WIDTH


def doubling(T: int, most: int, first: int | None = None) -> Iterator[LagBlock]:
    """Blocks that cover all lags 1 .. most-1 of T, each as wide as it lies far back; the last ones as wide as fits."""
    block = LagBlock(1, min(first or FIRST_WIDTH, max(1, min(T, most) // 4)))
    while block.start < most:
        yield block
        wider = LagBlock(block.stop, block.stop - 1)
        block = wider if wider.stop <= T else LagBlock(block.stop, block.width)


@torch.no_grad()
def carried(
    chain: Chain, delta: State, blocks: Iterable[LagBlock]
) -> Iterator[tuple[LagBlock, Where, State]]:
    """Walk δ of every m-th step back: where the rows stand and what they carry, at every lag that a block holds.

    Blocks follow on one another; widths may grow by whole factors.
    """
    T, scratch, lag, stride = chain.T, Scratch(), 0, 1
    where, now = slice(1, T, 1), tuple(part[1:] for part in delta)
    for block in blocks:
        if block.width != stride:
            past = (-(where.start + lag) % block.width) // stride
            now = tuple(part[past :: block.width // stride] for part in now)
            where = slice(where.start + past * stride, where.stop, block.width)
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
    """Tails of blocks, of all sequences and losses, by the windows in their middles."""

    def __init__(
        self,
        chain: Chain,
        population: SequenceStatistics,
        full: Tensor,
        delta: State,
        scratch: Scratch | None = None,
    ) -> None:
        """full (M, P): the gradient by group of sequences; delta: the total adjoints."""
        self.chain, self.population, self.delta = chain, population, delta
        self.full, self.whole = full, full.sum(0)
        self.rights = right_factors(chain, population.layout)
        self.buffer, self.scratch = torch.empty_like(full), scratch or Scratch()
        self.found: dict[int, Tail] = {0: tail_of(population, full, self.whole, self.whole)}
        self.widths: dict[int, int] = {}
        nothing = torch.zeros_like(full)
        self.found[chain.T] = tail_of(population, nothing, nothing[0], self.whole)
        self.first, self.first_width = nothing, chain.T
        """S of the first block of all, (M, P): chunks of its width leave out just this."""

    def walk(self, blocks: Iterable[LagBlock]) -> None:
        """Measure blocks that follow on one another; each is written down before the next one is asked for."""
        run = self.chain.links[0].run
        states = empty_parts((run.T, run.B), self.chain.sizes, run.dtype, run.device)
        for whole in states:
            whole.zero_()
        block, seen = None, 0
        for block, where, now in carried(self.chain, self.delta, blocks):
            for whole, part in zip(states, now, strict=True):
                whole[where] = part
            seen += 1
            if seen == block.width:
                if self._write(block, states) < NOTHING:
                    return
                for whole in states:
                    whole.zero_()
                seen = 0
        if block is not None and seen:
            self._write(block, states)

    def _write(self, block: LagBlock, states: State) -> float:
        """Write down the tail of a block from its cotangents at every state; its relative size."""
        visits, _ = step_back(
            self.chain, every(self.chain.T), states, carry=False, scratch=self.scratch
        )
        tail = self.buffer
        add_gradients(tail, self.rights, visits, fresh=True)
        window = min(block.window, self.chain.T - 1)
        self.found[window] = tail_of(self.population, tail, tail.sum(0), self.whole)
        self.widths[window] = block.width
        if block.start == 1 and self.first_width == self.chain.T:
            self.first, self.first_width = tail.clone(), block.width
        return self._bias(window)

    @property
    def settled(self) -> bool:
        """Whether the bias has fallen under `AIM`, as far as the windows measured so far tell: well under it, or twice.

        It may still rise again further back.
        """
        last = [self._bias(w) for w in sorted(self.widths)[-2:]]
        return bool(last) and (last[-1] <= AIM / 2 or (len(last) == 2 and max(last) <= AIM))

    def refine(self, may_take: Callable[[float], bool]) -> None:
        """Look closer, and closer each time, where the bias falls to `AIM` for good.

        may_take: whether walks of so many row-steps, in units of T times the sequences, may still be taken.
        """
        for fineness in (2, 4, 8):
            if not all(map(math.isfinite, map(self._bias, self.found))):
                return
            low, high, at = self._crossing()
            start = max(1, round(at / (1 + 0.5 / fineness)))
            block = LagBlock(start, max(1, start // fineness))
            if high - low <= 1 or not may_take(block.stop / block.width):
                return
            if self.widths.get(block.window, self.chain.T) > block.width:
                self.walk([block])

    def _crossing(self) -> tuple[int, int, float]:
        """The last window above `AIM`, the one measured after it, and where a straight logarithm between them falls."""
        windows = sorted(self.found)
        bias = {w: self._bias(w) for w in windows}
        low = max((w for w in windows if bias[w] > AIM), default=0)
        high = windows[windows.index(low) + 1]
        floor = max(bias[high], AIM * 1e-2)
        share = math.log(bias[low] / (0.95 * AIM)) / math.log(bias[low] / floor)
        return low, high, low + (high - low) * min(max(share, 0.0), 1.0)

    def _bias(self, window: int) -> float:
        """Relative to the gradient; NaN where that is zero."""
        return math.sqrt(float(self.found[window].squares[-1] / self.found[0].squares[-1]))
