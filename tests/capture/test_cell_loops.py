"""Python loops over torch's cells and over a user's own step modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
from capture.by_hand import run_both, same
from torch import Tensor, nn

import rnndiag
from rnndiag.errors import BadArgument

B, I, H, T = 3, 2, 4, 5
KINDS = [nn.LSTMCell, nn.GRUCell, nn.RNNCell]
pytestmark = pytest.mark.usefixtures("double")


def first(state: Any) -> Tensor:
    return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [False, True], ids=["no state", "state given"])
def test_a_cell_loop_is_one_recurrence(kind: type[nn.RNNCellBase], given: bool) -> None:
    xs = torch.randn(T, B, I)
    start = torch.randn(2, B, H)

    def program(cell: Any) -> Tensor:
        state: Any = None
        if given:
            state = (start[0], start[1]) if kind is nn.LSTMCell else start[0]
        outputs = []
        for x in xs:
            state = cell(x, state)
            outputs.append(first(state))
        rest = state[1].sum() if kind is nn.LSTMCell else 0.0
        return torch.stack(outputs)[1:].square().sum() + rest

    both = run_both({"cell": kind(I, H)}, program)
    both.check({"cell": ("cell", list(range(T)), "")}, {"cell": "given" if given else "zero"})
    (run,) = both.probe.layer_runs
    assert not run.direct[0][
        0
    ].any()  # the first output is used by the next step alone: exactly nothing


def test_an_lstm_cell_whose_c_is_read_at_every_step() -> None:
    xs = torch.randn(T, B, I)

    def program(cell: Any) -> Tensor:
        state, total = (torch.zeros(B, H), torch.zeros(B, H)), torch.zeros(())
        for x in xs:
            state = cell(x, state)
            total = total + (state[0] * state[1]).sum() + state[1].square().sum()
        return total

    run_both({"cell": nn.LSTMCell(I, H)}, program).check({"cell": ("cell", list(range(T)), "")}, {})


def test_what_a_cell_said_may_be_its_next_input() -> None:
    start = torch.randn(B, H)

    def program(cell: Any) -> Tensor:
        state, total = (start, torch.zeros(B, H)), torch.zeros(())
        for _ in range(4):
            state = cell(state[0], state)
            total = total + state[0].square().sum()
        return total

    both = run_both({"cell": nn.LSTMCell(H, H)}, program)
    both.check({"cell": ("cell", list(range(4)), "")}, {"cell": "given"})


def test_two_cells_above_one_another() -> None:
    xs = torch.randn(T, B, I)

    def program(low: Any, high: Any) -> Tensor:
        a, b, total = None, None, torch.zeros(())
        for x in xs:
            a = low(x, a)
            b = high(a[0], b)
            total = total + b.square().sum()
        return total

    both = run_both({"low": nn.LSTMCell(I, H), "high": nn.GRUCell(H, H)}, program)
    both.check({"low": ("low", list(range(T)), ""), "high": ("high", list(range(T)), "")}, {})


class Step(nn.Module):
    """A user's own cell: an output of its own beside the state."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(I + H, H)
        self.readout = nn.Linear(H, 2)
        self.calls = 0
        self.log: list[int] = []

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        self.log.append(self.calls)
        h = torch.tanh(self.inner(torch.cat([x, h], -1))) + 0.1 * h
        return self.readout(h), h


def step_by_hand(weights: reference.Weights, x: Tensor, state: tuple[Tensor, ...]) -> Any:
    h = state[0]
    cat = torch.cat([x, h], -1)
    h = torch.tanh(cat @ weights["inner.weight"].T + weights["inner.bias"]) + 0.1 * h
    return h, h @ weights["readout.weight"].T + weights["readout.bias"]


class Looped(nn.Module):
    def __init__(
        self, step: nn.Module, state: Callable[[], Any] = lambda: torch.zeros(B, H)
    ) -> None:
        super().__init__()
        self.step, self.state = step, state

    def forward(self, xs: Tensor) -> Tensor:
        state, outputs = self.state(), []
        for x in xs:
            output, state = self.step(x, state)
            outputs.append(output)
        return torch.stack(outputs)


def test_a_step_module_with_an_output_of_its_own() -> None:
    model, xs = Looped(Step()), torch.randn(T, B, I)
    with rnndiag.probe(model) as probe:
        model(xs)[1:].square().sum().backward()
    (run,) = probe.layer_runs
    (proof,) = probe.proofs
    assert proof.verdict == "exact"
    assert proof.worst <= 1e-12
    assert (run.name, run.T, run.tie) == ("step", T, "zero")
    assert model.step.calls == T  # a replay is no step
    assert model.step.log == list(range(1, T + 1))

    weights = {k: v.detach().requires_grad_() for k, v in model.step.named_parameters()}
    initial = (torch.zeros(B, H), torch.zeros(B, 2))
    _, _, tape = reference.unroll(step_by_hand, weights, xs, initial)
    said = torch.stack([state[1] for state in tape.relays])
    said[1:].square().sum().backward()
    same(run, [tape])


