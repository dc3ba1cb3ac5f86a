"""USE: how many of the last inputs does the trained net use?

L(d) - L is the rise of the loss if an output is recomputed from the last d inputs only. The run of d steps needs an
initial state that holds nothing of the sequence. No state is neutral, so the smallest rise over three is taken (zeros,
the mean state at that time, another sequence's state at that time), and the running minimum over d: each is a loss that
this net achieved from d inputs, so the rise is an upper bound on the cost of forgetting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.recorder.need.layer_output import State
from rnndiag.recorder.need.loss_split import LEAST_SPLIT, split_loss
from rnndiag.recorder.need.output_loss import OutputLoss, Sample

OUTPUTS = 8
"""Number of active steps per sequence that are recomputed."""
STARTS = ("zero", "mean", "swap")
SHARE_OF_PEAK = 0.1
"""The used memory is the smallest d whose rise is at most this share of the peak."""
SPLIT_TOLERANCE, SPLIT_NODES = 0.1, 4
"""Accuracy of splitting a rise over sequences, which is used for its interval only: the rise itself is measured."""
FORGOTTEN = 0.01
"""Two states count as equal if they differ by less than this share of the difference between sequences."""


@dataclass(frozen=True)
class Rise:
    """The rise of the loss when only the last `inputs` inputs are used, one value per sequence."""

    inputs: int
    per_sequence: Tensor
    start: str
    """The kind of initial state with the smallest rise."""

    @property
    def mean(self) -> float:
        """The mean rise."""
        return float(self.per_sequence.mean())


@dataclass(frozen=True)
class Drawn:
    """Outputs of one sample to recompute: sequences b, steps u, and how many active steps each represents."""

    b: Tensor
    u: Tensor
    weight: Tensor
    """(B,) active steps that each recomputed one represents."""


class MemoryUse:
    """Rises of the loss by number of inputs, measured on demand.

    Args:
        loss: The loss as a function of the outputs.
        samples: Batches to measure on.
        seed: Seed of the choice of steps.
    """

    def __init__(self, loss: OutputLoss, samples: Sequence[Sample], seed: int) -> None:
        self._loss, self._samples = loss, samples
        generator = torch.Generator().manual_seed(seed)
        self._drawn = [_draw(sample, generator) for sample in samples]
        self._rises: dict[int, Rise] = {}
        self.longest = max(int(drawn.u.max()) + 1 for drawn in self._drawn)
        """Number of inputs before the latest output; with as many inputs nothing is cut off."""

    def rise(self, inputs: int) -> Rise:
        """The rise when only the last `inputs` inputs are used."""
        if inputs not in self._rises:
            self._rises[inputs] = self._measure(inputs)
        return self._rises[inputs]

    def curve(self) -> list[Rise]:
        """Measured rises by number of inputs; a smaller rise at fewer inputs replaces larger ones at more."""
        found: list[Rise] = []
        for inputs in sorted(self._rises):
            rise = self._rises[inputs]
            if found and found[-1].mean < rise.mean:
                rise = Rise(inputs, found[-1].per_sequence, found[-1].start)
            found.append(rise)
        return found

    def search(self) -> None:
        """Measure at 1, 2, 4, ... and bisect where the rise falls below `SHARE_OF_PEAK` of the peak."""
        inputs = 1
        while inputs < self.longest:
            self.rise(inputs)
            inputs *= 2
        self.rise(self.longest)
        peak = max(rise.mean for rise in self.curve())
        if peak <= 0:
            return
        while True:
            low = max((r.inputs for r in self.curve() if r.mean > SHARE_OF_PEAK * peak), default=0)
            high = min(r.inputs for r in self.curve() if r.inputs > low)
            if high - low <= 1:
                return
            self.rise((low + high) // 2)

    def _measure(self, inputs: int) -> Rise:
        """The rise from the last `inputs` inputs, with the kind of initial state for which the loss is smallest."""
        changed = [
            self._outputs_of(s, d, inputs) for s, d in zip(self._samples, self._drawn, strict=True)
        ]
        if all(one is None for one in changed):
            size = sum(len(s.sequences) for s in self._samples)
            return Rise(inputs, torch.zeros(size, dtype=torch.float64), STARTS[0])
        values = {
            start: [
                s.loss if one is None else self._loss.value(s, one[start])
                for s, one in zip(self._samples, changed, strict=True)
            ]
            for start in STARTS
        }
        best = min(STARTS, key=lambda start: sum(values[start]))
        found = []
        for sample, drawn, one, value in zip(
            self._samples, self._drawn, changed, values[best], strict=True
        ):
            if one is None:
                found.append(torch.zeros(len(sample.sequences), dtype=torch.float64))
                continue
            split = split_loss(
                self._loss,
                sample,
                sample.outputs,
                one[best],
                (sample.loss, value),
                LEAST_SPLIT * abs(sample.loss),
                SPLIT_TOLERANCE,
                SPLIT_NODES,
            )
            rise = -split.shares.sum(1) * sample.batch_size * drawn.weight
            found.append(rise[sample.sequences].cpu())
        return Rise(inputs, torch.cat(found), best)

    def _outputs_of(self, sample: Sample, drawn: Drawn, inputs: int) -> dict[str, Tensor] | None:
        """Outputs with the drawn ones recomputed from the last inputs, by kind of initial state; None: nothing is
        cut off."""
        first = drawn.u - inputs + 1
        cut = first > 0  # otherwise the run covers the whole past
        if not bool(cut.any()):
            return None
        b, u, first = drawn.b[cut], drawn.u[cut], first[cut]
        steps = first.unsqueeze(1) + torch.arange(inputs, device=first.device)
        windows = sample.seen.inputs[b.unsqueeze(1), steps]
        starts = _start_states(sample, b, first - 1)
        stacked = tuple(torch.cat(part, 1) for part in zip(*starts, strict=True))
        new = self._loss.layer.last_output(windows.repeat(len(STARTS), 1, 1), stacked)
        self._loss.plain_steps += len(STARTS) * len(b) * inputs / (3 * sample.active.numel())
        found = {}
        for start, values in zip(STARTS, new.chunk(len(STARTS)), strict=True):
            changed = sample.outputs.clone()
            changed[b, u] = values
            found[start] = changed
        return found


def _draw(sample: Sample, generator: torch.Generator) -> Drawn:
    """Draw up to `OUTPUTS` random active steps of every sequence."""
    active = sample.active.cpu()
    order = torch.rand(active.shape, generator=generator).masked_fill(~active, -1.0)
    steps = order.argsort(1, descending=True)[:, :OUTPUTS]
    kept = active.gather(1, steps)
    b, place = kept.nonzero(as_tuple=True)
    count = kept.sum(1).clamp(min=1)
    weight = active.sum(1).double() / count
    device = sample.active.device
    return Drawn(b.to(device), steps[b, place].to(device), weight.to(device))


def _start_states(sample: Sample, b: Tensor, time: Tensor) -> list[State]:
    """Initial states for runs that begin after step `time`, in the order of STARTS; parts are (layers, n, size)."""
    seen, size = sample.seen, sample.batch_size
    live = seen.valid.T  # (T, B)
    others = live[time].clone()
    others[torch.arange(len(b), device=b.device), b] = False
    # The next sequence that is long enough; if there is none, the sequence itself.
    turn = (torch.arange(size, device=b.device).unsqueeze(0) - b.unsqueeze(1)) % size
    nearest = turn.double().masked_fill(~others, torch.inf).argmin(1)
    other = torch.where(others.any(1), nearest, b)
    zero, mean, swap = [], [], []
    for history in seen.history:  # (T, layers, B, size)
        weight = (live / live.sum(1, keepdim=True).clamp(min=1)).to(history.dtype)
        average = torch.einsum("tlbs,tb->tls", history, weight)[time].transpose(0, 1)
        zero.append(torch.zeros_like(average))
        mean.append(average)
        swap.append(history[time, :, other].transpose(0, 1))
    return [tuple(zero), tuple(mean), tuple(swap)]


def burn_in(loss: OutputLoss, samples: Sequence[Sample]) -> int:
    """Steps after which a run from another sequence's last state equals the recorded one, in 95 % of sequences."""
    last: list[Tensor] = []
    for sample in samples:
        seen = sample.seen
        if sample.batch_size < 2:
            continue
        start = tuple(part[-1].roll(1, 1) for part in seen.history)
        # the recorded states may hold c after h: h is as wide as what one step returns
        size = loss.layer.hidden_states(seen.inputs[:, :1], None).shape[-1]
        recorded = seen.states[..., :size]
        gap = (loss.layer.hidden_states(seen.inputs, start) - recorded).norm(dim=-1)
        between = (recorded - recorded.roll(1, 0)).norm(dim=-1).mean()
        apart = gap > FORGOTTEN * between
        steps = torch.arange(1, apart.shape[1] + 1, device=apart.device)
        last.append((apart * steps).amax(1))
        loss.plain_steps += 1 / 3  # a forward pass alone
    if not last:
        return 0
    return int(torch.cat(last).double().quantile(0.95).ceil())
