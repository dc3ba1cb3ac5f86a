"""What a lag sweep looks at: which sequences, which losses, which lags; chosen to fit a budget, and said in words.

The cost is counted in row-steps: one loss of one sequence moved back one step. A plain training step makes T * B of
them. The constants below were measured on a CPU with benchmarks/truncation.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.errors import BadArgument

ROW_COST = 0.6
"""A row-step of the sweep, gradients included, over a row-step of a plain training step."""
LAG_COST = 60.0
"""What a lag costs whatever its size, in row-steps of a plain training step."""
STEP_COST = 24.0
"""What a time step of a plain training step costs whatever its size, in row-steps."""
WINDOW_COST = 150.0
"""What writing down one window costs, in row-steps of a plain training step."""
LEAST_OUTPUTS = 16
"""Losses are sampled first, down to this number: another sequence tells more than the next loss of the same one."""
LEAST_SEQUENCES = 8
"""Sequences are halved next, not below this number."""
LEAST_BY_TURNS = 16
"""The same where every output has other sequences: twice as many halve the error, and take little more time."""
DENSE_WINDOWS = 8
"""Gradients are measured for every window up to this one, then for windows growing by `WINDOW_GROWTH`."""
WINDOW_GROWTH = 1.08
LEFT_OUT = 5e-3
"""A sampled sweep ends where at most this share of the credit lies further back, were it to fall no more."""
LEAST_BLOCKED = 2.0
"""From this budget on windows are measured on the whole batch; below it, on the sampled rows."""
CREDIT_SHARE = 0.1
"""The profile's share of the budget where windows are measured apart from it."""
SMALL_SECONDS = 0.15
"""What takes about this long as a whole is not worth sampling."""


@dataclass(frozen=True)
class Sampling:
    """What was looked at, of how much."""

    sequences: tuple[int, ...]
    """The sequences looked at; where `blocked`, as many at each output step, but others."""
    of_sequences: int
    outputs: int
    """Output steps with a loss that were looked at."""
    of_outputs: int
    windows: tuple[int, ...]
    """The windows τ = 1 .. D whose gradients were measured."""
    lags: int
    """D: lags 0 .. D-1 were measured."""
    of_lags: int
    may_stop: bool = False
    """Whether the sweep ends where less than `LEFT_OUT` of the credit can lie further back."""
    ended: bool = False
    """Whether it did end there."""
    widths: tuple[int, ...] = ()
    """To within how many steps each of `windows` is known, where they were measured apart from the rows; or empty."""

    blocked: bool = False
    """Whether windows are measured on the whole batch, apart from the rows of the profile."""

    def stopped(self, lags: int) -> Sampling:
        """The same, of a sweep that ended after so many lags."""
        if self.blocked:
            return replace(self, lags=lags, ended=True)
        windows = tuple(w for w in self.windows if w < lags)
        return replace(self, lags=lags, windows=(*windows, lags), ended=True)

    def with_windows(self, widths: dict[int, int]) -> Sampling:
        """The same, with windows of all sequences and losses, each known to within so many steps."""
        windows = tuple(sorted(widths))
        return replace(self, windows=windows, widths=tuple(widths[w] for w in windows))

    @property
    def with_every_loss(self) -> Sampling:
        """The same, with every loss of every sequence followed."""
        return replace(self, sequences=tuple(range(self.of_sequences)), outputs=self.of_outputs)

    @property
    def windows_complete(self) -> bool:
        """Whether every sequence and every loss counts in the windows."""
        return self.complete or self.blocked

    @property
    def complete(self) -> bool:
        """Whether every sequence and every loss was looked at."""
        return len(self.sequences) == self.of_sequences and self.outputs == self.of_outputs

    @property
    def numbers(self) -> tuple[int, int, int, int, int, int]:
        """Sequences of all, outputs of all, lags of all."""
        return (
            len(self.sequences),
            self.of_sequences,
            self.outputs,
            self.of_outputs,
            self.lags,
            self.of_lags,
        )

    @property
    def sentence(self) -> str:
        """What was sampled, and how much."""
        said = []
        sequences = f"{len(self.sequences)} of {self.of_sequences} sequences"
        outputs = f"{self.outputs} of {self.of_outputs} output steps"
        fewer = len(self.sequences) < self.of_sequences, self.outputs < self.of_outputs
        if self.blocked and any(fewer):
            said.append(f"{sequences} at each of {outputs}")
        else:
            said += [what for what, less in zip((sequences, outputs), fewer, strict=True) if less]
        if self.lags < self.of_lags:
            beyond = f", beyond which lies less than {LEFT_OUT:.1%} of the credit"
            said.append(f"lags 0 to {self.lags - 1} of {self.of_lags}{beyond * self.ended}")
        if self.widths:
            said.append(
                f"gradients of {len(self.windows)} windows of {self.of_lags}, of all sequences and losses"
                f"{self._how_closely}"
            )
        elif len(self.windows) < self.lags:
            said.append(f"gradients of {len(self.windows)} windows of {self.lags}")
        return "Sampled: " + ", ".join(said) + "." if said else "Nothing was sampled: exact."

    @property
    def _how_closely(self) -> str:
        """To within what share of its length each window is known that was measured by a block of lags."""
        pairs = list(zip(self.widths, self.windows, strict=True))
        first = [width for width, window in pairs if width >= window]
        others = [width / window for width, window in pairs if width < window]
        known = (
            f", each known to within {max(others):.0%} of its length or better" if others else ""
        )
        return known + (f", but for the first, of lags 1 to {max(first)}" if first else "")


