"""Watching changes nothing: weights to the last bit, random numbers, hooks, modes, copies of the model."""

from __future__ import annotations

import copy
import io
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

import rnndiag
from rnndiag.recorder.capture import Capture

B, I, H, T = 3, 3, 4, 6


class Sequence(nn.Module):
    """A layer in a residual stack whose input, state and output all have other users as well."""

    def __init__(self, kind: type[nn.RNNBase], both: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(I, H)
        self.rnn = kind(H, H, 2, dropout=0.3, bidirectional=both)
        self.again = kind(H, H)
        self.head = nn.Linear(H * (1 + both) + H, H)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x))
        out, state = self.rnn(x)
        first = tuple(part[:1] for part in state) if isinstance(state, tuple) else state[:1]
        chunk, carried = self.again(x[: T // 2], first)
        later, last = self.again(x[T // 2 :], carried)
        h = last[0] if isinstance(last, tuple) else last
        return self.head(torch.cat([out, torch.cat([chunk, later]) + x], -1)) * x + h


class Loop(nn.Module):
    """A cell whose input and states are used outside of it as well."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(I, H), kind(H, H), nn.Linear(H, H)

    def forward(self, xs: Tensor) -> Tensor:
        state: Any = None
        outputs = []
        for x in torch.tanh(self.embed(xs)):
            state = self.cell(x, state)
            parts = state if isinstance(state, tuple) else (state,)
            outputs.append(self.head(parts[0]) * x + sum(part * part for part in parts))
        return torch.stack(outputs)


class Own(nn.Module):
    """A step module of one's own, its state used twice inside and again outside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.readout = nn.Linear(2 * H, H), nn.Linear(H, H)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        gate = torch.sigmoid(self.inner(torch.cat([x, h], -1)))
        h = gate * h + (1 - gate) * torch.tanh(x)
        return self.readout(h) * h, h


class OwnLoop(Loop):
    def __init__(self) -> None:
        super().__init__(nn.GRUCell)
        self.cell = Own()

    def forward(self, xs: Tensor) -> Tensor:
        state, outputs = torch.zeros(B, H), []
        for x in torch.tanh(self.embed(xs)):
            output, state = self.cell(x, state)
            outputs.append(self.head(output) * x + state * state)
        return torch.stack(outputs)


MODELS = {
    **{kind.__name__: lambda kind=kind: Sequence(kind) for kind in (nn.LSTM, nn.GRU, nn.RNN)},
    **{
        f"{kind.__name__} both ways": lambda kind=kind: Sequence(kind, both=True)
        for kind in (nn.LSTM, nn.GRU, nn.RNN)
    },
    **{
        kind.__name__: lambda kind=kind: Loop(kind)
        for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
    },
    "own": OwnLoop,
}
OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01),
    "fused adam": lambda ps: torch.optim.Adam(ps, lr=0.01, fused=True),
}


def train(name: str, optimizer: str, watched: bool, steps: int = 20) -> tuple[list[Tensor], Any]:
    torch.manual_seed(0)
    model = MODELS[name]()
    step = OPTIMIZERS[optimizer](model.parameters())
    verdicts = []
    for _ in range(steps):
        x = torch.randn(T, B, I)
        step.zero_grad()
        with rnndiag.probe(model) if watched else nullcontext() as probe:
            model(x).square().mean().backward()
            if watched:
                verdicts += [proof.verdict for proof in probe.proofs]
            step.step()
    return [p.detach() for p in model.parameters()] + [torch.get_rng_state()], verdicts


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_trained_weights_are_the_same_to_the_last_bit(name: str, optimizer: str) -> None:
    watched, verdicts = train(name, optimizer, watched=True)
    plain, _ = train(name, optimizer, watched=False)
    assert all(torch.equal(a, b) for a, b in zip(watched, plain, strict=True))
    assert verdicts == ["exact"] * 20


def test_nothing_is_left_behind() -> None:
    model = Sequence(nn.LSTM)
    x, wrong = torch.randn(T, B, I), torch.randn(2, 2, 99)
    with rnndiag.probe(model) as probe:
        model(x).sum().backward()
        after = torch.get_rng_state()
        with pytest.raises(RuntimeError):
            model.rnn(wrong)
    probe.layer_runs
    assert torch.equal(torch.get_rng_state(), after)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not any(p._backward_hooks for p in model.parameters())
    assert _get_current_function_mode_stack() == []
    assert model.training
    assert torch.is_grad_enabled()


def test_forwards_without_gradients_are_not_looked_at() -> None:
    model, x = nn.LSTM(I, H), torch.randn(T, B, I)
    with rnndiag.probe(model) as probe:
        with torch.no_grad():
            model(x)
        with torch.inference_mode():
            model(x)
        model(x)[0].sum().backward()
    assert [run.name for run in probe.layer_runs] == ["l0"]
    assert probe.proofs[0].verdict == "exact"


def test_an_exception_between_forward_and_backward() -> None:
    model, x = nn.GRU(I, H), torch.randn(T, B, I)

    def broken() -> None:
        with rnndiag.probe(model):
            model(x)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert not model._forward_hooks
    with rnndiag.probe(model) as probe:
        model(x)[0].sum().backward()
    assert probe.proofs[0].verdict == "exact"


@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")  # torch 2.4's own
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), copy.copy],
    ids=["deepcopy", "pickle", "copy"],
)
def test_copies_of_a_watched_model_are_strangers(duplicate: Any) -> None:
    model, x = nn.LSTM(I, H), torch.randn(T, B, I)
    with rnndiag.probe(model) as probe:
        twin = duplicate(model)
        out, _ = model(x)
        other, _ = twin(x)
        assert torch.equal(out, other)
        out.sum().backward()
    assert [run.name for run in probe.layer_runs] == ["l0"]
    assert probe.proofs[0].verdict == "exact"


