"""Numbers at the edge of a precision, units that are not finite, and cells and modules of unusual forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from reference import STEPS, draw_state, draw_weights, relative
from reference import unroll as unroll_by_hand
from torch import Tensor, nn

import rnndiag
from rnndiag.engine import adjoints as adjoints_file
from rnndiag.engine.adjoints import adjoints
from rnndiag.engine.cells import Cell, find_cell, module_cell
from rnndiag.engine.contributions import contribution_norms, contributions
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.unroll import unroll
from rnndiag.errors import BadArgument

T, B, I, H = 5, 3, 2, 4
State = tuple[Tensor, ...]


def drawn(cell: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Arguments of `unroll` for one cell."""
    draw = torch.Generator().manual_seed(3)
    initial = tuple(part.to(dtype) for part in draw_state(cell, B, H))
    return {
        "cell": find_cell(cell),
        "weights": {k: v.to(dtype) for k, v in draw_weights(cell, I, H).items()},
        "inputs": torch.randn(T, B, I, dtype=torch.float64, generator=draw).to(dtype),
        "direct": tuple(
            torch.randn(T, B, H, dtype=torch.float64, generator=draw).to(dtype) for _ in initial
        ),
        "initial": initial,
    }


def by_autograd(cell: Any, run: LayerRun) -> tuple[Any, dict[str, Tensor]]:
    """The unrolled loop's tape, after a backward pass from the run's direct gradients, and the leaves."""
    leaves = {key: value.clone().requires_grad_() for key, value in run.weights.items()}
    x = run.inputs.clone()
    leaves["x"] = x.requires_grad_() if x.is_floating_point() else x
    _, _, tape = unroll_by_hand(
        cell, {k: v for k, v in leaves.items() if k != "x"}, leaves["x"], run.initial
    )
    outputs = [part for parts in zip(*tape.relays, strict=True) for part in parts]
    torch.autograd.backward(outputs, [e for part in run.direct for e in part])
    return tape, leaves


@pytest.mark.parametrize("size", [1e-28, 1e-20, 1.0, 1e20, 1e28])
@pytest.mark.parametrize("cell", ["elman_tanh", "lstm", "gru", "lecture_gru"])
def test_norms_whose_squares_leave_single_precision(cell: str, size: float) -> None:
    made = drawn(cell, torch.float32)
    run = unroll(**{**made, "direct": tuple(size * part for part in made["direct"])})
    exact = run.to(torch.float64)
    for key, norms in contribution_norms(adjoints(run)).items():
        each = contributions(exact, key)
        assert relative(norms.norm, each.flatten(1).norm(dim=1)) <= 1e-5, key
        total = each.sum(0)
        cosine = (each * total).flatten(1).sum(1) / (each.flatten(1).norm(dim=1) * total.norm())
        assert torch.allclose(norms.alignment.double(), cosine, atol=1e-5), key
        if not norms.sample_norm.isnan().all():
            alone = [contributions(exact.select([b]), key).flatten(1).norm(dim=1) for b in range(B)]
            assert relative(norms.sample_norm, torch.stack(alone).mean(0)) <= 1e-5, key
        if norms.gate_norm is not None:
            blocks = each.unflatten(1, (len(norms.gate_norm), -1)).flatten(2).norm(dim=2).mT
            assert relative(norms.gate_norm, blocks) <= 1e-5, key


def test_samples_that_cancel_leave_what_is_left() -> None:
    made = drawn("elman_tanh", torch.float32)
    x, e = made["inputs"], made["direct"][0]
    x[:, 1], e[:, 1], e[:, 2] = x[:, 0], -(1 - 1e-4) * e[:, 0], 0.0
    run = unroll(**{**made, "initial": (torch.zeros(B, H),)})
    for key in ("weight_hh", "weight_ih"):
        expected = contributions(run.to(torch.float64), key).flatten(1).norm(dim=1)
        found = contribution_norms(adjoints(run))[key].norm
        assert ((found - expected).abs() <= 2e-3 * expected).all(), key


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", [0, -1])
@pytest.mark.parametrize("cell", [c for c in STEPS if c != "peephole_lstm"])
def test_units_that_are_not_finite_are_those_of_autograd(
    cell: str, part: int, value: float
) -> None:
    """A relu at rest, and the gate o below a broken c, stay finite. (A peephole by hand is a matrix: it mixes.)"""
    for t in range(T):
        made = drawn(cell)
        made["direct"][part][t, 1, 2] = value
        run = unroll(**made)
        tape, _ = by_autograd(cell, run)
        adj = adjoints(run)
        for found, expected in zip(adj.parts, tape.adjoints(), strict=True):
            assert torch.equal(found.isfinite(), expected.isfinite())
        for key in run.weights:
            found, expected = contributions(run, key, adj), tape.contributions(key)
            assert torch.equal(found.isfinite(), expected.isfinite()), key


