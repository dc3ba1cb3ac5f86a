"""The registry of cells: a user adds one in a few lines, and a module of no registered cell runs as it is."""

from __future__ import annotations

import pytest
import torch
from reference import relative
from reference import unroll as unroll_by_hand
from torch import Tensor, nn

from rnndiag.engine.adjoints import adjoints
from rnndiag.engine.cells import CELLS, Cell, binding_of, find_cell, module_cell, register_cell
from rnndiag.engine.contributions import contribution_norms, contributions
from rnndiag.engine.unroll import unroll
from rnndiag.errors import BadArgument

T, B, I, H = 6, 3, 2, 4


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnndiag.engine.cells.registry.CELLS", dict(CELLS))
    monkeypatch.setattr("rnndiag.engine.cells.registry._BINDINGS", {})


@pytest.mark.usefixtures("own_registry")
def test_a_user_registers_a_cell_in_under_15_lines() -> None:
    # a minimal gated unit: one forget gate f and a candidate g
    def mgu(a_ih: Tensor, a_hh: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        f_ih, g_ih = a_ih.chunk(2, -1)
        f_hh, g_hh = a_hh.chunk(2, -1)
        f = torch.sigmoid(f_ih + f_hh)
        return ((1 - f) * state[0] + f * torch.tanh(g_ih + f * g_hh),)

    cell = register_cell(Cell("mgu", ("h",), ("f", "g"), mgu, elementwise=True))

    weights = {
        "weight_ih": torch.randn(2 * H, I, dtype=torch.float64),
        "weight_hh": torch.randn(2 * H, H, dtype=torch.float64),
    }
    inputs, direct = torch.randn(T, B, I).double(), torch.randn(T, B, H).double()
    run = unroll(cell, weights, inputs, (direct,))

    def by_hand(w: dict[str, Tensor], x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        a, r = x @ w["weight_ih"].T, state[0] @ w["weight_hh"].T
        f = torch.sigmoid(a[:, :H] + r[:, :H])
        return ((1 - f) * state[0] + f * torch.tanh(a[:, H:] + f * r[:, H:]),)

    leaves = {key: value.clone().requires_grad_() for key, value in weights.items()}
    outputs, _, tape = unroll_by_hand(by_hand, leaves, inputs, run.initial)
    (outputs * direct).sum().backward()
    assert relative(adjoints(run).state, tape.adjoints()[0]) <= 1e-12
    for key in weights:
        assert relative(contributions(run, key), tape.contributions(key)) <= 1e-12


class Residual(nn.Module):
    """A step of no registered form: h + 0.5 tanh(MLP(x, h)), with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(I + H, 5)
        self.down = nn.Linear(5, H, bias=False)
        self.register_buffer("gain", torch.tensor(0.5))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return h + self.gain * torch.tanh(self.down(torch.relu(self.up(torch.cat([x, h], -1)))))


def test_a_module_of_no_registered_form_runs_as_it_is() -> None:
    torch.manual_seed(0)
    module = Residual().double()
    cell = module_cell(module, ("h",), lambda f, x, state: (f(x, state[0]),))
    weights = {name: p.detach() for name, p in module.named_parameters()}
    inputs, direct = torch.randn(T, B, I).double(), torch.randn(T, B, H).double()
    initial = (torch.randn(B, H).double(),)
    lengths = [6, 2, 4]
    run = unroll(cell, weights, inputs, (direct,), initial, torch.tensor(lengths))

    def by_hand(w: dict[str, Tensor], x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = torch.relu(torch.cat([x, state[0]], -1) @ w["up.weight"].T + w["up.bias"])
        return (state[0] + 0.5 * torch.tanh(hidden @ w["down.weight"].T),)

    leaves = {key: value.clone().requires_grad_() for key, value in weights.items()}
    x = inputs.clone().requires_grad_()
    outputs, _, tape = unroll_by_hand(by_hand, leaves, x, initial, lengths)
    (outputs * direct).sum().backward()
    adj = adjoints(run)
    keep = run.mask()[..., None]
    assert relative(adj.state, tape.adjoints()[0] * keep) <= 1e-12
    assert adj.a_ih is None
    assert relative(adj.inputs(), x.grad) <= 1e-12
    norms = contribution_norms(adj)
    for key in weights:
        expected = tape.contributions(key)
        assert relative(contributions(run, key), expected) <= 1e-12
        assert relative(norms[key].norm, expected.flatten(1).norm(dim=1)) <= 1e-12
        assert relative(norms[key].total, expected.sum(0)) <= 1e-12


def test_names_are_unique_and_a_wrong_one_is_answered_with_a_near_one() -> None:
    with pytest.raises(BadArgument, match="registered already"):
        register_cell(Cell("lstm", ("h",), ("h",), lambda a, r, s: (a + r,)))
    with pytest.raises(BadArgument, match="Did you mean 'lstm'"):
        find_cell("lsmt")
    with pytest.raises(ValueError, match="either"):
        Cell("nothing", ("h",))


@pytest.mark.usefixtures("own_registry")
def test_a_module_class_is_bound_by_an_attribute_or_by_registration() -> None:
    class Mine(nn.Module):
        rnndiag_cell = "peephole_lstm"

    class Other(nn.Module):
        pass

    found = binding_of(Mine())
    assert found is not None
    assert found.cell is find_cell("peephole_lstm")
    assert binding_of(Other()) is None
    register_cell(find_cell("gru"), module=Other, weights={"weight_hh": "U"})
    bound = binding_of(Other())
    assert bound is not None
    assert bound.cell.name == "gru"
    assert bound.weights == {"weight_hh": "U"}
