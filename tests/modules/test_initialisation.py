"""How weights start: each gate's block by its rule, and the gate that keeps the state held open."""

import pytest
import torch

from lightning_modules.cells import CELLS
from lightning_modules.initialisation import Initialisation
from lightning_modules.regularisation import Regularisation
from lightning_modules.wirings import WIRINGS, Plan


def recurrence_of(cell, layers=1, **options):
    torch.manual_seed(0)
    plan = Plan(3, 6, layers, 4, True, CELLS[cell], Regularisation())
    recurrence = WIRINGS["stack"].make(plan, "stack")
    Initialisation.of(options).apply(recurrence, CELLS[cell])
    return recurrence


def weights(recurrence, kind):
    named = recurrence.named_parameters()
    return [weight.detach() for name, weight in named if name.rpartition(".")[2].startswith(kind)]


@pytest.mark.parametrize("cell", CELLS)
def test_every_block_of_the_recurrent_matrix_is_orthogonal(cell):
    recurrence = recurrence_of(cell, 2, hidden="orthogonal", hidden_gain=0.5)
    for weight in weights(recurrence, "weight_hh") + weights(recurrence, "weight_hn"):
        for block in weight.split(6):
            torch.testing.assert_close(block @ block.T, 0.25 * torch.eye(6))


@pytest.mark.parametrize("cell", ["elman_relu", "lstm"])
def test_identity(cell):
    for block in weights(recurrence_of(cell, hidden="identity"), "weight_hh")[0].split(6):
        assert torch.equal(block, torch.eye(6))


def test_the_irnn_starts_as_a_sum_of_its_inputs():
    start = CELLS["irnn"].initialisation
    recurrence = recurrence_of("irnn", **start)
    with torch.no_grad():
        weights(recurrence, "weight_ih")[0].abs_()
    inputs = torch.rand(5, 1, 3)
    outputs, _ = recurrence(inputs)
    torch.testing.assert_close(outputs[-1], inputs.sum(0) @ weights(recurrence, "weight_ih")[0].T)


@pytest.mark.parametrize(
    ("cell", "carried"),
    [("lstm", 1), ("coupled_lstm", 1), ("peephole_lstm", 1), ("gru", 0), ("lecture_gru", 0)],
)
def test_an_open_keeping_gate_keeps_the_state(cell, carried):
    recurrence = recurrence_of(cell, bias="zero", forget_bias=20.0)
    state = recurrence.state_from(torch.rand(2, recurrence.state_size))
    for weight in weights(recurrence, "weight"):
        torch.nn.init.normal_(weight, std=0.01)
    _, after = recurrence(torch.randn(1, 2, 3), state)
    change = (after[carried] - state[carried]).abs().max()
    assert change < 0.6 if cell in ("lstm", "peephole_lstm") else change < 1e-4


def test_the_whole_forget_bias_stands_in_the_first_bias():
    recurrence = recurrence_of("lstm", forget_bias=1.5)
    first, second = weights(recurrence, "bias")
    assert (first[6:12] == 1.5).all()
    assert (second[6:12] == 0.0).all()
    assert (first[:6].abs() < 1.0).all()


def test_xavier_and_normal_have_the_spread_of_one_gates_block():
    torch.manual_seed(0)
    plan = Plan(100, 100, 1, 4, True, CELLS["lstm"], Regularisation())
    recurrence = WIRINGS["stack"].make(plan, "stack")
    Initialisation(input="xavier", hidden="normal", hidden_gain=2.0).apply(
        recurrence, CELLS["lstm"]
    )
    assert float(weights(recurrence, "weight_ih")[0].std()) == pytest.approx(0.1, rel=0.02)
    assert float(weights(recurrence, "weight_hh")[0].std()) == pytest.approx(0.2, rel=0.02)