def test_padding_may_hold_anything() -> None:
    made, lengths = drawn("lstm"), torch.tensor([5, 2, 3])
    clean = unroll(**made, lengths=lengths)
    made["inputs"][3:, 1] = float("nan")
    made["direct"][0][4, 1:] = float("inf")
    run = unroll(**made, lengths=lengths)
    for key in run.weights:
        assert torch.equal(contributions(run, key), contributions(clean, key))


def decays_alone(a_ih: Tensor, a_hh: Tensor, state: State) -> State:
    return torch.tanh(a_ih + a_hh), 0.9 * state[1]


def twice_the_same(a_ih: Tensor, a_hh: Tensor, state: State) -> State:
    h = torch.tanh(a_ih + a_hh + 0.1 * state[1])
    return h, h


def without_h(a_ih: Tensor, a_hh: Tensor, state: State) -> State:
    return (torch.tanh(a_ih + 0.5 * state[0]),)


def constant(a_ih: Tensor, a_hh: Tensor, state: State) -> State:
    return torch.tanh(a_ih + a_hh + state[1]), torch.ones_like(state[1])


@pytest.mark.parametrize("elementwise", [True, False])
@pytest.mark.parametrize("pointwise", [decays_alone, twice_the_same, without_h, constant])
def test_parts_that_depend_on_little(pointwise: Any, elementwise: bool) -> None:
    parts = ("h",) if pointwise is without_h else ("h", "m")
    cell = Cell("own", parts, ("g",), pointwise, elementwise=elementwise)
    made = drawn("elman_tanh")
    run = unroll(cell, made["weights"], made["inputs"], made["direct"] * len(parts))

    def step(w: dict[str, Tensor], x: Tensor, state: State) -> State:
        a_ih = x @ w["weight_ih"].T + w["bias_ih"]
        return pointwise(a_ih, state[0] @ w["weight_hh"].T + w["bias_hh"], state)

    tape, leaves = by_autograd(step, run)
    adj = adjoints(run)
    for found, expected in zip(adj.parts, tape.adjoints(), strict=True):
        assert relative(found, expected) <= 1e-12
    assert relative(adj.inputs(), leaves["x"].grad) <= 1e-12
    for key in run.weights:
        assert relative(contributions(run, key, adj), tape.contributions(key)) <= 1e-12


class Spike(torch.autograd.Function):
    """A step function with a smooth derivative, as spiking nets have it: torch.func cannot map it."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return grad / (1 + v.abs()) ** 2


class Neurons(nn.Module):
    """A membrane that leaks and spikes; the spikes feed back."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.U = (nn.Parameter(torch.randn(H, n).double()) for n in (I, H))

    def forward(self, x: Tensor, state: State) -> State:
        v = 0.9 * state[0] + x @ self.W.T + state[1] @ self.U.T - state[1]
        return v, Spike.apply(v)


class Branches(nn.Module):
    """A step that asks a tensor for its way, and writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.U = (nn.Parameter(torch.randn(H, n).double()) for n in (I, H))

    def forward(self, x: Tensor, state: State) -> State:
        a = torch.zeros_like(state[0])
        a += x @ self.W.T + state[0] @ self.U.T
        if bool(a.abs().max() > 1e9):
            a = a / 2
        return (torch.tanh(a),)


class Memory(nn.Module):
    """A second part that the input does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.U = nn.Parameter(torch.randn(H, H).double())

    def forward(self, x: Tensor, state: State) -> State:
        return torch.tanh(x.sum(-1, keepdim=True) + state[0] @ self.U.T), (state[1] + state[0]) / 2


@pytest.mark.parametrize(("kind", "parts"), [(Neurons, 2), (Branches, 1), (Memory, 2)])
def test_modules_that_cannot_be_mapped_are_taken_step_by_step(kind: Any, parts: int) -> None:
    torch.manual_seed(0)
    module = kind()
    cell = module_cell(module, ("h", "m")[:parts], lambda f, x, state: f(x, state))
    weights = {name: p.detach() for name, p in module.named_parameters()}
    made = drawn("lstm")
    run = unroll(
        cell, weights, made["inputs"], made["direct"][:parts], (torch.rand(B, H).double(),) * parts
    )
    tape, leaves = by_autograd(cell.run_step, run)
    adj = adjoints(run)
    norms = contribution_norms(adj)
    assert relative(adj.inputs(), leaves["x"].grad) <= 1e-12
    for key in weights:
        expected = tape.contributions(key)
        assert relative(contributions(run, key, adj), expected) <= 1e-12
        assert relative(norms[key].norm, expected.flatten(1).norm(dim=1)) <= 1e-12


