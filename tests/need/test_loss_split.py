"""The split of a change of the loss over sequences, against losses that are known sequence by sequence."""

from __future__ import annotations

import pytest
import torch
from need.shift_register import IGNORED, ShiftRegister, copy_batches, cross_entropy
from torch.nn import functional

from rnndiag.recorder.need.chosen_layer import chosen_layer
from rnndiag.recorder.need.loss_split import split_loss
from rnndiag.recorder.need.output_loss import OutputLoss


@pytest.mark.parametrize("size", [0.1, 1.0, 5.0])
def test_shares_are_the_changes_of_the_losses_of_the_sequences(size: float) -> None:
    model, (batch,) = ShiftRegister(3, read=1, scale=1.0).eval(), copy_batches(2, 1)
    layer, _ = chosen_layer(model, cross_entropy, batch, None)
    loss = OutputLoss(model, cross_entropy, layer, 0)
    sample = loss.sample(batch, 0)
    generator = torch.Generator().manual_seed(3)
    after = sample.outputs + size * torch.randn(sample.outputs.shape, generator=generator)
    ends = loss.value(sample, sample.outputs), loss.value(sample, after)
    split = split_loss(loss, sample, sample.outputs, after, ends, least=1e-3)

    def by_sequence(outputs: torch.Tensor) -> torch.Tensor:
        logits = model.head(outputs).double()
        terms = functional.cross_entropy(
            logits.transpose(1, 2), batch["y"], ignore_index=IGNORED, reduction="none"
        )
        return terms.sum(1) / (batch["y"] != IGNORED).sum()

    with torch.no_grad():
        expected = by_sequence(sample.outputs) - by_sequence(after)
    assert torch.allclose(split.shares.sum(1), expected, atol=0.02 * float(expected.abs().max()))
    assert float(split.shares.sum()) == pytest.approx(ends[0] - ends[1], rel=1e-6)
    assert split.gap <= 0.01
