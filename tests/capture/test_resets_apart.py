"""What happens to a state between two steps and is no reset stays apart, and looking for resets changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from bf16 import skip_without_bf16_lstm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rnndiag
from rnndiag.errors import NotSupported

B, I, H, T = 3, 2, 4, 5
pytestmark = pytest.mark.usefixtures("double")
KEEP = torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64)

Change = Callable[[Tensor, Tensor], Tensor]
"""(h as the last step returned it, h as the last step got it) -> h as the next step gets it."""


class Through(torch.autograd.Function):
    """Gives its input on, by its own account."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def unit_by_unit(h: Tensor, before: Tensor) -> Tensor:
    mask = torch.ones(B, H, dtype=h.dtype)
    mask[0, 0] = 0.0
    return mask * h


CHANGES: dict[str, Change] = {
    "scaled": lambda h, before: 0.5 * h,
    "normalised": lambda h, before: nn.functional.layer_norm(h, (H,)),
    "shifted": lambda h, before: KEEP * h + 1e-3,
    "unit by unit": unit_by_unit,
    "held where a sequence has ended": lambda h, before: KEEP * h + (1.0 - KEEP) * before,
    "in another order": lambda h, before: h[torch.tensor([1, 2, 0])],
    "through a function of one's own": lambda h, before: KEEP * Through.apply(h),
    "almost a mask": lambda h, before: (KEEP * (1.0 - 1e-12)) * h,
    "residual": lambda h, before: h + before,
    "a mask with a gradient of its own": lambda h, before: torch.sigmoid(1e3 * h.sum(1, True)) * h,
}

OF_TWO = ("held where a sequence has ended", "residual")
"""Before the first step there was none to be held at or added: the second one goes on from it."""


def loop(step: Any, xs: Tensor, change: Change) -> Tensor:
    h, total = torch.zeros(B, H), torch.zeros(())
    for x in xs:
        before, h = h, step(x, h)
        total = total + h.square().sum()
        h = change(h, before)
    return total


def test_every_step_of_a_changed_state_is_a_run_that_tells_no_lags() -> None:
    cell, xs = nn.GRUCell(I, H), torch.randn(T, B, I)
    with rnndiag.probe(cell) as probe:
        loop(cell, xs, CHANGES["scaled"]).backward()
    assert [run.T for run in probe.layer_runs] == [1] * T
    assert probe.proofs[0].verdict == "exact"
    with pytest.raises(NotSupported, match="its state is changed between the steps"):
        rnndiag.lag_sweep(probe.layer_runs[-1])


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in OF_TWO])
def test_windows_of_a_changed_state_are_those_of_detaching_it(name: str) -> None:
    cell, xs, change = nn.GRUCell(I, H), torch.randn(T, B, I), CHANGES[name]
    with rnndiag.probe(cell) as probe:
        loop(cell, xs, change).backward()
    recording = probe.recording
    assert recording.verdict == "exact", recording.reasons

    def gradient(window: int) -> Tensor:
        total = torch.zeros(())
        for last in range(T):
            h = torch.zeros(B, H)
            for t, x in enumerate(xs[: last + 1]):
                if t == last - window + 1:
                    h = h.detach()
                before, h = h, cell(x, h)
                if t == last:
                    total = total + h.square().sum()
                h = change(h, before)
        found = torch.autograd.grad(total, list(cell.parameters()))
        return torch.cat([value.flatten() for value in found])

    full, measured = gradient(T), recording["window_bias", "cell"].values
    for window in range(1, T):
        bias = (gradient(window) - full).norm() / full.norm()
        assert abs(float(measured[window]) - float(bias)) < 1e-9


@pytest.mark.parametrize("name", OF_TWO)
def test_a_state_that_older_ones_are_mixed_into_is_open(name: str) -> None:
    cell, xs = nn.GRUCell(I, H), torch.randn(T, B, I)
    with rnndiag.probe(cell) as probe:
        loop(cell, xs, CHANGES[name]).backward()
    recording = probe.recording
    assert recording.verdict == "open"
    assert "goes through no state in between" in recording.reasons["cell"]
    assert ("window_bias", "cell") not in recording
    assert ("contribution_norm", "cell") in recording


