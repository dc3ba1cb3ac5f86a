"""`rnndiag.train.unroll` and `between_steps`: values of the plain pass, gradients of loops written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnndiag
from rnndiag import train
from rnndiag.errors import BadArgument, NotSupported

T, B, I, H = 9, 3, 4, 5
RULES = (
    train.Full(),
    train.Window(4),
    train.Chunk(3),
    train.Chunk(2, 5),
    train.Chunk(4, 3),
    train.Bernoulli(0.6),
    train.Bernoulli(0.6, shared=False),
    train.Bernoulli(train.artbp(3.0)),
    train.Uniform(),
    train.SourceStep(4),
    train.Roulette(0.7),
)


class Step(nn.Module):
    """An LSTM cell with dropout on its output, as a step."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.cell, self.drop = nn.LSTMCell(I, H), nn.Dropout(dropout)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        h, c = self.cell(x, state)
        h = self.drop(h)
        return h, (h, c)


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(T, B, I, dtype=torch.double), torch.randn(T, B, H, dtype=torch.double)


def gradient(module: nn.Module, outputs: Tensor, weights: Tensor) -> Tensor:
    loss = (outputs * weights).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])


def windows_by_hand(run: Callable[[Tensor, Any], Any], inputs: Tensor, k1: int, k2: int) -> Tensor:
    """(k1, k2): outputs of every pass from the detached state before it."""
    states, state = [None], None
    with torch.no_grad():
        for t in range(T):
            _, state = run(inputs[t : t + 1], state)
            states.append(state)
    outputs = []
    for stop in range(k1, T + k1, k1):
        begin, first, end = max(0, stop - k2), stop - k1, min(stop, T)
        if begin > first:
            with torch.no_grad():
                outputs.append(run(inputs[first : min(begin, end)], states[first])[0])
        if begin < end:
            outputs.append(run(inputs[begin:end], states[begin])[0][max(0, first - begin) :])
    return torch.cat(outputs)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.label)
def test_fused_layers_keep_their_outputs(kind: str, batch_first: bool, rule: Any) -> None:
    torch.manual_seed(0)
    rnn = getattr(nn, kind)(I, H, num_layers=2, batch_first=batch_first).double()
    inputs, _ = data()
    inputs = inputs.transpose(0, 1) if batch_first else inputs
    plain, last = rnn(inputs)
    outputs, state = train.unroll(rnn, inputs, estimator=rule)
    torch.testing.assert_close(outputs, plain, rtol=1e-12, atol=1e-14)
    for one, two in zip(*(s if isinstance(s, tuple) else (s,) for s in (state, last)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (1, 4), (2, 5), (3, 3), (4, 3), (3, 20)])
def test_fused_windows_and_chunks_equal_loops_by_hand(k1: int, k2: int) -> None:
    torch.manual_seed(0)
    rnn = nn.GRU(I, H, num_layers=2).double()
    inputs, weights = data()
    expected = gradient(rnn, windows_by_hand(rnn, inputs, k1, k2), weights)
    rules = [train.Chunk(k1, k2), *([train.Window(k2)] if k1 == 1 else [])]
    for rule in rules:
        outputs, _ = train.unroll(rnn, inputs, estimator=rule)
        torch.testing.assert_close(gradient(rnn, outputs, weights), expected, rtol=1e-10, atol=0)


def test_windows_one_by_one_are_the_hand_written_loop_bit_for_bit() -> None:
    torch.manual_seed(0)
    rnn = nn.LSTM(I, H)
    inputs, weights = (value.float() for value in data())
    by_hand = gradient(rnn, windows_by_hand(rnn, inputs, 1, 4), weights)
    outputs, _ = train.unroll(rnn, inputs, estimator=train.Window(4), side_by_side=False)
    assert torch.equal(gradient(rnn, outputs, weights), by_hand)


@pytest.mark.parametrize("rule", [train.Window(3), train.Chunk(2, 5), train.Roulette(0.6)])
def test_windows_of_a_step_with_dropout_have_the_masks_of_the_plain_pass(rule: Any) -> None:
    torch.manual_seed(0)
    step = Step(dropout=0.5).double()
    inputs, _ = data()
    zeros = torch.zeros(B, H, dtype=torch.double)
    torch.manual_seed(5)
    plain, _ = train.unroll(step, inputs, (zeros, zeros))
    after = torch.get_rng_state()
    torch.manual_seed(5)
    draws = torch.Generator().manual_seed(0)
    outputs, _ = rnndiag.truncated_unroll(step, inputs, (zeros, zeros), rule, draws)
    torch.testing.assert_close(outputs, plain, rtol=1e-12, atol=0)
    assert torch.equal(torch.get_rng_state(), after)
    with pytest.raises(NotSupported, match="dropout"):
        train.unroll(step, inputs, (zeros, zeros), train.Window(3), side_by_side=True)


def test_a_window_with_dropout_has_the_gradient_of_its_masks() -> None:
    """Against the plain pass with the same masks, detached by hand at each window's start."""
    torch.manual_seed(0)
    step, tau = Step(dropout=0.5).double(), 3
    inputs, weights = data()
    zeros = torch.zeros(B, H, dtype=torch.double)
    torch.manual_seed(5)
    masks = [step.drop(torch.ones(B, H, dtype=torch.double)) for _ in range(T)]

    def run(t: int, state: Any) -> Any:
        h, c = step.cell(inputs[t], state)
        return h * masks[t], c

    states: list[Any] = [(zeros, zeros)]
    with torch.no_grad():
        for t in range(T):
            states.append(run(t, states[-1]))
    outputs = []
    for u in range(T):
        state = states[max(0, u - tau + 1)]
        for t in range(max(0, u - tau + 1), u + 1):
            state = run(t, state)
        outputs.append(state[0])
    expected = gradient(step, torch.stack(outputs), weights)
    torch.manual_seed(5)
    found, _ = train.unroll(step, inputs, (zeros, zeros), train.Window(tau))
    torch.testing.assert_close(gradient(step, found, weights), expected, rtol=1e-10, atol=0)


