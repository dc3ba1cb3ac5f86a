"""Several calls in one step: encoder and decoder, shared modules, decoding step by step, chunks, several losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from capture.by_hand import run_both
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnndiag
from rnndiag.errors import NotSupported

B, I, H = 3, 2, 4
KINDS = [nn.LSTM, nn.GRU, nn.RNN]
pytestmark = pytest.mark.usefixtures("double")


def h_of(state: Any) -> Tensor:
    return state[0] if isinstance(state, tuple) else state


def cut(state: Any) -> Any:
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


def layers(module: str, calls: list[int], count: int, suffix: str = "") -> dict[str, Any]:
    return {f"{module}.l{k}{suffix}": (module, calls, f"l{k}") for k in range(count)}


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_and_decoder_are_two_runs_tied_to_each_other(kind: type[nn.RNNBase]) -> None:
    source, target = torch.randn(5, B, I), torch.randn(3, B, I)

    def program(enc: Any, dec: Any) -> Tensor:
        out, state = enc(source)
        return dec(target, state)[0].square().sum() + out.sum()

    both = run_both({"enc": kind(I, H, 2), "dec": kind(I, H, 2)}, program)
    both.check(
        layers("enc", [0], 2) | layers("dec", [0], 2),
        {"dec.l0": "run:enc.l0", "dec.l1": "run:enc.l1"},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_siamese_module_gives_a_run_a_call(kind: type[nn.RNNBase]) -> None:
    one, other = torch.randn(4, B, I), torch.randn(6, B, I)

    def program(rnn: Any) -> Tensor:
        return (h_of(rnn(one)[1]) - h_of(rnn(other)[1])).square().sum()

    both = run_both({"rnn": kind(I, H)}, program)
    both.check(layers("rnn", [0], 1) | layers("rnn", [1], 1, "#2"), {})


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_step_by_step_is_one_recurrence(kind: type[nn.RNNBase], count: int) -> None:
    xs = torch.randn(6, 1, B, I)

    def program(rnn: Any) -> Tensor:
        state, outputs = None, []
        for x in xs:
            out, state = rnn(x, state)
            outputs.append(out)
        return torch.cat(outputs)[2:].square().sum()

    run_both({"rnn": kind(I, H, count)}, program).check(layers("rnn", list(range(6)), count), {})


@pytest.mark.parametrize(
    "take",
    [
        lambda out, state: out[-1:],
        lambda out, state: state.clone(),
        lambda out, state: state.squeeze(0).contiguous().unsqueeze(0),
        lambda out, state: out.view(1, B, H),
    ],
    ids=["output", "clone", "views", "view"],
)
def test_a_state_is_followed_through_views_and_copies(take: Any) -> None:
    xs = torch.randn(5, 1, B, I)

    def program(rnn: Any) -> Tensor:
        state, total = torch.zeros(1, B, H), torch.zeros(())
        for x in xs:
            out, new = rnn(x, state)
            state, total = take(out, new), total + out.square().sum()
        return total

    run_both({"rnn": nn.GRU(I, H)}, program).check(layers("rnn", list(range(5)), 1), {})


def test_a_state_that_is_changed_on_the_way_starts_a_run_of_its_own() -> None:
    xs = torch.randn(2, 3, B, I)

    def program(rnn: Any) -> Tensor:
        out, state = rnn(xs[0])
        again, _ = rnn(xs[1], 0.5 * state)
        return out.sum() + again.square().sum()

    both = run_both({"rnn": nn.GRU(I, H)}, program)
    both.check(layers("rnn", [0], 1) | layers("rnn", [1], 1, "#2"), {"rnn.l0#2": "given"})


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 2, 0]], ids=["in order", "beam search"])
def test_a_state_whose_sequences_are_put_in_order_starts_a_run_of_its_own(order: list[int]) -> None:
    xs = torch.randn(2, 1, 1, I).expand(2, 1, B, I)  # one start token: all beams begin alike
    weight = torch.randn(1, B, H)

    def program(rnn: Any) -> Tensor:
        out, state = rnn(xs[0])
        again, _ = rnn(xs[1], state.index_select(1, torch.tensor(order)))
        return (out * weight).sum() + (again * weight).square().sum()

    both = run_both({"rnn": nn.GRU(I, H)}, program)
    both.check(layers("rnn", [0], 1) | layers("rnn", [1], 1, "#2"), {"rnn.l0#2": "given"})
    assert torch.allclose(
        both.probe.layer_runs[1].direct[0], 2 * weight**2 * both.probe.layer_runs[1].states[0]
    )


def test_a_state_from_which_two_runs_start_ends_its_own_run() -> None:
    xs = torch.randn(3, 3, B, I)

    def program(rnn: Any) -> Tensor:
        _, state = rnn(xs[0])
        return (rnn(xs[1], state)[0] * rnn(xs[2], state)[0]).sum()

    both = run_both({"rnn": nn.LSTM(I, H)}, program)
    both.check(
        layers("rnn", [0], 1) | layers("rnn", [1], 1, "#2") | layers("rnn", [2], 1, "#3"),
        {"rnn.l0#2": "run:rnn.l0", "rnn.l0#3": "run:rnn.l0"},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_attached_chunks_are_one_recurrence_and_detached_ones_are_not(
    kind: type[nn.RNNBase],
) -> None:
    chunks = torch.randn(9, B, I).split(4)

    def program(rnn: Any, detach: bool) -> Tensor:
        state, total = None, torch.zeros(())
        for chunk in chunks:
            out, state = rnn(chunk, state)
            total = total + out.square().sum()
            state = cut(state) if detach else state
        return total

    attached = run_both({"rnn": kind(I, H, 2)}, lambda rnn: program(rnn, detach=False))
    attached.check(layers("rnn", [0, 1, 2], 2), {})
    detached = run_both({"rnn": kind(I, H, 2)}, lambda rnn: program(rnn, detach=True))
    expected = {
        **layers("rnn", [0], 2),
        **layers("rnn", [1], 2, "#2"),
        **layers("rnn", [2], 2, "#3"),
    }
    ties = {
        f"rnn.l{k}#{n}": f"detached:rnn.l{k}" + (f"#{n - 1}" if n > 2 else "")
        for k in range(2)
        for n in (2, 3)
    }
    detached.check(expected, ties)


def test_a_backward_pass_a_chunk_gives_its_own_runs() -> None:
    chunks = torch.randn(8, B, I).split(4)

    def program(rnn: Any) -> None:
        state = None
        for chunk in chunks:
            out, state = rnn(chunk, state)
            out.square().sum().backward()
            state = cut(state)

    both = run_both({"rnn": nn.LSTM(I, H)}, program)
    both.check(layers("rnn", [0], 1) | layers("rnn", [1], 1, "#2"), {"rnn.l0#2": "detached:rnn.l0"})
    assert len(both.probe.backward_passes) == 2


def test_two_losses_through_one_call_are_two_passes() -> None:
    x = torch.randn(5, B, I)

    def program(rnn: Any, first: bool, second: bool) -> None:
        out, _ = rnn(x)
        if first:
            out[1].sum().backward(retain_graph=second)
        if second:
            out[-1].square().sum().backward()

    module = nn.GRU(I, H)
    one = run_both({"rnn": module}, lambda rnn: program(rnn, True, False))
    two = run_both({"rnn": module}, lambda rnn: program(rnn, False, True))
    one.check(layers("rnn", [0], 1), {})
    two.check(layers("rnn", [0], 1), {})
    both = run_both({"rnn": module}, lambda rnn: program(rnn, True, True))
    runs = both.probe.layer_runs
    assert [run.name for run in runs] == ["rnn.l0", "rnn.l0@2"]
    for run, alone in zip(runs, (one, two), strict=True):
        (expected,) = alone.probe.layer_runs
        assert torch.equal(run.direct[0], expected.direct[0])
    assert [proof.verdict for proof in both.probe.proofs] == ["exact", "exact"]


def test_accumulated_minibatches_keep_their_own_gradients() -> None:
    xs = torch.randn(3, 4, B, I)

    def program(rnn: Any) -> None:
        for x in xs:
            (rnn(x)[0].square().mean() / 3).backward()

    both = run_both({"rnn": nn.LSTM(I, H)}, program)
    both.check({f"rnn.l0{s}": ("rnn", [k], "l0") for k, s in enumerate(["", "#2", "#3"])}, {})


def packed(lengths: list[int], seed: int) -> PackedSequence:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(max(lengths), B, I, generator=draw)
    return pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)


@pytest.mark.parametrize("kind", KINDS)
def test_unsorted_packed_calls_are_tied_in_the_users_order(kind: type[nn.RNNBase]) -> None:
    first, second, third = packed([2, 5, 3], 1), packed([4, 1, 2], 2), packed([1, 2, 5], 3)

    def program(enc: Any, dec: Any) -> Tensor:
        out, state = enc(first)
        again, state = enc(second, state)
        last, _ = dec(third, state)
        return out.data.sum() + again.data.square().sum() + last.data.square().sum()

    both = run_both({"enc": kind(I, H), "dec": kind(I, H)}, program)
    both.check(
        layers("enc", [0], 1) | layers("enc", [1], 1, "#2") | layers("dec", [0], 1),
        {"enc.l0#2": "run:enc.l0", "dec.l0": "run:enc.l0#2"},
    )
    assert both.probe.layer_runs[0].lengths.tolist() == [2, 5, 3]


def test_a_learnt_initial_state_is_said_to_be_learnt() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h0 = nn.Parameter(torch.randn(1, 1, H))
            self.rnn = nn.GRU(I, H)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x, self.h0.expand(-1, B, -1).contiguous())[0]

    import rnndiag

    model = Model()
    with rnndiag.probe(model) as probe:
        model(torch.randn(4, B, I)).square().sum().backward()
    (run,) = probe.layer_runs
    assert run.tie == "learnt"
    assert run.initial_gradient is not None
    assert torch.allclose(run.initial_gradient[0].sum(0), model.h0.grad[0, 0], atol=1e-12)
    assert torch.allclose(rnndiag.adjoints(run).initial[0], run.initial_gradient[0], atol=1e-12)


def test_a_call_without_a_single_sequence_is_named() -> None:
    rnn = nn.LSTM(I, H)
    with rnndiag.probe(rnn) as probe:
        rnn(torch.randn(4, 0, I))[0].sum().backward()
    with pytest.raises(NotSupported, match="without a single sequence"):
        probe.layer_runs