@pytest.mark.parametrize(
    "change",
    [
        lambda h, before: 1.0 * h,
        lambda h, before: h.clamp(-5.0, 5.0),
        lambda h, before: h[torch.arange(B)],
        lambda h, before: torch.cat([h[:1], h[1:]]),
        lambda h, before: h.float().double() if h.dtype == torch.float32 else h + 0.0,
    ],
    ids=["times one", "clamped where it does nothing", "indexed", "put together", "plus zero"],
)
def test_a_change_that_is_none_is_none(change: Change) -> None:
    cell, xs = nn.GRUCell(I, H), torch.randn(T, B, I)
    with rnndiag.probe(cell) as probe:
        loop(cell, xs, change).backward()
    (run,) = probe.layer_runs
    assert (run.T, run.B, run.lengths) == (T, B, None)
    assert probe.proofs[0].verdict == "exact"


def test_a_state_clamped_where_it_matters_is_cut_there() -> None:
    cell, xs = nn.GRUCell(I, H), torch.randn(T, B, I)
    with rnndiag.probe(cell) as probe:
        loop(cell, xs, lambda h, before: h.clamp(-0.05, 0.05)).backward()
    assert len(probe.layer_runs) > 1
    assert probe.proofs[0].verdict == "exact"


def test_an_lstm_of_which_c_alone_is_reset() -> None:
    cell, xs = nn.LSTMCell(I, H), torch.randn(T, B, I)
    with rnndiag.probe(cell) as probe:
        h, c = torch.zeros(B, H), torch.zeros(B, H)
        for x in xs:
            h, c = cell(x, (h, KEEP * c))
        h.square().sum().backward()
    assert [run.T for run in probe.layer_runs] == [1] * T
    assert probe.proofs[0].verdict == "exact"


def test_layers_that_are_reset_at_different_times() -> None:
    rnn, xs = nn.GRU(I, H, 2), torch.randn(T, 1, B, I)
    keep = torch.ones(2, B, 1)
    keep[1, 0] = 0.0
    with rnndiag.probe(rnn) as probe:
        h, total = torch.zeros(2, B, H), torch.zeros(())
        for x in xs:
            y, h = rnn(x, keep * h)
            total = total + y.square().sum()
        total.backward()
    assert {run.T for run in probe.layer_runs} == {1}
    assert probe.proofs[0].verdict == "exact"


def test_stretches_that_would_take_too_much_room_stay_apart(monkeypatch: Any) -> None:
    monkeypatch.setattr("rnndiag.recorder.capture.resets.ROOM", 0)
    monkeypatch.setattr("rnndiag.recorder.capture.resets.SPARSE", 1)
    cell, xs = nn.GRUCell(I, H), torch.randn(T, B, I)
    with rnndiag.probe(cell) as probe:
        loop(cell, xs, lambda h, before: KEEP * h).backward()
    assert [run.T for run in probe.layer_runs] == [1] * T
    assert probe.proofs[0].verdict == "exact"


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_is_the_same_to_the_last_bit(kind: Any, optimizer: Any) -> None:
    def train(watch: bool) -> list[Tensor]:
        torch.manual_seed(1)
        module = kind(I, H).float()
        fresh = nn.Parameter(torch.zeros(1, H, dtype=torch.float32))
        made = optimizer([*module.parameters(), fresh], 0.05)
        lead = (1,) if isinstance(module, nn.RNNBase) else ()
        for _ in range(4):
            with rnndiag.probe(module) if watch else nullcontext() as probe:
                total, state = torch.zeros(()), None
                for x in torch.randn(T, *lead, B, I, dtype=torch.float32):
                    over = torch.rand(B, 1) < 0.3
                    if state is not None:
                        state = tuple(torch.where(over, fresh, part) for part in state)
                    given = state if state is None or len(state) > 1 else state[0]
                    found = module(x, given)
                    if lead:
                        found = found[1]
                    state = found if isinstance(found, tuple) else (found,)
                    total = total + state[-1].square().sum() + (state[0] * torch.rand(H)).sum()
                made.zero_grad()
                total.backward()
            if watch:
                assert probe.layer_runs[0].tie in ("learnt", "zero")
                assert probe.proofs[0].verdict == "exact", probe.proofs[0].reasons
            made.step()
        return [value.detach().clone() for value in (*module.parameters(), fresh)]

    for plain, seen in zip(train(watch=False), train(watch=True), strict=True):
        assert torch.equal(plain, seen)