# A mask a sequence cannot be drawn alike for one sequence alone.
@pytest.mark.parametrize("rule", [rule for rule in RULES if getattr(rule, "shared", True)])
def test_lengths_are_as_every_sequence_alone(rule: Any) -> None:
    torch.manual_seed(0)
    rnn = nn.LSTM(I, H).double()
    inputs, weights = data()
    lengths = torch.tensor([9, 4, 6])
    mask = (torch.arange(T)[:, None] < lengths)[..., None]
    seed = torch.Generator().manual_seed(3)
    outputs, state = train.unroll(rnn, inputs, estimator=rule, lengths=lengths, generator=seed)
    found = gradient(rnn, outputs * mask, weights)
    expected = torch.zeros_like(found)
    for b, n in enumerate(lengths.tolist()):
        # the draws are for all T steps, so the sequence alone is padded by steps without a loss
        seed = torch.Generator().manual_seed(3)
        one, _ = train.unroll(rnn, inputs[:, b : b + 1], estimator=rule, generator=seed)
        expected += gradient(rnn, one[:n], weights[:n, b : b + 1])
        _, last = rnn(inputs[:n, b : b + 1])
        for part, alone in zip(state, last, strict=True):
            torch.testing.assert_close(part[:, b : b + 1], alone)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_packed_sequences_come_back_packed_in_the_same_order() -> None:
    torch.manual_seed(0)
    rnn = nn.LSTM(I, H, batch_first=True).double()
    inputs, _ = data()
    packed = pack_padded_sequence(
        inputs.transpose(0, 1), torch.tensor([4, 9, 6]), batch_first=True, enforce_sorted=False
    )
    plain, _ = rnn(packed)
    for rule in (train.Full(), train.Chunk(4), train.Window(3)):
        outputs, _ = train.unroll(rnn, packed, estimator=rule)
        for one, two in zip(pad_packed_sequence(outputs), pad_packed_sequence(plain), strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("make", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_cells_are_steps(make: Any) -> None:
    torch.manual_seed(0)
    cell = make(I, H).double()
    layer = getattr(nn, make.__name__.removesuffix("Cell"))(I, H).double()
    layer.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    inputs, weights = data()
    for rule in (train.Full(), train.Chunk(4), train.Window(3), train.SourceStep(5)):
        one, _ = train.unroll(cell, inputs, estimator=rule)
        two, _ = train.unroll(layer, inputs, estimator=rule)
        torch.testing.assert_close(
            gradient(cell, one, weights), gradient(layer, two, weights), rtol=1e-10, atol=0
        )


@pytest.mark.parametrize(
    "rule",
    [
        train.Chunk(4),
        train.Bernoulli(0.6),
        train.Bernoulli(0.6, shared=False),
        train.Uniform(),
        train.SourceStep(4),
        train.CellOnly(),
    ],
    ids=lambda rule: rule.label,
)
def test_a_loop_of_ones_own_has_the_gradient_of_unroll(rule: Any) -> None:
    torch.manual_seed(0)
    step = Step().double()
    inputs, weights = data()
    zeros = torch.zeros(B, H, dtype=torch.double)
    draws = torch.Generator().manual_seed(2)
    between = train.between_steps(rule, T, batch=B, generator=draws)
    state, outputs = (zeros, zeros), []
    for t, x in enumerate(inputs):
        output, state = step(x, between.state(t, state))
        outputs.append(between.output(t, output))
    by_hand = gradient(step, torch.stack(outputs), weights)
    draws = torch.Generator().manual_seed(2)
    found, _ = train.unroll(step, inputs, (zeros, zeros), rule, generator=draws)
    assert torch.equal(gradient(step, found, weights), by_hand)


def test_what_cannot_be_unrolled_is_refused() -> None:
    inputs, _ = data()
    with pytest.raises(BadArgument, match="both directions"):
        train.unroll(nn.LSTM(I, H, bidirectional=True).double(), inputs, estimator=train.Chunk(3))
    with pytest.raises(NotSupported, match="cannot be unrolled with"):
        train.unroll(nn.LSTM(I, H).double(), inputs, estimator=rnndiag.estimators.Clip(1.0))
    with pytest.raises(NotSupported, match="does not act between two steps"):
        train.between_steps(train.Window(4), T)
    with pytest.raises(BadArgument, match="needs a cell state c"):
        train.unroll(nn.GRU(I, H).double(), inputs, estimator=train.CellOnly())
    rnn, x = nn.GRU(2, 3, batch_first=True), torch.randn(4, 5, 2)
    with pytest.raises(BadArgument, match="The estimator is 'window'"):
        train.unroll(rnn, x, estimator="window")
    with pytest.raises(BadArgument, match=r"shape \(2,\) beside 4 sequences"):
        train.unroll(rnn, x, lengths=torch.tensor([3, 5]))
    with pytest.raises(BadArgument, match=r"tau is 2\.5"):
        train.Window(2.5)  # type: ignore[arg-type]
    with pytest.raises(BadArgument, match="cannot be unrolled"):
        train.unroll("lstm", inputs)  # type: ignore[arg-type]
