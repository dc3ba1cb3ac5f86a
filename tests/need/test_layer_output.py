"""The outputs of a recurrent layer, recorded and put back: same loss, and its gradient is the direct one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnndiag
from rnndiag.errors import NotSupported
from rnndiag.recorder.need.chosen_layer import chosen_layer
from rnndiag.recorder.need.output_loss import OutputLoss, Sample

B, T, H = 5, 7, 4
LENGTHS = torch.tensor([3, 7, 5, 7, 2])


class Reader(nn.Module):
    """A recurrent module and a head; `read` says how the loss is made of them."""

    def __init__(self, rnn: nn.Module, read: Callable[[Reader, Tensor], Tensor]) -> None:
        super().__init__()
        self.rnn, self.read = rnn, read
        self.head = nn.Linear(H, 1)


def outputs(model: Reader, x: Tensor) -> Tensor:
    return model.head(model.rnn(x)[0]).square().mean()


def time_first(model: Reader, x: Tensor) -> Tensor:
    return model.head(model.rnn(x.transpose(0, 1))[0]).square().mean()


def last_state(model: Reader, x: Tensor) -> Tensor:
    state = model.rnn(x)[1]
    return model.head(state[0][-1] if isinstance(state, tuple) else state[-1]).square().mean()


def cell_state(model: Reader, x: Tensor) -> Tensor:
    y, (_, c) = model.rnn(x)
    return model.head(y[:, 2] + c[-1]).square().mean()


def packed(model: Reader, x: Tensor) -> Tensor:
    sequence = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    y, state = model.rnn(sequence)
    padded, _ = pad_packed_sequence(y, batch_first=True)
    return model.head(padded).square().mean() + y.data.pow(3).mean() + state[-1].mean()


def in_pieces(model: Reader, x: Tensor) -> Tensor:
    state, found = None, []
    for piece in x.split(3, 1):
        y, state = model.rnn(piece, state)
        found.append(y)
    return model.head(torch.cat(found, 1)).square().mean()


def cells(model: Reader, x: Tensor) -> Tensor:
    state, found = None, []
    for t in range(T):
        state = model.rnn(x[:, t], state)
        found.append(model.head(state[0] if isinstance(state, tuple) else state))
    return torch.stack(found).square().mean()


class OwnStep(nn.Module):
    """Two layers of GRU cells; the state is a tuple of both, the output apart from it where `apart`."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.low, self.high, self.apart = nn.GRUCell(3, 2), nn.GRUCell(2, H), apart

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        low = self.low(x, state[0])
        high = self.high(low, state[1]) * 0.9  # no cell of torch
        return (torch.tanh(high), (low, high)) if self.apart else (low, high)


def own_steps(model: Reader, x: Tensor) -> Tensor:
    state, found = (x.new_zeros(len(x), 2), x.new_zeros(len(x), H)), []
    for t in range(T):
        state = rnndiag.carry(state)
        returned = model.rnn(x[:, t], state)
        y, state = returned if model.rnn.apart else (returned[1], returned)
        found.append(model.head(y) + state[0].sum())
    return torch.stack(found).square().mean()


pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

CASES = {
    "gru": (nn.GRU(3, H, batch_first=True), outputs),
    "lstm stack": (nn.LSTM(3, H, 2, batch_first=True), outputs),
    "rnn, time first": (nn.RNN(3, H), time_first),
    "projected lstm": (nn.LSTM(3, 6, proj_size=H, batch_first=True), last_state),
    "last state": (nn.GRU(3, H, 2, batch_first=True), last_state),
    "cell state": (nn.LSTM(3, H, batch_first=True), cell_state),
    "packed": (nn.GRU(3, H, batch_first=True), packed),
    "carried pieces": (nn.GRU(3, H, batch_first=True), in_pieces),
    "lstm cells": (nn.LSTMCell(3, H), cells),
    "gru cells": (nn.GRUCell(3, H), cells),
    "step module": (OwnStep(False), own_steps),
    "step module with an output": (OwnStep(True), own_steps),
}


def recorded(name: str) -> tuple[Reader, OutputLoss, Sample, Tensor]:
    rnn, read = CASES[name]
    torch.manual_seed(0)
    model, x = Reader(rnn, read), torch.randn(B, T, 3)
    name = "rnn" if isinstance(rnn, OwnStep) else None
    layer, _ = chosen_layer(model, lambda own, batch: own.read(own, batch), x, name)
    loss = OutputLoss(model, lambda own, batch: own.read(own, batch), layer, 0)
    return model, loss, loss.sample(x, 0), x


