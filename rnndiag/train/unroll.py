"""Unrolls a recurrence with a truncated or randomized gradient.

The forward pass is always the plain one; the backward pass gives the estimator's gradient, which equals the one that
`rnndiag.estimate` scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnndiag.engine.truncation.estimators import Chunk, Full, Window
from rnndiag.errors import BadArgument, NotSupported
from rnndiag.recorder.replay.unrolled import as_recorded
from rnndiag.train.between_steps import between_steps
from rnndiag.train.nested import detached
from rnndiag.train.recurrence import Recurrence, Step, recurrence_of
from rnndiag.train.windows import Sequence, overlapping_chunks, sliding_windows


@runtime_checkable
class ReachesBack(Protocol):
    """An estimator in which every loss reaches a number of states, with a weight per lag."""

    def lag_factors(self, T: int, draw: torch.Generator | None = None) -> Tensor:
        """(τ,): weight of every lag that is kept."""


def chunks_of(inputs: Tensor, size: int, dim: int = 0) -> Iterator[Tensor]:
    """Consecutive chunks of a sequence.

    Args:
        inputs: The sequence.
        size: Number of steps of a chunk.
        dim: Dimension of time.

    Returns:
        The chunks in order; the last one may be shorter.
    """
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
    """Run a recurrence over a sequence, with the estimator's gradient in the backward pass.

    Args:
        module: nn.RNN, nn.LSTM or nn.GRU, one of their cells, a step (x_t, state) -> (output, state), or a
            `SequenceModule`.
        inputs: (T, B, ...), or (B, T, ...) for a module with `batch_first`; for torch's layers also a PackedSequence.
        state: Initial state. None: the module's default.
        estimator: Full(), Window(τ), Chunk(k1, k2), Bernoulli(p or artbp(n)), Uniform(), SourceStep(K), Roulette(p) or
            CellOnly() of `rnndiag.estimators`. None: Full().
        lengths: (B,) number of steps of every sequence, if they differ. A sequence that has ended keeps its state.
        last_only: Only the last output has a loss. Window then costs one pass: the last τ steps have a graph.
        generator: Source of the estimator's draws. None: torch's global generator.
        side_by_side: Run all windows of Window and Roulette side by side on the batch axis, which needs τ steps in
            place of T τ; rows of the batch must be independent. None: where a step draws no random numbers. A
            step that draws (dropout) is run window by window with the draws of the plain forward pass.

    Returns:
        Outputs in the layout of the inputs, and the state after each sequence's last step. Where windows overlap
        (Window, Roulette, Chunk(k1, k2)) that state is detached.

    Raises:
        BadArgument: A net in both directions cannot be cut in time.
        NotSupported: The estimator cannot be applied step by step, as Clip cannot.

    Example:
        >>> outputs, state = rnndiag.train.unroll(lstm, inputs, estimator=rnndiag.estimators.Window(20))
    """
    estimator = estimator or Full()
    if not hasattr(estimator, "label"):
        raise BadArgument(
            f"The estimator is {estimator!r}.",
            "Give one of rnndiag.estimators, such as Window(20).",
        )
    recurrence = recurrence_of(module)
    _require_shapes(inputs, lengths, recurrence.time_dim)
    if isinstance(inputs, PackedSequence):
        return _packed(module, inputs, state, estimator, generator, side_by_side)
    if isinstance(estimator, Full):
        return recurrence.run(inputs, state, lengths)

    def run() -> tuple[Any, Any]:
        options = lengths, last_only, generator, side_by_side
        return _estimated(recurrence, inputs, state, estimator, *options)

    def run_whole(module: nn.Module, inputs: Tensor, state: Any) -> tuple[Any, Any]:
        return recurrence_of(module).run(inputs, state, lengths)

    valid = None
    if lengths is not None:
        valid = torch.arange(inputs.shape[recurrence.time_dim])[:, None] < lengths.cpu()
        valid = (valid if recurrence.time_dim == 0 else valid.T).to(inputs.device)
    return as_recorded(module, (inputs, state), estimator, run, run_whole, valid)


def _require_shapes(inputs: Any, lengths: Tensor | None, time_dim: int) -> None:
    if not isinstance(inputs, Tensor | PackedSequence):
        raise BadArgument(
            f"The inputs are a {type(inputs).__name__}.", "Give a tensor or a PackedSequence."
        )
    if lengths is None or isinstance(inputs, PackedSequence):
        return
    batch = inputs.shape[1 - time_dim]
    if lengths.shape != (batch,):
        raise BadArgument(
            f"lengths has the shape {tuple(lengths.shape)} beside {batch} sequences.",
            "Give one length a sequence.",
        )


def _estimated(
    recurrence: Recurrence,
    inputs: Tensor,
    state: Any,
    estimator: Any,
    lengths: Tensor | None,
    last_only: bool,
    generator: torch.Generator | None,
    side_by_side: bool | None,
) -> tuple[Any, Any]:
    """The sequence with the estimator's gradient."""
    if not recurrence.causal:
        raise BadArgument(
            f"The estimator {estimator.label!r} cuts the sequence in time, and this recurrence runs through it in "
            "both directions.",
            "Use Full(), or a recurrence in one direction.",
        )
    if lengths is not None and state is None:
        state = recurrence.start(inputs)
    sequence = Sequence(recurrence, inputs, lengths)
    if isinstance(estimator, Window) and last_only and lengths is None:
        return _last_window(sequence, state, estimator.tau)
    if isinstance(estimator, Chunk):
        if estimator.back == estimator.k1:
            return _chunks(sequence, state, estimator.k1)
        return overlapping_chunks(sequence, state, estimator.k1, estimator.back)
    if isinstance(estimator, ReachesBack):
        factors = estimator.lag_factors(sequence.T, generator)
        return sliding_windows(sequence, state, factors.tolist(), side_by_side)
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
            f"A sequence cannot be unrolled with {estimator.label}.",
            "Clip the gradients of the weights after the backward pass instead.",
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

    Example:
        >>> cell = nn.GRUCell(3, 5)
        >>> step = lambda x, h: (cell(x, h),) * 2
        >>> window = rnndiag.estimators.Window(4)
        >>> outputs, last = rnndiag.truncated_unroll(step, batch, torch.zeros(4, 5), window)
        >>> outputs.shape
        torch.Size([12, 4, 5])
    """
    return unroll(step, inputs, state, estimator, generator=generator)


def _chunks(sequence: Sequence, state: Any, k: int) -> tuple[Tensor, Any]:
    outputs = []
    for start in range(0, sequence.T, k):
        before = state if start == 0 else detached(state)
        output, state = sequence.run(start, min(start + k, sequence.T), before)
        outputs.append(output)
    return sequence.joined(outputs), state


def _last_window(sequence: Sequence, state: Any, tau: int) -> tuple[Tensor, Any]:
    if tau >= sequence.T:
        return sequence.run(0, sequence.T, state)
    with torch.no_grad():
        early, before = sequence.run(0, sequence.T - tau, state)
    late, after = sequence.run(sequence.T - tau, sequence.T, before)
    return sequence.joined([early, late]), after


def _packed(
    module: Any,
    inputs: PackedSequence,
    state: Any,
    estimator: Any,
    generator: torch.Generator | None,
    side_by_side: bool | None,
) -> tuple[PackedSequence, Any]:
    """Unroll a packed sequence: pad, run with lengths, and pack again in the same order."""
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
