"""Unrolling a recurrence with a truncated or randomized gradient.

The forward pass is always the plain one; what comes back is the estimator's gradient. It is the gradient that
`rnndiag.estimate` scores: the same estimators, the same conventions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnndiag.engine.truncation.estimators import Chunk, Full, Window
from rnndiag.engine.truncation.gradient_scale import scale_gradient
from rnndiag.errors import BadArgument, NotSupported
from rnndiag.train.between_steps import between_steps
from rnndiag.train.nested import detached, map_tensors
from rnndiag.train.random_state import RandomState
from rnndiag.train.recurrence import Recurrence, Step, recurrence_of


@runtime_checkable
class ReachesBack(Protocol):
    """An estimator that lets every loss reach a number of states, each lag with a weight."""

    def lag_factors(self, T: int, draw: torch.Generator | None = None) -> Tensor:
        """(τ,): the weight of every lag that is kept."""
        ...


def chunks_of(inputs: Tensor, size: int, dim: int = 0) -> Iterator[Tensor]:
    """Consecutive chunks of `size` steps of a sequence; the last one may be shorter."""
    if size < 1:
        raise BadArgument(f"The chunk size is {size}.", "Give 1 or more.")
    yield from inputs.split(size, dim)


def unroll(
    module: nn.Module | Step,
    inputs: Tensor | PackedSequence,
    state: Any = None,
    estimator: Any = None,
    *,
    lengths: Tensor | None = None,
    last_only: bool = False,
    generator: torch.Generator | None = None,
    side_by_side: bool | None = None,
) -> tuple[Any, Any]:
    """Run a recurrence over a sequence; the backward pass is the estimator's.

    Args:
        module: nn.RNN, nn.LSTM or nn.GRU, one of their cells, a step (x_t, state) -> (output, state), or a
            `SequenceModule`.
        inputs: (T, B, ...), or (B, T, ...) for a module with `batch_first`; for torch's layers also a PackedSequence.
        state: Initial state. None: as the module does without one.
        estimator: Full(), Window(τ), Chunk(k1, k2), Bernoulli(p or artbp(n)), Uniform(), SourceStep(K), Roulette(p) or
            CellOnly() of `rnndiag.estimators`. None: Full().
        lengths: (B,) steps of every sequence where they differ. A sequence that has ended keeps its state.
        last_only: Only the last output has a loss. Window then costs one pass: the last τ steps have a graph.
        generator: Source of the estimator's draws. None: torch's global generator.
        side_by_side: Run all windows of Window and Roulette side by side on the batch axis, which needs τ steps in
            place of T τ; rows of the batch must not see one another. None: where a step draws no random numbers. A
            step that draws (dropout) is run window by window with the draws of the plain forward pass.

    Returns:
        Outputs in the layout of the inputs, and the state after each sequence's last step. Where windows overlap
        (Window, Roulette, Chunk(k1, k2)) that state is detached.

    Raises:
        BadArgument: A net in both directions cannot be cut in time.
        NotSupported: The estimator is no rule to unroll by, such as Clip.

    Example:
        >>> outputs, state = rnndiag.train.unroll(lstm, inputs, estimator=rnndiag.estimators.Window(20))
    """
    estimator = estimator or Full()
    recurrence = recurrence_of(module)
    if isinstance(inputs, PackedSequence):
        return _packed(module, inputs, state, estimator, generator, side_by_side)
    if isinstance(estimator, Full):
        return recurrence.run(inputs, state, lengths)
    if not recurrence.causal:
        raise BadArgument(
            f"The estimator {estimator.label!r} cuts the sequence in time, and this recurrence runs through it in "
            "both directions.",
            "Use Full(), or a recurrence in one direction.",
        )
    if lengths is not None and state is None:
        state = recurrence.start(inputs)
    sequence = _Sequence(recurrence, inputs, lengths)
    if isinstance(estimator, Window) and last_only and lengths is None:
        return _last_window(sequence, state, estimator.tau)
    if isinstance(estimator, Chunk):
        if estimator.back == estimator.k1:
            return _chunks(sequence, state, estimator.k1)
        return _overlapping(sequence, state, estimator.k1, estimator.back)
    if isinstance(estimator, ReachesBack):
        factors = estimator.lag_factors(sequence.T, generator)
        return _windows(sequence, state, factors.tolist(), side_by_side)
    try:
        rule = between_steps(
            estimator,
            sequence.T,
            batch=sequence.B,
            generator=generator,
            parts=recurrence.parts,
            batch_dim=recurrence.batch_dim,
        )
    except NotSupported:
        raise NotSupported(
            f"{estimator.label} is not a rule to unroll by.",
            "Clip the gradient after the backward pass instead.",
        ) from None
    outputs = []
    for t in range(sequence.T):
        output, state = sequence.run(t, t + 1, rule.state(t, state))
        outputs.append(rule.output(t, output))
    return sequence.joined(outputs), rule.final(state)


def truncated_unroll(
    step: Step | nn.Module,
    inputs: Tensor,
    state: Any,
    estimator: Any = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Any]:
    """`unroll` of a step function or module; the name of version 0.1.

    Args:
        step: (x_t, state) -> (output, state).
        inputs: (T, B, ...).
        state: Initial state.
        estimator: See `unroll`.
        generator: Source of the draws.

    Returns:
        Outputs (T, B, ...) and the final state.
    """
    return unroll(step, inputs, state, estimator, generator=generator)


class _Sequence:
    """A sequence and what runs over it, stretch by stretch."""

    def __init__(self, recurrence: Recurrence, inputs: Tensor, lengths: Tensor | None) -> None:
        self.recurrence, self.inputs, self.lengths = recurrence, inputs, lengths
        self.dim = recurrence.time_dim
        self.T, self.B = inputs.shape[self.dim], inputs.shape[1 - self.dim]

    def run(self, start: int, stop: int, state: Any) -> tuple[Tensor, Any]:
        """Steps start .. stop-1."""
        steps = self.inputs.narrow(self.dim, start, stop - start)
        lengths = self.lengths
        if lengths is None:
            return self.recurrence.run(steps, state)
        if (
            int(lengths.min()) >= stop
        ):  # nobody has ended: plain steps, also for a step without a start
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
            state = self.hold(lengths > t, new, state)
            outputs.append(output)
        return self.joined(outputs), state

    def hold(self, alive: Tensor, new: Any, old: Any) -> Any:
        """`new` for the sequences that are alive, `old` for the others."""
        return _where(self.recurrence, alive, new, old)

    def joined(self, outputs: list[Tensor]) -> Tensor:
        """Stretches one after another."""
        return torch.cat(outputs, self.dim)


def _where(recurrence: Recurrence, rows: Tensor, new: Any, old: Any) -> Any:
    def choose(fresh: Tensor, kept: Tensor) -> Tensor:
        shape = [1] * fresh.dim()
        shape[recurrence.batch_dim(fresh)] = -1
        return fresh.where(rows.to(fresh.device).view(shape), kept)

    return map_tensors(choose, new, old)


def _chunks(sequence: _Sequence, state: Any, k: int) -> tuple[Tensor, Any]:
    outputs = []
    for start in range(0, sequence.T, k):
        before = state if start == 0 else detached(state)
        output, state = sequence.run(start, min(start + k, sequence.T), before)
        outputs.append(output)
    return sequence.joined(outputs), state


def _last_window(sequence: _Sequence, state: Any, tau: int) -> tuple[Tensor, Any]:
    if tau >= sequence.T:
        return sequence.run(0, sequence.T, state)
    with torch.no_grad():
        early, before = sequence.run(0, sequence.T - tau, state)
    late, after = sequence.run(sequence.T - tau, sequence.T, before)
    return sequence.joined([early, late]), after


def _overlapping(sequence: _Sequence, state: Any, k1: int, k2: int) -> tuple[Tensor, Any]:
    """(k1, k2): the losses of every k1 steps reach the last k2 steps, which are run again with the same draws."""
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


def _plain_pass(sequence: _Sequence, state: Any) -> tuple[list[Any], list[RandomState], Any]:
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
    sequence: _Sequence, before: list[Any], draws: list[RandomState], begin: int, end: int
) -> Tensor:
    """Outputs of steps begin .. end-1, run again from the state before them with the draws of the plain pass."""
    if draws[0] == draws[-1]:  # nothing is drawn: one call
        return sequence.run(begin, end, before[begin])[0]
    outputs, state = [], before[begin]
    for t in range(begin, end):
        draws[t].restore()
        output, state = sequence.run(t, t + 1, state)
        outputs.append(output)
    return sequence.joined(outputs)


def _windows(
    sequence: _Sequence, state: Any, weights: list[float], side_by_side: bool | None
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
    sequence: _Sequence,
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
    sequence: _Sequence, inputs: Tensor, before: list[Any], ends: range, weights: list[float]
) -> Tensor:
    """Outputs at steps `ends`, each at the end of a window of its own: one row of windows, all steps side by side.

    inputs (T, B, ...). Windows that begin before the sequence does wait in its initial state.
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
            rows = _where(recurrence, alive, new, rows)
        output = scale_gradient(output, weights[0])
    output = output.unflatten(0, (count, B))
    swapped: Tensor = output.transpose(0, 1) if sequence.dim == 1 else output
    return swapped


def _packed(
    module: Any,
    inputs: PackedSequence,
    state: Any,
    estimator: Any,
    generator: torch.Generator | None,
    side_by_side: bool | None,
) -> tuple[PackedSequence, Any]:
    """Padded, unrolled with lengths, and packed again in the same order."""
    if isinstance(estimator, Full):
        output, after = module(inputs, state)
        return output, after
    if not isinstance(module, nn.RNNBase):
        raise BadArgument(
            "Packed sequences are for torch's layers.", "Pad them and give their lengths."
        )
    padded, lengths = pad_packed_sequence(inputs, batch_first=module.batch_first)
    outputs, after = unroll(
        module,
        padded,
        state,
        estimator,
        lengths=lengths,
        generator=generator,
        side_by_side=side_by_side,
    )
    packed = pack_padded_sequence(
        outputs, lengths, batch_first=module.batch_first, enforce_sorted=False
    )
    return packed, after
