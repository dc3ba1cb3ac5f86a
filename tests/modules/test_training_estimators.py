"""Training estimators: the same forward pass, and the gradient that the definition says, summed from pairs (u, s)."""

from itertools import product

import pytest
import torch

from lightning_modules.cells import CELLS
from lightning_modules.recurrence.kernel import Kernel
from lightning_modules.regularisation import Regularisation
from lightning_modules.training import ESTIMATORS
from lightning_modules.wirings import WIRINGS, Plan
from rnndiag.errors import BadArgument

T, B, I, H = 6, 2, 3, 4


def recurrence_of(cell, layers=1):
    plan = Plan(I, H, layers, 2, False, CELLS[cell], Regularisation())
    return WIRINGS["stack"].make(plan, "stack").double()


def setting(cell="elman_tanh", layers=1, steps=T):
    torch.manual_seed(0)
    recurrence = recurrence_of(cell, layers)
    inputs = torch.randn(steps, B, I, dtype=torch.double)
    weights = torch.randn(steps, B, H, dtype=torch.double)
    return recurrence, inputs, weights


def gradient(estimator, recurrence, inputs, weights, last=False, lengths=None):
    """The flat gradient of Σ weights * outputs."""
    recurrence.zero_grad()
    outputs, _ = estimator(recurrence, inputs, None, lengths, last)
    loss = (outputs[-1] * weights[-1]).sum() if last else (outputs * weights).sum()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in recurrence.parameters()])


def pairs(recurrence, inputs, weights):
    """(u, s) -> what the loss at output u sends to the weights through step s: each step has its own copy of them."""
    copies = [
        {
            name: value.detach().clone().requires_grad_()
            for name, value in recurrence.named_parameters()
        }
        for _ in inputs
    ]
    state, losses = None, []
    for step, copy in enumerate(copies):
        one = inputs[step : step + 1]
        output, state = torch.func.functional_call(recurrence, copy, (one, state))
        losses.append((output[0] * weights[step]).sum())
    table = {}
    for u, loss in enumerate(losses):
        for s in range(u + 1):
            grads = torch.autograd.grad(loss, list(copies[s].values()), retain_graph=True)
            table[u, s] = torch.cat([grad.flatten() for grad in grads])
    return table


def kept(table, keep):
    return sum(value for (u, s), value in table.items() if keep(u, s))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["elman_tanh", "lstm", "gru", "peephole_lstm"])
@pytest.mark.parametrize("tau", [1, 2, 4, 6, 9])
def test_window_keeps_the_last_tau_states(cell, layers, tau):
    recurrence, inputs, weights = setting(cell, layers)
    window = ESTIMATORS.build({"name": "window", "tau": tau})
    expected = kept(pairs(recurrence, inputs, weights), lambda u, s: u - s < tau)
    torch.testing.assert_close(gradient(window, recurrence, inputs, weights), expected)


@pytest.mark.parametrize("tau", [1, 3, 6])
def test_window_with_one_loss_at_the_end(tau):
    recurrence, inputs, weights = setting("lstm")
    window = ESTIMATORS.build({"name": "window", "tau": tau})
    table = pairs(recurrence, inputs, weights)
    expected = kept(table, lambda u, s: u == T - 1 and u - s < tau)
    torch.testing.assert_close(gradient(window, recurrence, inputs, weights, last=True), expected)


@pytest.mark.parametrize("k", [1, 2, 4, 6, 7])
@pytest.mark.parametrize("cell", ["elman_relu", "lstm", "coupled_lstm"])
def test_chunks_keep_pairs_within_a_chunk(cell, k):
    recurrence, inputs, weights = setting(cell, 2)
    chunked = ESTIMATORS.build({"name": "chunked", "k": k})
    expected = kept(pairs(recurrence, inputs, weights), lambda u, s: u // k == s // k)
    torch.testing.assert_close(gradient(chunked, recurrence, inputs, weights), expected)


def test_bernoulli_keeps_and_weighs_by_its_mask_and_its_mean_is_the_full_gradient(monkeypatch):
    recurrence, inputs, weights = setting("gru", steps=5)
    p = 0.7
    estimator = ESTIMATORS.build({"name": "bernoulli", "p": p})
    table = pairs(recurrence, inputs, weights)
    mean = 0.0
    for mask in product([True, False], repeat=4):
        draws = torch.tensor([0.0] + [0.0 if keep else 0.9 for keep in mask])
        monkeypatch.setattr(torch, "rand", lambda *size, draws=draws, **kwargs: draws)
        draw = gradient(estimator, recurrence, inputs, weights)
        expected = sum(value / p ** (u - s) for (u, s), value in table.items() if all(mask[s:u]))
        torch.testing.assert_close(draw, expected)
        mean = mean + draw * p ** sum(mask) * (1 - p) ** (4 - sum(mask))
    torch.testing.assert_close(mean, kept(table, lambda u, s: True))


def test_bernoulli_per_sequence_draws_a_mask_for_each(monkeypatch):
    recurrence, inputs, weights = setting()
    asked = []
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, **kw: asked.append(size) or rand(*size, **kw))
    for per_sequence in (False, True):
        estimator = ESTIMATORS.build({"name": "bernoulli", "p": 0.5, "per_sequence": per_sequence})
        gradient(estimator, recurrence, inputs, weights)
    assert asked == [(T,), (T, B)]


