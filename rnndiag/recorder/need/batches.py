"""Selects the batches that `memory_need` uses, and splits their sequences into fit, validation and test."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rnndiag.errors import BadArgument
from rnndiag.recorder.need.output_loss import OutputLoss, Sample

BATCHES, ROWS = 12, 30_000
"""Reading stops at BATCHES batches if they hold enough sequences and ROWS outputs with a loss; ..."""
BATCHES_OF_FEW_ROWS = 24
"""... with fewer outputs up to this many batches are read: small needs take more data, which is cheap then."""
MOST_BATCHES = 48
SEQUENCES, SEQUENCES_ONE_OUTPUT = 384, 512
"""Number of sequences at which reading may stop; larger if the loss reads one output per sequence."""
FIT, VALIDATION = 0.4, 0.15
"""Shares of the sequences for fitting and for choosing skips; the rest is for testing."""
WHOLE_BATCHES = 6
"""With at least this many batches whole batches are assigned; with fewer, each is split by sequences."""

Parts = tuple[list[Sample], list[Sample], list[Sample]]


def read_samples(loss: OutputLoss, batches: Iterable[Any]) -> list[Sample]:
    """Record batches until there are enough; batches without any loss at this layer are skipped."""
    samples: list[Sample] = []
    sequences = rows = 0
    for number, batch in enumerate(batches):
        sample = loss.sample(batch, number)
        _refuse_not_finite(sample)
        _refuse_copy(sample, samples)
        if not bool(sample.active.any()):
            continue
        samples.append(sample)
        sequences += sample.batch_size
        one_output = int(sample.active.sum()) <= 2 * sample.batch_size
        enough = SEQUENCES_ONE_OUTPUT if one_output else SEQUENCES
        rows += int(sample.active.sum())
        fewest = BATCHES if rows >= ROWS else BATCHES_OF_FEW_ROWS
        if len(samples) >= MOST_BATCHES or (len(samples) >= fewest and sequences >= enough):
            break
    if not samples:
        raise BadArgument(
            "No batch gave the layer's outputs a gradient.", "Give at least one batch with a loss."
        )
    return samples


def _refuse_not_finite(sample: Sample) -> None:
    """Raise if a sample is not finite: one such number would spoil every mean over sequences."""
    seen, valid = sample.seen, sample.seen.valid
    parts = {
        "the loss": torch.tensor(sample.loss),
        "the layer's inputs": seen.inputs[valid],
        "the layer's states": seen.states[valid],
        "the gradient of the loss": sample.gradient[valid],
    }
    for what, values in parts.items():
        if not bool(values.isfinite().all()):
            raise BadArgument(
                f"In batch {sample.number} (counted from 0) {what} is not finite.",
                "Leave such batches out, or mend the model first if its weights are not finite.",
            )


def _refuse_copy(sample: Sample, others: list[Sample]) -> None:
    """Raise if a sequence occurs twice: fitting and testing on the same sequence would show needs that do not exist."""
    for other in others:
        if (
            torch.equal(sample.gradient, other.gradient)
            and torch.equal(sample.seen.inputs, other.seen.inputs)
            and bool(sample.gradient.any())
        ):
            raise BadArgument(
                f"Batches {other.number} and {sample.number} (counted from 0) are the same.",
                "Give batches of different sequences: some are fitted to, the others test.",
            )


def divide(samples: list[Sample], seed: int, block: int) -> Parts:
    """Split into fit, validation and test: by whole batches if there are enough of them, else by sequences.

    Blocks of `block` consecutive sequences stay together.
    """
    if len(samples) >= WHOLE_BATCHES:
        first = max(1, round(FIT * len(samples)))
        second = first + max(1, round(VALIDATION * len(samples)))
        return samples[:first], samples[first:second], samples[second:]
    parts: Parts = ([], [], [])
    generator = torch.Generator().manual_seed(seed)
    for sample in samples:
        n = sample.batch_size
        blocks = math.ceil(n / block)
        # Overlapping sequences are divided in their order, so that only two borders are shared.
        order = torch.arange(blocks) if block > 1 else torch.randperm(blocks, generator=generator)
        first, second = round(FIT * blocks), round((FIT + VALIDATION) * blocks)
        for part, chosen in zip(
            parts, (order[:first], order[first:second], order[second:]), strict=True
        ):
            member = torch.isin(torch.arange(n) // block, chosen)
            if bool(member.any()):
                divided = sample.of_sequences(member.nonzero().squeeze(1))
                if bool(divided.active.any()):
                    part.append(divided)
    return parts


def overlap_of(inputs: Tensor) -> int:
    """Number of consecutive sequences that share inputs; 1 if they are not overlapping windows of one series.

    Args:
        inputs: (B, T, I) of one batch, in the order of the data set.
    """
    n, length, _ = inputs.shape
    if n < 3:
        return 1
    for shift in range(1, length):
        kept = length - shift
        if kept < 2:
            break
        if torch.equal(inputs[:-1, shift:], inputs[1:, :kept]):
            return math.ceil(length / shift)
    return 1
