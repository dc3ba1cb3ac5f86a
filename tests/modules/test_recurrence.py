"""Recurrences: steps written here against torch's layers and formulas, lengths, directions, states."""

import pytest
import torch
from torch import nn

from lightning_modules.cells import CELLS
from lightning_modules.recurrence import BothDirections, Chain, Stepped
from lightning_modules.recurrence.recurrence import reversed_within
from lightning_modules.regularisation import Regularisation
from lightning_modules.wirings import WIRINGS, Plan

OWN = [name for name in WIRINGS if WIRINGS[name].own_step]
STACKED = [name for name in WIRINGS if not WIRINGS[name].own_step]


def plan(cell="lstm", layers=1):
    entry = None if cell is None else CELLS[cell]
    return Plan(3, 5, layers, 4, True, entry, Regularisation())


def every_recurrence():
    cases = [("stack", cell, 2) for cell in CELLS]
    cases += [(wiring, "lstm", 2) for wiring in STACKED if wiring != "stack"]
    cases += [(wiring, "peephole_lstm", 2) for wiring in STACKED]
    return cases + [(wiring, None, 1) for wiring in OWN]


@pytest.mark.parametrize(("wiring", "cell", "layers"), every_recurrence())
def test_shapes_states_and_lengths(wiring, cell, layers):
    torch.manual_seed(0)
    recurrence = WIRINGS[wiring].make(plan(cell, layers), wiring).double()
    inputs = torch.randn(7, 4, 3, dtype=torch.double)
    outputs, state = recurrence(inputs)
    assert outputs.shape == (7, 4, recurrence.features)
    assert len(state) == len(recurrence.parts)
    vector = torch.randn(4, recurrence.state_size, dtype=torch.double)
    for mine, theirs in zip(recurrence.state_from(vector), state, strict=True):
        assert mine.shape == theirs.shape
        assert mine.shape[recurrence.batch_dim] == 4
    zeros, _ = recurrence(inputs, recurrence.initial(inputs, 4))
    torch.testing.assert_close(zeros, outputs)
    lengths = torch.tensor([7, 3, 5, 1])
    some, ends = recurrence(inputs, None, lengths)
    for sequence, length in enumerate(lengths.tolist()):
        alone, end = recurrence(inputs[:length, sequence : sequence + 1])
        torch.testing.assert_close(some[:length, sequence], alone[:, 0])
        for part, own in zip(ends, end, strict=True):
            got = part.select(recurrence.batch_dim, sequence)
            torch.testing.assert_close(got, own.select(recurrence.batch_dim, 0))