class Pair(nn.Module):
    """State: a list of two tensors of different shapes, and a keyword for the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(I, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, state: list[Tensor]) -> list[Tensor]:
        slow, fast = state
        fast = torch.tanh(self.a(x) + fast.flatten(1)).unflatten(1, (2, 3))
        return [0.9 * slow + self.b(fast.flatten(1)), fast]


def test_a_state_may_be_a_list_of_tensors_of_any_shape() -> None:
    step, xs = Pair(), torch.randn(T, B, I)
    with rnndiag.probe(step) as probe:
        state = [torch.zeros(B, 3), torch.zeros(B, 2, 3)]
        for x in xs:
            state = step(x=x, state=state)
        (state[0].square().sum() + state[1].sum()).backward()
    (run,) = probe.layer_runs
    assert run.sizes == (3, 6)
    assert run.T == T
    assert probe.proofs[0].verdict == "exact"
    assert probe.proofs[0].worst <= 1e-12


class Odd(nn.Module):
    """Nothing says that it is a step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(H, H)

    def forward(self, what: Tensor, where: Tensor) -> Tensor:
        return torch.tanh(self.inner(where) + what)


@pytest.mark.parametrize("named", [("odd",), (Odd,)], ids=["by name", "by class"])
def test_a_step_module_can_be_named(named: Any) -> None:
    model, xs = nn.ModuleDict({"odd": Odd()}), torch.randn(T, B, H)

    def loop() -> Tensor:
        state = torch.zeros(B, H)
        for x in xs:
            state = model["odd"](x, state)
        return state.square().sum()

    with rnndiag.probe(model, steps=named) as probe:
        loop().backward()
    assert [(run.name, run.T) for run in probe.layer_runs] == [("odd", T)]
    assert probe.proofs[0].verdict == "exact"
    with rnndiag.probe(model) as probe:
        loop().backward()
    assert probe.layer_runs == []


def test_a_step_that_is_not_there_is_refused() -> None:
    with pytest.raises(BadArgument, match="no module 'cell'"):
        rnndiag.probe(nn.ModuleDict({"odd": Odd()}), steps=["cell"])


class Peephole(nn.Module):
    rnndiag_cell = "peephole_lstm"

    def __init__(self) -> None:
        super().__init__()
        for key, value in reference.draw_weights("peephole_lstm", I, H).items():
            self.register_parameter(key, nn.Parameter(value))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return reference.STEPS["peephole_lstm"](dict(self.named_parameters()), x, state)


def test_a_module_bound_to_a_registered_cell_takes_its_fast_path() -> None:
    cell, xs = Peephole(), torch.randn(T, B, I)

    def loop(step: Any) -> Tensor:
        state, total = (torch.zeros(B, H), torch.zeros(B, H)), torch.zeros(())
        for x in xs:
            state = step(x, state)
            total = total + state[0].square().sum()
        return total

    with rnndiag.probe(cell) as probe:
        loop(cell).backward()
    (run,) = probe.layer_runs
    assert (run.cell.name, run.T) == ("peephole_lstm", T)
    assert probe.proofs[0].verdict == "exact"
    weights = {k: v.detach().requires_grad_() for k, v in cell.named_parameters()}
    initial = (torch.zeros(B, H), torch.zeros(B, H))
    outputs, _, tape = reference.unroll("peephole_lstm", weights, xs, initial)
    outputs.square().sum().backward()
    same(run, [tape])


@pytest.mark.parametrize(
    "inside", [nn.Dropout(0.5), nn.BatchNorm1d(H)], ids=["dropout", "batch norm"]
)
def test_a_step_that_cannot_be_replayed_is_measured_on_the_graph(inside: nn.Module) -> None:
    class Noisy(Step):
        def __init__(self) -> None:
            super().__init__()
            self.inside = inside.double()

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            output, h = super().forward(x, h)
            return output, self.inside(h)

    model = Looped(Noisy())
    with rnndiag.probe(model) as probe:
        model(torch.randn(T, B, I)).square().sum().backward()
    assert probe.layer_runs == []
    recording = probe.recording
    assert recording.verdict == "exact", recording.reasons
    assert recording.layers == ("step",)
    assert len(recording["window_bias", "step"].values) == T + 1


