"""Gradients of overlapping windows, each rerun from a kept state with the random draws of the plain pass.

A plain pass without gradients gives the state before every step. Sliding windows then run together on the batch axis,
or one by one if a step draws random numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rnndiag.engine.truncation.gradient_scale import scale_gradient
from rnndiag.errors import BadArgument, NotSupported
from rnndiag.train.nested import map_tensors, where_rows
from rnndiag.train.random_state import RandomState
from rnndiag.train.recurrence import Recurrence


class Sequence:
    """A sequence and the recurrence that runs over it, stretch by stretch."""

    def __init__(self, recurrence: Recurrence, inputs: Tensor, lengths: Tensor | None) -> None:
        self.recurrence, self.inputs, self.lengths = recurrence, inputs, lengths
        self.dim = recurrence.time_dim
        self.T, self.B = inputs.shape[self.dim], inputs.shape[1 - self.dim]

    def run(self, start: int, stop: int, state: Any) -> tuple[Tensor, Any]:
        """Steps start .. stop-1."""
        steps = self.inputs.narrow(self.dim, start, stop - start)
        lengths = self.lengths
        # If no sequence has ended, these are plain steps, also for a step without an initial state.
        if lengths is None or int(lengths.min()) >= stop:
            return self.recurrence.run(steps, state)
        if state is None:
            raise BadArgument(
                "Sequences of different lengths are unrolled from no initial state.",
                "Give the state at the start.",
            )
        if isinstance(getattr(self.recurrence, "module", None), nn.RNNBase):
            return self.recurrence.run(steps, state, (lengths - start).clamp(0, stop - start))
        outputs = []
        for t in range(start, stop):
            output, new = self.recurrence.run(self.inputs.narrow(self.dim, t, 1), state)
            state = where_rows(lengths > t, new, state, self.recurrence.batch_dim)
            outputs.append(output)
        return self.joined(outputs), state

    def joined(self, outputs: list[Tensor]) -> Tensor:
        """Outputs of consecutive stretches, concatenated."""
        return torch.cat(outputs, self.dim)


def overlapping_chunks(sequence: Sequence, state: Any, k1: int, k2: int) -> tuple[Tensor, Any]:
    """(k1, k2) truncation: the losses of every k1 steps reach the last k2 steps, which are rerun with the same
    draws."""
    before, draws, final = _plain_pass(sequence, state)
    outputs = []
    for stop in range(k1, sequence.T + k1, k1):
        begin, end = max(0, stop - k2), min(stop, sequence.T)
        first = stop - k1
        if begin > first:  # k2 < k1: steps before the cut give outputs without a gradient
            with torch.no_grad():
                outputs.append(_again(sequence, before, draws, first, min(begin, end)))
        if begin >= end:
            continue
        output = _again(sequence, before, draws, begin, end)
        skipped = max(0, first - begin)
        outputs.append(output.narrow(sequence.dim, skipped, end - begin - skipped))
    draws[-1].restore()
    return sequence.joined(outputs), final


def _plain_pass(sequence: Sequence, state: Any) -> tuple[list[Any], list[RandomState], Any]:
    """States before every step, the random state before every step and after the last, and the final state."""
    before, draws = [], []
    device = sequence.inputs.device
    with torch.no_grad():
        for t in range(sequence.T):
            before.append(state)
            draws.append(RandomState.now(device))
            _, state = sequence.run(t, t + 1, state)
    return before, [*draws, RandomState.now(device)], state


def _again(
    sequence: Sequence, before: list[Any], draws: list[RandomState], begin: int, end: int
) -> Tensor:
    """Outputs of steps begin .. end-1, rerun from the state before them with the draws of the plain pass."""
    if draws[0] == draws[-1]:  # no random numbers are drawn: one call suffices
        return sequence.run(begin, end, before[begin])[0]
    outputs, state = [], before[begin]
    for t in range(begin, end):
        draws[t].restore()
        output, state = sequence.run(t, t + 1, state)
        outputs.append(output)
    return sequence.joined(outputs)


def sliding_windows(
    sequence: Sequence, state: Any, weights: list[float], side_by_side: bool | None
) -> tuple[Tensor, Any]:
    """Every output from its own window of the last len(weights) states, lag d weighted by weights[d]."""
    tau, T = len(weights), sequence.T
    plain = all(weight == 1 for weight in weights)
    if tau >= T and plain:
        return sequence.run(0, T, state)
    before, draws, final = _plain_pass(sequence, state)
    draws_random = draws[0] != draws[-1]
    if side_by_side and draws_random:
        raise NotSupported(
            "The step draws random numbers (dropout), and windows side by side would draw others than the plain pass.",
            "Leave side_by_side out: each window is then run with the draws of the plain pass.",
        )
    if draws_random or side_by_side is False:
        outputs = [
            _one_window(sequence, before, draws, max(0, u - tau + 1), u, weights) for u in range(T)
        ]
        draws[-1].restore()
        return sequence.joined(outputs), final
    if sequence.dim == 1:
        inputs = sequence.inputs.transpose(0, 1)
    else:
        inputs = sequence.inputs
    if plain:
        head, _ = sequence.run(0, tau, state)
        tail = _rows(sequence, inputs, before, range(tau, T), weights)
        return sequence.joined([head, tail]), final
    if before[0] is None:
        before[0] = sequence.recurrence.start(sequence.inputs)
    if before[0] is None:
        raise BadArgument(
            "Weighted windows of the first steps start from no state.", "Give an initial state."
        )
    return _rows(sequence, inputs, before, range(T), weights), final


def _one_window(
    sequence: Sequence,
    before: list[Any],
    draws: list[RandomState],
    begin: int,
    u: int,
    weights: list[float],
) -> Tensor:
    """The output at step u, from the state before step `begin`."""
    if all(weight == 1 for weight in weights):
        output = _again(sequence, before, draws, begin, u + 1)
        last: Tensor = output.narrow(sequence.dim, u - begin, 1)
        return last
    state = before[begin]
    for t in range(begin, u + 1):
        draws[t].restore()
        if t > begin:
            state = scale_gradient(state, weights[u - t + 1] / weights[u - t])
        output, state = sequence.run(t, t + 1, state)
    return scale_gradient(output, weights[0])


def _rows(
    sequence: Sequence, inputs: Tensor, before: list[Any], ends: range, weights: list[float]
) -> Tensor:
    """Outputs at steps `ends`, each the last step of its own window: all windows are steps of one enlarged batch.

    inputs (T, B, ...). Windows that begin before the sequence stay in its initial state until it starts.
    """
    recurrence, tau, B = sequence.recurrence, len(weights), sequence.B
    count = len(ends)

    def side_by_side(*parts: Tensor) -> Tensor:
        return torch.cat(parts, recurrence.batch_dim(parts[0]))

    starts = [before[max(0, u - tau + 1)] for u in ends]
    rows = map_tensors(side_by_side, starts[0], *starts[1:])
    steps = torch.arange(ends.start, ends.stop, device=inputs.device)
    plain, whole = all(weight == 1 for weight in weights), ends.start >= tau - 1
    lengths = sequence.lengths
    if plain and whole and lengths is None:
        at = torch.stack([steps - tau + 1 + j for j in range(tau)])
        stacked = inputs[at].flatten(1, 2)  # (τ, windows * B, ...)
        if sequence.dim == 1:
            stacked = stacked.transpose(0, 1)
        output, _ = recurrence.run(stacked, rows)
        output = output.select(sequence.dim, tau - 1)
    else:
        for j in range(tau):
            at, lag = steps - tau + 1 + j, tau - 1 - j
            if lag + 1 < tau:
                rows = scale_gradient(rows, weights[lag + 1] / weights[lag])
            x = inputs[at.clamp(min=0)].flatten(0, 1).unsqueeze(sequence.dim)
            output, new = recurrence.run(x, rows)
            output = output.select(sequence.dim, 0)
            alive = (at >= 0).repeat_interleave(B)
            if lengths is not None:
                alive &= (at[:, None] < lengths.to(at.device)).flatten()
            rows = where_rows(alive, new, rows, recurrence.batch_dim)
        output = scale_gradient(output, weights[0])
    output = output.unflatten(0, (count, B))
    swapped: Tensor = output.transpose(0, 1) if sequence.dim == 1 else output
    return swapped