@pytest.mark.parametrize("name", CASES)
def test_recorded_outputs_give_the_loss_of_the_model(name: str) -> None:
    model, loss, sample, x = recorded(name)
    assert sample.loss == pytest.approx(model.read(model, x).item(), rel=1e-6)
    assert loss.value(sample, sample.outputs) == pytest.approx(sample.loss, rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradient_of_the_outputs_is_that_of_a_finite_difference(name: str) -> None:
    _, loss, sample, _ = recorded(name)
    direction = torch.randn(sample.outputs.shape, generator=torch.Generator().manual_seed(1))
    direction *= sample.active.unsqueeze(-1)
    step = 1e-2 * direction
    high, low = (loss.value(sample, sample.outputs + sign * step) for sign in (1, -1))
    slope = float((sample.gradient * step).sum())
    assert (high - low) / 2 == pytest.approx(slope, rel=2e-2, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_run_from_the_first_step_reproduces_the_recorded_output(name: str) -> None:
    _, loss, sample, _ = recorded(name)
    for t in (0, 1):
        new = loss.layer.last_output(sample.seen.inputs[:, : t + 1], None)
        assert torch.allclose(new, sample.outputs[:, t], atol=1e-6)
    start = tuple(part[0] for part in sample.seen.history)
    assert torch.allclose(
        loss.layer.last_output(sample.seen.inputs[:, 1:2], start), sample.outputs[:, 1], atol=1e-6
    )


def test_only_a_loss_that_reads_the_cell_state_makes_it_part_of_the_outputs() -> None:
    assert recorded("cell state")[2].outputs.shape[-1] == 2 * H
    assert recorded("lstm stack")[2].outputs.shape[-1] == H


def test_outputs_without_a_loss_are_not_active() -> None:
    active = recorded("packed")[2].active
    assert torch.equal(active.sum(1), LENGTHS)
    assert torch.equal(recorded("last state")[2].active.sum(1), torch.ones(B, dtype=torch.long))


def test_last_of_two_layers_is_chosen_and_an_earlier_one_can_be_named() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lower = nn.GRU(3, H, batch_first=True)
            self.upper = nn.LSTM(H, H, batch_first=True)

    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        return model.upper(model.lower(x)[0])[0].square().mean()  # type: ignore[operator,no-any-return]

    model, x = Two(), torch.randn(B, T, 3)
    layer, later = chosen_layer(model, loss_fn, x, None)
    assert (layer.name, later) == ("upper", ())
    layer, later = chosen_layer(model, loss_fn, x, "lower")
    assert (layer.name, later) == ("lower", ("upper",))


def test_calls_from_unrelated_states_are_refused() -> None:
    model = nn.Module()
    model.rnn = nn.GRU(3, H, batch_first=True)

    def loss_fn(own: nn.Module, x: Tensor) -> Tensor:
        return (own.rnn(x)[0] - own.rnn(-x)[0]).square().mean()  # type: ignore[operator,no-any-return]

    x = torch.randn(B, T, 3)
    layer, _ = chosen_layer(model, loss_fn, x, None)
    with pytest.raises(NotSupported, match="unrelated states"):
        OutputLoss(model, loss_fn, layer, 0).sample(x, 0)


@pytest.mark.parametrize("changed", [lambda h: 0.9 * h, lambda h: None])
def test_cell_whose_state_the_loop_changes_is_refused(changed: Callable[[Tensor], Any]) -> None:
    model = nn.Module()
    model.cell = nn.GRUCell(3, H)

    def loss_fn(own: nn.Module, x: Tensor) -> Tensor:
        h = x.new_zeros(B, H)
        for t in range(T):
            y = own.cell(x[:, t], h)  # type: ignore[operator]
            h = changed(y)
        return y.square().mean()  # type: ignore[no-any-return]

    x = torch.randn(B, T, 3)
    layer, _ = chosen_layer(model, loss_fn, x, None)
    with pytest.raises(NotSupported, match="changes the state of cell before step 1"):
        OutputLoss(model, loss_fn, layer, 0).sample(x, 0)


def test_step_module_that_takes_tokens_is_refused() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.cell = nn.Embedding(4, 3), nn.Linear(3 + H, H)

        def forward(self, token: Tensor, state: Tensor) -> Tensor:
            return torch.tanh(self.cell(torch.cat([self.table(token), state], 1)))

    model = nn.Module()
    model.step = Tokens()

    def loss_fn(own: nn.Module, tokens: Tensor) -> Tensor:
        h = torch.zeros(B, H)
        for t in range(T):
            h = own.step(tokens[:, t], h)  # type: ignore[operator]
        return h.square().mean()

    tokens = torch.randint(0, 4, (B, T))
    layer, _ = chosen_layer(model, loss_fn, tokens, None)
    with pytest.raises(NotSupported, match="embed tokens before the step"):
        OutputLoss(model, loss_fn, layer, 0).sample(tokens, 0)
