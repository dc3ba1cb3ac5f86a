"""Features of past inputs against plain loops, and the screen against a known share."""

from __future__ import annotations

import math

import pytest
import torch
from need.shift_register import ShiftRegister, copy_batches, cross_entropy
from torch import Tensor

from rnndiag.recorder.need.chosen_layer import chosen_layer
from rnndiag.recorder.need.features import BAG, BILINEAR, LINEAR, SQUARE, Basis, Block, Rows
from rnndiag.recorder.need.grid import lag_groups, offered
from rnndiag.recorder.need.output_loss import OutputLoss, Sample
from rnndiag.recorder.need.screen import Screen


def samples(lag: int = 2, count: int = 3) -> list[Sample]:
    model, batches = ShiftRegister(2).eval(), copy_batches(lag, count, length=9, sequences=16)
    layer, _ = chosen_layer(model, cross_entropy, batches[0], None)
    loss = OutputLoss(model, cross_entropy, layer, 0)
    return [loss.sample(batch, number) for number, batch in enumerate(batches)]


def past(basis: Basis, sample: Sample, b: int, u: int) -> Tensor:
    """Whitened input, zero before the first step."""
    x = basis.inputs(sample.seen.inputs[b])
    return x[u] if u >= 0 else torch.zeros_like(x[0])


def test_lagged_features_are_those_of_a_loop_over_rows() -> None:
    found = samples()
    basis = Basis.of(found)
    rows = Rows(basis, found)
    linear = rows.lagged(Block(LINEAR, 4, 4))
    squares = rows.lagged(Block(SQUARE, 4, 4))
    bags = rows.lagged(Block(BAG, 2, 5))
    products = rows.lagged(Block(BILINEAR, 4, 4))
    row = 0
    for sample in found:
        for b, u in sample.active.nonzero().tolist():
            x = past(basis, sample, b, u - 4)
            assert torch.allclose(linear[row], x)
            pairs = torch.stack(
                [x[i] * x[j] - float(i == j) for i in range(len(x)) for j in range(i, len(x))]
            )
            expected = pairs if u >= 4 else torch.zeros_like(pairs)
            assert torch.allclose(squares[row], expected)
            summed = sum((past(basis, sample, b, u - d) for d in range(2, 6)), torch.zeros(()))
            assert torch.allclose(bags[row, : len(x)], summed / math.sqrt(4))
            assert torch.allclose(products[row], torch.outer(x, rows.multipliers[row]).flatten())
            row += 1
    assert row == len(rows)


def test_donor_is_another_sequence_with_the_same_present() -> None:
    found = samples()
    rows = Rows(Basis.of(found), found)
    donors = rows.donors()
    assert not bool((rows.owner[donors] == rows.owner).any())
    # Two symbols held for two steps: most rows have an exact double at nearly the same step.
    same = (rows.multipliers[donors] - rows.multipliers).norm(dim=1) < 1e-6
    assert float(same.double().mean()) > 0.9


@pytest.mark.parametrize("limit", [1, 3, 4, 6])
def test_groups_of_lags_are_cut_at_the_limit(limit: int) -> None:
    groups = lag_groups(9, [limit])
    assert [lag for group in groups for lag in group] == list(range(1, 10))
    assert any(group[0] == limit for group in groups)


def test_bag_of_a_group_does_not_cross_its_borders() -> None:
    for group in lag_groups(20, [3, 11]):
        assert all(group[0] <= block.low <= block.high <= group[-1] for block in offered(group))


def test_screen_explains_all_of_the_error_at_the_lag_of_the_task_and_nothing_elsewhere() -> None:
    found = samples(lag=4, count=6)
    rows = Rows(Basis.of(found), found)
    errors = torch.cat([sample.gradient[sample.active] for sample in found])
    screen = Screen(rows, errors)
    scores = {block: screen.score(block) for block in (Block(LINEAR, 4, 4), Block(LINEAR, 3, 3))}
    here, elsewhere = scores.values()
    assert here is not None
    assert elsewhere is not None
    assert here.explained == pytest.approx(1.0, abs=0.1)
    assert here.z > 10
    assert abs(elsewhere.z) < 3


def test_single_precision_of_a_large_screen_changes_no_score(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = samples(lag=4, count=4)
    rows = Rows(Basis.of(found), found)
    errors = torch.cat([sample.gradient[sample.active] for sample in found])
    block = Block(BILINEAR, 4, 4)
    double = Screen(rows, errors).score(block)
    monkeypatch.setattr("rnndiag.recorder.need.screen.SINGLE_FROM", 1)
    single = Screen(rows, errors).score(block)
    assert double is not None
    assert single is not None
    assert single.explained == pytest.approx(double.explained, abs=1e-3)