@pytest.mark.parametrize("cell", ["lstm", "gru", "lecture_gru"])
@pytest.mark.parametrize("inference", [False, True])
def test_nothing_is_tracked_and_any_mode_will_do(cell: str, inference: bool) -> None:
    made = drawn(cell)
    expected = adjoints(unroll(**made)).state
    for value in (*made["weights"].values(), made["inputs"], *made["direct"], *made["initial"]):
        value.requires_grad_()
    run = unroll(**made)
    with torch.inference_mode(inference):
        adj = adjoints(run)
        found = [adj.state, adj.inputs(), *(contributions(run, key, adj) for key in run.weights)]
        for norms in contribution_norms(adj).values():
            found += [norms.norm, norms.total, norms.alignment]
    assert not any(value.requires_grad for value in found)
    assert torch.equal(adj.state, expected)


@pytest.mark.parametrize("cell", ["gru", "coupled_lstm", "peephole_lstm"])
def test_a_run_made_in_inference_mode_is_one_like_others(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjoints_file, "CHUNK_BYTES", 1)
    run = unroll(**drawn(cell))
    with torch.inference_mode():
        few, narrow = run.select([0, 2]), run.to(torch.float32)
    assert torch.equal(adjoints(few).state, adjoints(run.select([0, 2])).state)
    assert adjoints(narrow).state.dtype == torch.float32


@pytest.mark.parametrize("cell", ["lstm", "gru", "elman_tanh", "peephole_lstm"])
def test_a_recorded_state_survives_what_is_made_of_it(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjoints_file, "CHUNK_BYTES", 1)
    run = unroll(**drawn(cell))
    before = [value.clone() for value in (*run.states, *run.direct, *run.initial, run.inputs)]
    adj = adjoints(run)
    contribution_norms(adj)
    rnndiag.lag_sweep(run)
    rnndiag.jacobians(run)
    after = (*run.states, *run.direct, *run.initial, run.inputs)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_direct_of_another_precision_is_refused_and_not_rounded() -> None:
    run = unroll(**drawn("lstm"))
    with pytest.raises(BadArgument, match=r"direct of layer is torch.float32 beside .*float64"):
        adjoints(replace(run, direct=tuple(part.float() for part in run.direct)))


def test_a_gradient_of_another_shape_is_refused_and_not_broadcast() -> None:
    run = unroll(**drawn("lstm"))
    with pytest.raises(BadArgument, match=r"direct of layer has shapes .*5, 3, 1"):
        adjoints(replace(run, direct=tuple(part[..., :1] for part in run.direct)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {}}, r"no weight_ih, weight_hh, peephole_i"),
        ({"inputs": torch.zeros(T, B, I + 1)}, r"inputs .*\(5, 3, 3\).* takes \(T, B, 2\)"),
        ({"inputs": torch.zeros(0, B, I)}, r"inputs .*\(0, 3, 2\)"),
        ({"inputs": torch.zeros(T, I)}, r"inputs .*\(5, 2\)"),
        ({"inputs": torch.zeros(T, B, I)}, r"float32.*float64"),
        ({"direct": (torch.zeros(T, B, 1),) * 2}, r"direct .*\(5, 3, 1\)"),
        ({"initial": (torch.zeros(1, H),) * 2}, r"initial .*\(1, 4\)"),
        ({"lengths": torch.tensor([5, 1])}, r"lengths \[5, 1\]"),
        ({"lengths": [9, 1, 2]}, r"lengths \[9, 1, 2\]"),
    ],
)
def test_what_does_not_fit_a_run_is_answered_in_a_sentence(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadArgument, match=message) as caught:
        unroll(**{**drawn("peephole_lstm"), **changes})
    assert caught.value.remedy


def test_a_cell_of_pre_activations_has_gates() -> None:
    with pytest.raises(BadArgument, match="gates"):
        Cell("bare", ("h",), pointwise=lambda a_ih, a_hh, state: (a_ih + a_hh,))


def test_a_run_and_its_adjoints_print_as_a_line() -> None:
    run = unroll(**drawn("lstm"))
    assert repr(run) == "LayerRun('layer', lstm, T=5, B=3, I=2, h 4 + c 4, float64)"
    assert repr(adjoints(run)) == "Adjoints(of layer, T=5, B=3, h 4 + c 4)"