def test_a_module_that_only_looks_like_a_step_is_left_alone() -> None:
    class Attend(nn.Module):
        def forward(self, query: Tensor, hidden: Tensor) -> Tensor:
            return query * hidden

    model = nn.ModuleDict({"attend": Attend(), "rnn": nn.GRU(I, H)})
    with rnndiag.probe(model) as probe:
        out, _ = model["rnn"](torch.randn(T, B, I))
        model["attend"](out, out).sum().backward()
    assert [run.name for run in probe.layer_runs] == ["rnn.l0"]
    assert probe.proofs[0].verdict == "exact"


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_clipped_on_their_way_through_a_loop(kind: type[nn.RNNCellBase]) -> None:
    xs = torch.randn(T, B, I)

    def program(cell: Any) -> Tensor:
        state, total = None, torch.zeros(())
        for x in xs:
            state = cell(x, state)
            h = state[0] if isinstance(state, tuple) else state
            h.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
            total = total + h.square().sum()
        return total

    both = run_both({"cell": kind(I, H)}, program)
    (proof,), (run,) = both.probe.proofs, both.probe.layer_runs
    assert proof.verdict == "exact", proof.reasons
    assert run.T == T
    for key in run.weights:
        tapes = [call[""] for call in both.by_hand["cell"].calls]
        expected = torch.cat([tape.contributions(key) for tape in tapes])
        assert torch.allclose(rnndiag.contributions(run, key), expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_leaves_may_be_rewritten(kind: type[nn.RNNCellBase]) -> None:
    cell, xs = kind(I, H), torch.randn(T, B, I).unbind()
    first = [torch.randn(B, H) for _ in range(1 + (kind is nn.LSTMCell))]
    leaves = [leaf.requires_grad_() for leaf in (*xs, *first)]
    with rnndiag.probe(cell) as probe:
        state = tuple(first) if len(first) > 1 else first[0]
        for x in xs:
            state = cell(x, state)
        (state[0] if isinstance(state, tuple) else state).square().sum().backward()
    for leaf in leaves:
        leaf.grad.zero_()
    (proof,) = probe.proofs
    assert proof.verdict == "exact", proof.reasons
    assert proof.layers["cell"].input_gradient < 1e-10
    assert proof.layers["cell"].initial_gradient < 1e-10


@pytest.mark.parametrize("kind", [*KINDS, nn.LSTM, nn.GRU, nn.RNN])
def test_steps_that_only_warm_the_state_up_leave_a_state_that_is_given(kind: Any) -> None:
    module, xs = kind(I, H), torch.randn(2, B, I)
    early, late = xs if issubclass(kind, nn.RNNCellBase) else xs[:, None]
    with rnndiag.probe(module) as probe:
        warm = module(early)
        warm = warm if issubclass(kind, nn.RNNCellBase) else warm[1]
        state = tuple(p.detach() for p in warm) if isinstance(warm, tuple) else warm.detach()
        first(module(late, state)).square().sum().backward()
    (run,) = probe.layer_runs
    assert run.tie == "given"
    assert probe.proofs[0].verdict == "exact"


def test_an_lstm_cell_whose_h_alone_is_changed_on_the_way() -> None:
    xs = torch.randn(3, B, I)

    def program(cell: Any) -> Tensor:
        state, total = None, torch.zeros(())
        for x in xs:
            h, c = cell(x, state)
            state, total = (0.5 * h, c), total + h.square().sum()
        return total

    both = run_both({"cell": nn.LSTMCell(I, H)}, program)
    names = ["cell", "cell#2", "cell#3"]
    both.check(
        {name: ("cell", [k], "") for k, name in enumerate(names)},
        dict.fromkeys(names[1:], "given"),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_over_a_cell_with_a_full_backward_hook_is_one_recurrence(
    kind: type[nn.RNNCellBase],
) -> None:
    cell, xs = kind(I, H), torch.randn(T, B, I, requires_grad=True)
    cell.register_full_backward_hook(lambda module, given, got: None)
    with rnndiag.probe(cell) as probe:
        state: Any = None
        for x in xs:
            state = cell(x, state)
        first(state).square().sum().backward()
    (run,) = probe.layer_runs
    assert run.T == T
    assert probe.proofs[0].verdict == "exact"


def test_a_loop_whose_state_is_changed_on_the_way_is_measured_on_the_graph() -> None:
    cell, xs, normal = nn.GRUCell(I, H), torch.randn(T, B, I), nn.LayerNorm(H)
    with rnndiag.probe(cell) as probe:
        h = torch.zeros(B, H)
        for x in xs:
            h = normal(cell(x, h))
        h.square().sum().backward()
    assert probe.proofs[0].verdict == "exact"
    recording = probe.recording
    assert recording.verdict == "exact"
    assert "changed between the steps" in recording.notes["on_graph"]["cell"]
    assert recording.layers == ("cell",)