@pytest.mark.parametrize(
    ("wiring", "cell", "layers"),
    [case for case in every_recurrence() if case[0] != "bidirectional"],
)
def test_in_pieces_as_in_one(wiring, cell, layers):
    torch.manual_seed(0)
    recurrence = WIRINGS[wiring].make(plan(cell, layers), wiring).double()
    assert recurrence.causal
    inputs = torch.randn(6, 2, 3, dtype=torch.double)
    whole, end = recurrence(inputs)
    first, state = recurrence(inputs[:4])
    second, last = recurrence(inputs[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    for one, two in zip(last, end, strict=True):
        torch.testing.assert_close(one, two)
    layers_h = recurrence.layer_states(end)
    assert all(h.shape[0] == 2 for h in layers_h)


def test_a_coupled_lstm_is_an_lstm_whose_input_gate_is_one_minus_f():
    torch.manual_seed(0)
    step = CELLS["coupled_lstm"].step(3, 5)
    x, h, c = torch.randn(2, 3), torch.randn(2, 5), torch.randn(2, 5)
    f, g, o = (x @ step.weight_ih.T + step.bias_ih + h @ step.weight_hh.T + step.bias_hh).chunk(
        3, -1
    )
    expected = f.sigmoid() * c + (1 - f.sigmoid()) * g.tanh()
    out, cell = step(x, (h, c))
    torch.testing.assert_close(cell, expected)
    torch.testing.assert_close(out, o.sigmoid() * expected.tanh())


def test_a_peephole_lstm_without_peepholes_is_torchs_lstm():
    torch.manual_seed(0)
    step = CELLS["peephole_lstm"].step(3, 5)
    for name in ("i", "f", "o"):
        nn.init.zeros_(getattr(step, f"peephole_{name}"))
    torchs = nn.LSTM(3, 5)
    torchs.load_state_dict(
        {f"{key}_l0": value for key, value in step.state_dict().items() if "peephole" not in key}
    )
    inputs = torch.randn(6, 2, 3)
    torch.testing.assert_close(Stepped(step)(inputs)[0], torchs(inputs)[0])


def test_the_output_gates_peephole_sees_the_new_cell():
    torch.manual_seed(0)
    step = CELLS["peephole_lstm"].step(3, 2)
    with torch.no_grad():
        for parameter in step.parameters():
            parameter.zero_()
        step.bias_ih[4:6] = 1.0
        step.peephole_o.fill_(3.0)
    h, c = step(torch.zeros(1, 3), (torch.zeros(1, 2), torch.zeros(1, 2)))
    expected = 0.5 * torch.tensor(1.0).tanh()
    torch.testing.assert_close(c[0, 0], expected)
    torch.testing.assert_close(h[0, 0], (3 * expected).sigmoid() * expected.tanh())


def test_the_lectures_gru_resets_before_the_matrix_and_swaps_z():
    torch.manual_seed(0)
    step = CELLS["lecture_gru"].step(3, 4)
    x, h = torch.randn(2, 3), torch.randn(2, 4)
    a, b = x @ step.weight_ih.T + step.bias_ih, h @ step.weight_hh.T + step.bias_hh
    r, z = (a[:, :4] + b[:, :4]).sigmoid(), (a[:, 4:8] + b[:, 4:]).sigmoid()
    n = (a[:, 8:] + (r * h) @ step.weight_hn.T).tanh()
    torch.testing.assert_close(step(x, (h,))[0], (1 - z) * h + z * n)


def test_the_linear_recurrences_adjoint_is_a_power_of_the_matrix():
    torch.manual_seed(0)
    step = CELLS["linear"].step(3, 4).double()
    inputs = torch.randn(6, 1, 3, dtype=torch.double)
    start = torch.zeros(1, 4, dtype=torch.double, requires_grad=True)
    outputs, _ = Stepped(step)(inputs, (start,))
    error = torch.randn(4, dtype=torch.double)
    (adjoint,) = torch.autograd.grad((outputs[-1, 0] * error).sum(), start)
    closed = torch.linalg.matrix_power(step.weight_hh.detach().T, 6) @ error
    torch.testing.assert_close(adjoint[0], closed)


def test_two_step_modules_make_torchs_bidirectional_layer():
    torch.manual_seed(0)
    steps = [CELLS["peephole_lstm"].step(3, 4) for _ in range(2)]
    torchs = nn.LSTM(3, 4, bidirectional=True)
    state = {}
    for suffix, step in zip(("", "_reverse"), steps, strict=True):
        for name in ("i", "f", "o"):
            nn.init.zeros_(getattr(step, f"peephole_{name}"))
        weights = {key: value for key, value in step.state_dict().items() if "peephole" not in key}
        state |= {f"{key}_l0{suffix}": value for key, value in weights.items()}
    torchs.load_state_dict(state)
    inputs = torch.randn(5, 2, 3)
    both = BothDirections(*(Stepped(step) for step in steps))
    torch.testing.assert_close(both(inputs)[0], torchs(inputs)[0])


def test_turning_round_within_lengths_twice_changes_nothing():
    sequence, lengths = torch.randn(6, 3, 2), torch.tensor([6, 2, 4])
    turned = reversed_within(sequence, lengths)
    assert torch.equal(reversed_within(turned, lengths), sequence)
    assert torch.equal(turned[:2, 1], sequence[:2, 1].flip(0))
    assert torch.equal(turned[2:, 1], sequence[2:, 1])


def test_bypass_connects_the_input_to_every_layer_and_every_layer_to_the_output():
    recurrence = WIRINGS["bypass"].make(plan("gru", 3), "bypass")
    assert isinstance(recurrence, Chain)
    assert [layer.rnn.input_size for layer in recurrence.layers] == [3, 8, 8]
    assert recurrence.features == 15


def test_slow_groups_move_less():
    torch.manual_seed(0)
    recurrence = WIRINGS["groups"].make(plan(None), "groups")
    outputs, _ = recurrence(torch.randn(50, 8, 3))
    steps = (outputs[1:] - outputs[:-1]).abs().mean((0, 1)).view(3, 5).mean(1)
    assert steps[0] > 2 * steps[1] > 4 * steps[2]


def test_a_jordan_net_remembers_nothing_but_its_output():
    torch.manual_seed(0)
    recurrence = WIRINGS["output_to_hidden"].make(plan(None), "output_to_hidden")
    assert recurrence.is_readout
    inputs = torch.randn(3, 1, 3)
    outputs, _ = recurrence(inputs)
    again, _ = recurrence(inputs[2:], (outputs[1],))
    torch.testing.assert_close(again, outputs[2:])