def test_a_hook_on_a_reset_state_is_part_of_the_measured_gradient() -> None:
    cell, xs = nn.GRUCell(I, H), torch.randn(T, B, I)

    def biases(factor: float) -> Any:
        def change(h: Tensor, before: Tensor) -> Tensor:
            masked = KEEP * h
            masked.register_hook(lambda gradient: factor * gradient)
            return masked

        with rnndiag.probe(cell) as probe:
            loop(cell, xs, change).backward()
        assert probe.recording.verdict == "exact", probe.recording.reasons
        return probe.recording["window_bias", "cell"].values

    with rnndiag.probe(cell) as probe:
        loop(cell, xs, lambda h, before: KEEP * h).backward()
    whole = probe.recording["window_bias", "cell"].values
    assert abs(biases(1.0) - whole).max() < 1e-9
    assert (biases(0.5) < whole - 1e-3)[1 : T - 1].all()


def test_saved_tensors_are_not_unpacked_before_backward() -> None:
    cell, xs, unpacked = nn.GRUCell(I, H), torch.randn(T, B, I), []

    def unpack(value: Tensor) -> Tensor:
        unpacked.append(value)
        return value

    with rnndiag.probe(cell) as probe:
        with torch.autograd.graph.saved_tensors_hooks(lambda value: value, unpack):
            total = loop(cell, xs, lambda h, before: KEEP * h)
        assert unpacked == []
        total.backward()
    assert [run.T for run in probe.layer_runs] == [1] * T
    assert probe.proofs[0].verdict == "exact"


@pytest.mark.filterwarnings("ignore:.*autocast.*deprecated:FutureWarning")  # torch 2.4's own
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_steps_run_as_often_as_they_would(reentrant: bool) -> None:
    cell, xs, runs = nn.GRUCell(I, H), torch.randn(T, B, I, requires_grad=True), []

    def step(x: Tensor, h: Tensor) -> Tensor:
        runs.append(1)
        return cell(x, KEEP * h)

    with rnndiag.probe(cell) as probe:
        h = torch.zeros(B, H, requires_grad=True)
        for x in xs:
            h = checkpoint(step, x, h, use_reentrant=reentrant)
        h.square().sum().backward()
    assert len(runs) == 2 * T
    assert probe.proofs[0].verdict == "exact"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_float_mask_under_autocast(kind: Any) -> None:
    skip_without_bf16_lstm(kind is nn.LSTM)
    rnn, xs = kind(I, H).float(), torch.randn(T, 1, B, I, dtype=torch.float32)
    with rnndiag.probe(rnn) as probe, torch.autocast("cpu", dtype=torch.bfloat16):
        state, total = None, torch.zeros(())
        for x in xs:
            if state is not None:
                parts = state if isinstance(state, tuple) else (state,)
                parts = tuple(KEEP.float() * part for part in parts)
                state = parts if isinstance(state, tuple) else parts[0]
            y, state = rnn(x, state)
        total = y.float().square().sum()
        total.backward()
    (run,) = probe.layer_runs
    assert run.lengths.tolist() == [T, 1, T, *[1] * (T - 1)]
    assert probe.proofs[0].verdict == "exact", probe.proofs[0].reasons
    assert not run.direct[0][:-1, 0].any()  # the loss reads the last step alone
