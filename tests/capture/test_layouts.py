"""Layouts beside the grid: unbatched, one of everything, long, in place, outputs used in part, subclasses, NaN."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from capture.by_hand import ByHand, run_both, same
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnndiag

B, I, H, T = 3, 2, 4, 5
KINDS = [nn.LSTM, nn.GRU, nn.RNN]
pytestmark = pytest.mark.usefixtures("double")


def layers(count: int, both: bool = False) -> dict[str, Any]:
    return {
        f"rnn.l{k}{end}": ("rnn", [0], f"l{k}{end}")
        for k in range(count)
        for end in ([""] + [".reverse"] * both)
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("steps", "batch", "units"), [(1, 1, 1), (1, 3, 4), (5, 1, 4), (5, 3, 1)], ids=str
)
def test_one_of_everything(kind: type[nn.RNNBase], steps: int, batch: int, units: int) -> None:
    x = torch.randn(steps, batch, 1)
    both = run_both({"rnn": kind(1, units, 2)}, lambda rnn: rnn(x)[0].square().sum())
    both.check(layers(2), {})


@pytest.mark.parametrize("kind", KINDS)
def test_unbatched_input(kind: type[nn.RNNBase]) -> None:
    x = torch.randn(T, I)
    both = run_both({"rnn": kind(I, H, 2)}, lambda rnn: rnn(x)[0].square().sum())
    both.check(layers(2), {})
    assert both.probe.layer_runs[0].B == 1


@pytest.mark.parametrize("kind", KINDS)
def test_no_biases(kind: type[nn.RNNBase]) -> None:
    x = torch.randn(T, B, I)
    both = run_both({"rnn": kind(I, H, bias=False)}, lambda rnn: rnn(x)[0].square().sum())
    both.check(layers(1), {})
    assert set(both.probe.layer_runs[0].weights) == {"weight_ih", "weight_hh"}


@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_steps(kind: type[nn.RNNBase]) -> None:
    module, x = kind(1, 2), torch.randn(2000, 1, 1)
    with rnndiag.probe(module) as probe:
        module(x)[0][-1].sum().backward()
    (run,) = probe.layer_runs
    assert run.T == 2000
    assert probe.proofs[0].verdict == "exact"
    assert probe.proofs[0].worst <= 1e-12


@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_output_that_is_written_to_in_place(kind: type[nn.RNNBase], batch_first: bool) -> None:
    x = torch.randn(B, T, I) if batch_first else torch.randn(T, B, I)

    def program(rnn: Any) -> Tensor:
        out, _ = rnn(x)
        if isinstance(rnn, ByHand):
            return (3 * out).pow(3).sum()
        out.mul_(3)
        return out.pow(3).sum()

    module = kind(I, H, 2, batch_first=batch_first, bidirectional=True)
    run_both({"rnn": module}, program).check(layers(2, both=True), {})


@pytest.mark.parametrize(
    "use",
    [
        lambda out, h, c: out[2].sum(),
        lambda out, h, c: h.square().sum(),
        lambda out, h, c: c.square().sum(),
        lambda out, h, c: h[0].sum() + c[1, :, 0].sum(),
        lambda out, h, c: out[:, 1].square().sum() + 0.0 * h.sum(),
    ],
    ids=["one step", "h_n", "c_n", "pieces of both", "one sequence"],
)
def test_outputs_used_in_part(use: Any) -> None:
    x = torch.randn(T, B, I)

    def program(rnn: Any) -> Tensor:
        out, (h, c) = rnn(x)
        return use(out, h, c)

    run_both({"rnn": nn.LSTM(I, H, 2)}, program).check(layers(2), {})


def test_a_call_whose_gradient_never_arrives_gives_no_run() -> None:
    module, x = nn.LSTM(I, H), torch.randn(T, B, I)
    with rnndiag.probe(module) as probe:
        module(x)
        module(x)[0].sum().backward()
        module(x)
    assert [run.name for run in probe.layer_runs] == ["l0"]
    assert probe.proofs[0].verdict == "exact"


def test_nothing_inside_gives_nothing() -> None:
    with rnndiag.probe(nn.LSTM(I, H)) as probe:
        pass
    assert probe.layer_runs == []
    assert probe.proofs == []


def test_keyword_calls_and_a_state_shared_between_h_and_c() -> None:
    module, x = nn.LSTM(I, H), torch.randn(T, B, I)
    start = torch.randn(1, B, H, requires_grad=True)
    with rnndiag.probe(module) as probe:
        module(input=x, hx=(start, start))[0].square().sum().backward()
    (run,) = probe.layer_runs
    assert probe.proofs[0].verdict == "exact"
    assert run.initial_gradient is not None
    both = run.initial_gradient[0] + run.initial_gradient[1]
    assert reference.relative(both, start.grad[0]) < 1e-12


def test_a_subclass_with_its_own_forward() -> None:
    class Padded(nn.LSTM):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            out, _ = super().forward(pack_padded_sequence(x, lengths))
            return pad_packed_sequence(out)[0]

    module, x, lengths = Padded(I, H), torch.randn(T, B, I), [5, 3, 2]
    with rnndiag.probe(module) as probe:
        module(x, lengths=torch.tensor(lengths)).square().sum().backward()
    (run,) = probe.layer_runs
    by_hand = ByHand(module)
    keep = reference.mask(lengths, T)[..., None]
    out, _, tapes = reference.unroll_module(module, x, None, lengths, (), by_hand.weights)
    (out * keep).square().sum().backward()
    same(run, [tapes["l0"]], lengths)
    assert run.lengths.tolist() == lengths


def poisoned_input(module: nn.RNNBase, x: Tensor) -> None:
    x[2, 1] = torch.nan


def poisoned_unit(module: nn.RNNBase, x: Tensor) -> None:
    with torch.no_grad():
        module.bias_ih_l0[1::H] = torch.inf


@pytest.mark.parametrize("poison", [poisoned_input, poisoned_unit])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_shown_exactly_where_it_is(
    kind: type[nn.RNNBase], poison: Any
) -> None:
    """Not a smear: a matrix product over all gates spreads one unit's NaN, a step by hand does not."""
    module, x = kind(I, H), torch.randn(T, B, I)
    poison(module, x)
    with rnndiag.probe(module) as probe:
        module(x)[0][1:4].square().sum().backward()
    (run,) = probe.layer_runs
    by_hand = ByHand(module)
    by_hand(x)[0][1:4].square().sum().backward()
    tape = by_hand.calls[0]["l0"]
    for found, expected in zip(run.states, tape.states(), strict=True):
        assert torch.equal(found.isfinite(), expected.isfinite())
    for found, expected in zip(rnndiag.adjoints(run).parts, tape.adjoints(), strict=True):
        assert torch.equal(found.isfinite(), expected.isfinite())
    if poison is poisoned_input:
        assert probe.proofs[0].verdict == "inexact"
        assert "not finite" in probe.proofs[0].reasons[0]