def spaced_windows(lags: int) -> tuple[int, ...]:
    """Windows 1 .. D, dense at first and then growing by a constant factor; the last is D."""
    found, window = list(range(1, min(lags, DENSE_WINDOWS) + 1)), float(DENSE_WINDOWS)
    while found[-1] < lags:
        window = max(window * WINDOW_GROWTH, found[-1] + 1)
        found.append(min(int(window), lags))
    return tuple(found)


def sweep_cost(
    chain: Chain, steps: Tensor, outputs: int, sequences: int, lags: int, windows: int
) -> float:
    """A sweep over so many of the output steps `steps` and sequences, in plain training steps of these layers."""
    share = outputs / max(1, len(steps))
    rows = float((steps + 1).clamp(max=lags).sum()) * share * sequences
    total = ROW_COST * rows + LAG_COST * lags + WINDOW_COST * windows
    total += chain.T * (sequences + STEP_COST)
    return total / (chain.T * (chain.B + STEP_COST))


def seconds(chain: Chain, steps: Tensor, sequences: int, lags: int) -> float:
    """Roughly how long a sweep over everything takes on one core of a CPU."""
    rows = float((steps + 1).clamp(max=lags).sum()) * sequences
    weights = sum(w.numel() for link in chain.links for w in link.run.weights.values())
    return lags * len(chain.links) * 5e-4 + rows * weights * 4 / 40e9


def choose(
    chain: Chain,
    lags: int,
    budget: float | None,
    samples: int | tuple[int, ...] | None,
    anchors: int | None,
    draw: torch.Generator,
) -> Sampling:
    """The sampling that fits `budget` plain training steps (None: look at everything); what is given by hand stands."""
    steps = chain.outputs().any(1).nonzero().squeeze(1)
    given = len(samples) if isinstance(samples, tuple) else samples
    _check("samples", given)
    _check("anchors", anchors)
    sequences = chain.B if given is None else min(given, chain.B)
    outputs = len(steps) if anchors is None else min(anchors, len(steps))
    windows = tuple(range(1, lags + 1))
    limit = float("inf") if budget is None else budget

    def too_much() -> bool:
        return sweep_cost(chain, steps, outputs, sequences, lags, len(windows)) > limit

    may_stop = too_much() and seconds(chain, steps, sequences, lags) > SMALL_SECONDS
    blocked = may_stop and given is None and anchors is None and limit >= LEAST_BLOCKED
    if not may_stop:
        limit = float("inf")
    elif blocked:
        limit, windows = limit * CREDIT_SHARE, ()
    else:
        windows = spaced_windows(lags)
    while too_much() and anchors is None and outputs > LEAST_OUTPUTS:
        outputs = max(LEAST_OUTPUTS, int(outputs * 0.9))
    least = LEAST_SEQUENCES
    if blocked:  # few outputs want the more sequences
        least = LEAST_BY_TURNS * max(1, LEAST_OUTPUTS // max(1, outputs))
    while too_much() and given is None and sequences >= 2 * least:
        sequences //= 2
    if isinstance(samples, tuple):
        chosen = samples
    else:
        chosen = tuple(sorted(torch.randperm(chain.B, generator=draw)[:sequences].tolist()))
    return Sampling(
        chosen,
        chain.B,
        outputs,
        len(steps),
        windows,
        lags,
        chain.T,
        may_stop=may_stop,
        blocked=blocked,
    )


def _check(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise BadArgument(f"{name} is {value}.", "Give a number of 1 or more, or None.")


@dataclass(frozen=True)
class Sampled:
    """The chain as it was sampled."""

    chain: Chain
    weights: Tensor | None
    """(T,): what every loss was multiplied with, 0 where it was left out; None: losses were not sampled."""


def sample(chain: Chain, sampling: Sampling, draw: torch.Generator) -> Sampled:
    """The sampled sequences with the sampled losses: one loss drawn from each of equal stretches of the outputs.

    Each stands for its stretch, so sums over losses are unbiased.
    """
    taken = chain
    if sampling.sequences != tuple(range(chain.B)):
        taken = chain.select(sampling.sequences)
    if sampling.outputs == sampling.of_outputs:
        return Sampled(taken.prepared(), None)
    like, (steps, width) = chain.direct[0], drawn_steps(chain.outputs(), sampling.outputs, draw)
    weights = torch.zeros(chain.T, dtype=like.dtype)
    weights[steps] = width.to(like.dtype)
    weights = weights.to(like.device)
    direct = tuple(part * weights[:, None, None] for part in taken.direct)
    return Sampled(taken.with_direct(direct).prepared(), weights)


def drawn_steps(hit: Tensor, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """One of each of `count` equal stretches of the output steps with a loss, (T, B), and how long its stretch is."""
    steps = hit.any(1).nonzero().squeeze(1).cpu()
    bounds = torch.linspace(0, len(steps), count + 1).round().long()
    width = bounds[1:] - bounds[:-1]
    offset = (torch.rand(len(width), generator=draw) * width).long()
    return steps[bounds[:-1] + offset], width