@pytest.mark.parametrize("last", [False, True])
def test_uniform_weighs_source_steps_and_its_mean_is_the_full_gradient(last, monkeypatch):
    recurrence, inputs, weights = setting("lstm", 2)
    estimator = ESTIMATORS.build("uniform")
    table = pairs(recurrence, inputs, weights)
    asked = {pair: value for pair, value in table.items() if not last or pair[0] == T - 1}
    mean = 0.0
    for point in range(1, T + 1):
        drawn = torch.tensor([point])
        monkeypatch.setattr(torch, "randint", lambda *size, drawn=drawn, **kwargs: drawn)
        draw = gradient(estimator, recurrence, inputs, weights, last)
        expected = sum(v * T / (s + 1) for (u, s), v in asked.items() if point <= s + 1)
        torch.testing.assert_close(draw, expected)
        mean = mean + draw / T
    torch.testing.assert_close(mean, kept(asked, lambda u, s: True))


def test_cell_only_goes_back_through_c_alone():
    recurrence, inputs, weights = setting("lstm")
    got = gradient(ESTIMATORS.build("cell_only"), recurrence, inputs, weights)
    parameters = dict(recurrence.rnn.named_parameters())
    w_ih, w_hh = parameters["weight_ih_l0"], parameters["weight_hh_l0"]
    bias = parameters["bias_ih_l0"] + parameters["bias_hh_l0"]
    h, c, loss = torch.zeros(B, H).double(), torch.zeros(B, H).double(), 0.0
    for step in range(T):
        z = inputs[step] @ w_ih.T + h.detach() @ w_hh.T + bias
        i, f, g, o = z.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        loss = loss + (h * weights[step]).sum()
    grads = torch.autograd.grad(loss, list(recurrence.parameters()))
    torch.testing.assert_close(got, torch.cat([grad.flatten() for grad in grads]))


def test_cell_only_needs_a_cell():
    recurrence, inputs, _ = setting("gru")
    with pytest.raises(BadArgument, match="needs a cell state c"):
        ESTIMATORS.build("cell_only")(recurrence, inputs)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "full"])
def test_two_directions_cannot_be_cut_in_time(name):
    plan = Plan(I, H, 1, 2, False, CELLS["lstm"], Regularisation())
    recurrence = WIRINGS["bidirectional"].make(plan, "bidirectional")
    assert isinstance(recurrence, Kernel)
    with pytest.raises(BadArgument, match="both directions"):
        ESTIMATORS.build(name)(recurrence, torch.randn(T, B, I))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_forward_pass_is_that_of_full_bptt(name):
    recurrence, inputs, _ = setting("lstm", 2, steps=25)
    expected, state = recurrence(inputs)
    outputs, after = ESTIMATORS.build(name)(recurrence, inputs)
    torch.testing.assert_close(outputs, expected)
    for one, two in zip(after, state, strict=True):
        torch.testing.assert_close(one, two)


def test_carried_goes_on_where_the_last_batch_stopped_and_starts_anew_after_a_reset():
    recurrence, inputs, _ = setting("lstm")
    carried = ESTIMATORS.build("carried")
    first, _ = carried(recurrence, inputs[:3])
    second, _ = carried(recurrence, inputs[3:])
    torch.testing.assert_close(torch.cat([first, second]), recurrence(inputs)[0])
    leaf = inputs[:3].clone().requires_grad_()
    carried.reset()
    carried(recurrence, leaf)
    after, _ = carried(recurrence, inputs[3:])
    assert torch.autograd.grad(after.sum(), leaf, allow_unused=True) == (None,)