def test_a_saved_copy_needs_no_rnndiag_to_load() -> None:
    model, stream = nn.LSTM(I, H), io.BytesIO()
    with rnndiag.probe(model):
        torch.save(model, stream)
    assert b"rnndiag" not in stream.getvalue()


@pytest.mark.filterwarnings("ignore:`torch.cpu.amp.autocast:FutureWarning")  # torch 2.4's own
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_calls_are_seen_once(reentrant: bool) -> None:
    model = nn.LSTM(I, H, 2, dropout=0.5)
    x = torch.randn(T, B, I, requires_grad=True)
    with rnndiag.probe(model) as probe:
        out = checkpoint(lambda a: model(a)[0], x, use_reentrant=reentrant)
        out.square().sum().backward()
    assert [run.name for run in probe.layer_runs] == ["l0", "l1"]
    (proof,) = [proof for proof in probe.proofs if proof.residual]
    assert proof.verdict == "exact", proof.reasons


def test_dropout_masks_are_the_very_ones_of_the_call() -> None:
    model = nn.GRU(I, H, 3, dropout=0.5, dtype=torch.float64)
    x = pack_padded_sequence(torch.randn(T, B, I).double(), torch.tensor([6, 4, 1]))
    with rnndiag.probe(model) as probe:
        model(x)[0].data.square().sum().backward()
        model(x)[0].data.square().sum().backward()
    assert [proof.verdict for proof in probe.proofs] == ["exact", "exact"]
    assert probe.proofs[1].worst < 1e-12


def test_where_the_masks_cannot_be_known_the_result_is_marked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, where cuDNN draws them; the generator is left as it was found there too."""
    monkeypatch.setattr("rnndiag.recorder.capture.kernel_calls.tells_masks", lambda device: False)
    model, x = nn.LSTM(I, H, 2, dropout=0.5), torch.randn(T, B, I)
    with rnndiag.probe(model) as probe:
        model(x)[0].square().sum().backward()
    before = torch.get_rng_state()
    (proof,) = probe.proofs
    assert torch.equal(torch.get_rng_state(), before)
    assert proof.verdict == "inexact"
    assert "other dropout masks" in proof.reasons[0]


def test_a_capture_can_be_armed_again_and_again() -> None:
    model, x = nn.LSTM(I, H), torch.randn(T, B, I)
    capture = Capture(model)
    assert not capture.armed
    for _ in range(3):
        capture.arm()
        model(x)[0].sum().backward()
        (seen,) = capture.take()
        assert [run.name for run in seen.layer_runs] == ["l0"]
        assert capture.take() == ()
    capture.disarm()
    model(x)[0].sum().backward()
    assert capture.take() == ()


def test_a_later_call_knows_the_run_it_goes_on_from_after_a_take() -> None:
    model, x = nn.GRU(I, H), torch.randn(T, B, I)
    capture = Capture(model)
    capture.arm()
    out, state = model(x)
    out.sum().backward()
    capture.take()
    model(x, state.detach())[0].sum().backward()
    (seen,) = capture.take()
    capture.disarm()
    assert [(run.name, run.tie) for run in seen.layer_runs] == [("l0#2", "detached:l0")]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_gradients_of_inputs_and_states_may_be_rewritten(kind: type[nn.RNNBase]) -> None:
    model, x = kind(I, H), torch.randn(T, B, I, requires_grad=True)
    first = [torch.randn(1, B, H, requires_grad=True) for _ in range(1 + (kind is nn.LSTM))]
    with rnndiag.probe(model) as probe:
        model(x, tuple(first) if len(first) > 1 else first[0])[0].square().sum().backward()
    for leaf in (x, *first):
        leaf.grad.zero_()
    (proof,) = probe.proofs
    assert proof.verdict == "exact", proof.reasons
