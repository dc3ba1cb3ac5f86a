"""States that are reset on the way, as recurrent policies do where an episode is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import reference
import torch
from capture.by_hand import ByHand
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rnndiag

B, I, H, T = 3, 2, 4, 7
CELLS = [nn.LSTMCell, nn.GRUCell, nn.RNNCell]
MODULES = [nn.LSTM, nn.GRU, nn.RNN]
pytestmark = pytest.mark.usefixtures("double")

DONE = {
    "some": [(0, 1), (2, 0), (2, 1), (4, 0), (6, 2), (5, 0)],
    "at the ends": [(0, 0), (0, 2), (T - 1, 1)],
    "one sequence at every step": [(t, 1) for t in range(T)],
    "all at once": [(3, b) for b in range(B)],
    "everything": [(t, b) for t in range(T) for b in range(B)],
}
"""(step, sequence): before that step the state is reset."""


def done(name: str) -> Tensor:
    """(T, B) bool."""
    found = torch.zeros(T, B, dtype=torch.bool)
    for t, b in DONE[name]:
        found[t, b] = True
    return found


def parts(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


Reset = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(part of the state (..., B, S), done (B, 1), the part that a reset leads to) -> the part that goes on."""


def multiplied(part: Tensor, over: Tensor, fresh: Tensor) -> Tensor:
    return (1.0 - over.to(part.dtype)) * part


def chosen(part: Tensor, over: Tensor, fresh: Tensor) -> Tensor:
    return torch.where(over, fresh.to(part.dtype), part)


def filled(part: Tensor, over: Tensor, fresh: Tensor) -> Tensor:
    return part.masked_fill(over, 0.0)


def written(part: Tensor, over: Tensor, fresh: Tensor) -> Tensor:
    part = part.clone() if part.dim() == 2 else part  # a cell needs what it returned
    part[..., over[:, 0], :] = 0.0
    return part


def mixed(part: Tensor, over: Tensor, fresh: Tensor) -> Tensor:
    keep = 1.0 - over.to(part.dtype)
    return keep * part + (1.0 - keep) * fresh


PLAIN: dict[Reset, Reset] = {multiplied: multiplied, filled: multiplied, written: multiplied}
"""What stands for a reset in the reference."""


def play(
    step: Any,
    xs: Tensor,
    over: Tensor,
    start: Sequence[Tensor],
    fresh: Sequence[Tensor],
    how: Reset,
) -> Tensor:
    """One rollout; a loss in which the sequences do not mix."""
    state, total = tuple(start), torch.zeros(())
    for x, reset in zip(xs, over, strict=True):
        state = tuple(
            how(part, reset[:, None], other) for part, other in zip(state, fresh, strict=True)
        )
        bare = state if len(state) > 1 else state[0]
        if isinstance(getattr(step, "module", step), nn.RNNBase):
            time = 1 if step.batch_first else 0
            out, new = step(x.unsqueeze(time), bare)
        else:
            new = step(x, bare)
            out = parts(new)[0]
        state = parts(new)
        total = total + out.square().sum() + 0.3 * state[-1].sum()
    return total


def starts_of(module: nn.Module, seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    lead = (module.num_layers, B) if isinstance(module, nn.RNNBase) else (B,)
    count = 2 if isinstance(module, (nn.LSTM, nn.LSTMCell)) else 1
    return [torch.randn(*lead, H, generator=draw, dtype=torch.float64) for _ in range(count)]


def segments(over: Tensor) -> list[tuple[int, int, int]]:
    """(first step, sequence, steps), in the order in which they begin."""
    found = []
    for t in range(len(over)):
        for b in range(over.shape[1]):
            if t == 0 or over[t, b]:
                end = next((u for u in range(t + 1, len(over)) if over[u, b]), len(over))
                found.append((t, b, end - t))
    return found


def tapes_by_row(
    module: nn.Module,
    xs: Tensor,
    over: Tensor,
    start: Sequence[Tensor],
    fresh: Sequence[Tensor],
    how: Reset,
) -> list[list[dict[str, reference.Tape]]]:
    """Each sequence alone, unrolled by hand: by sequence, by call, by layer."""
    found = []
    for b in range(B):
        by_hand = ByHand(module)
        first, other = ([part[..., b : b + 1, :] for part in state] for state in (start, fresh))
        loss = play(by_hand, xs[:, b : b + 1], over[:, b : b + 1], first, other, how)
        loss.backward()
        found.append(by_hand.calls)
    return found


def check(
    run: rnndiag.LayerRun,
    layer: str,
    tapes: list[list[dict[str, reference.Tape]]],
    over: Tensor,
) -> None:
    """States, adjoints and contributions of every stretch between resets are those of the sequence played alone."""
    cut = segments(over)
    lengths = [run.T] * run.B if run.lengths is None else run.lengths.tolist()
    assert lengths == [steps for _, _, steps in cut]
    adj = rnndiag.adjoints(run)
    total = {key: torch.zeros(run.T, *value.shape) for key, value in run.weights.items()}
    for sample, (t, b, steps) in enumerate(cut):
        own = [tapes[b][u][layer] for u in range(t, t + steps)]
        for part in range(len(run.states)):
            for found, expected in (
                (run.states[part], [tape.states()[part] for tape in own]),
                (adj.parts[part], [tape.adjoints()[part] for tape in own]),
            ):
                assert torch.allclose(
                    found[:steps, sample], torch.cat(expected)[:, 0], rtol=1e-10, atol=1e-13
                )
                assert not found[steps:, sample].any()
            begins = own[0].initial[part][0].detach()
            assert torch.allclose(run.initial[part][sample], begins, rtol=1e-12, atol=1e-13)
        for key, value in total.items():
            value[:steps] += torch.cat([tape.contributions(key) for tape in own])
    for key, value in total.items():
        assert reference.relative(rnndiag.contributions(run, key), value) < 1e-10, key


def watched(
    module: nn.Module, over: Tensor, how: Reset, fresh: Sequence[Tensor] | None = None
) -> tuple[rnndiag.Probe, Any]:
    xs, start = torch.randn(T, B, I), starts_of(module, 1)
    fresh = [torch.zeros_like(part) for part in start] if fresh is None else fresh
    with rnndiag.probe(module) as probe:
        play(module, xs, over, [part.clone() for part in start], fresh, how).backward()
    plain = [part.detach() for part in fresh]
    return probe, tapes_by_row(module, xs, over, start, plain, PLAIN.get(how, chosen))


def exact(probe: rnndiag.Probe) -> None:
    (proof,) = probe.proofs
    assert (proof.verdict, proof.reasons) == ("exact", ())
    assert proof.worst <= 1e-12


@pytest.mark.parametrize("kind", [*CELLS, *MODULES])
@pytest.mark.parametrize("name", list(DONE))
def test_a_rollout_is_one_recurrence_of_its_episodes(kind: Any, name: str) -> None:
    over = done(name)
    probe, tapes = watched(kind(I, H), over, multiplied)
    (run,) = probe.layer_runs
    check(run, "" if issubclass(kind, nn.RNNCellBase) else "l0", tapes, over)
    exact(probe)
    (told,) = probe.backward_passes[0].resets.values()
    assert f"the {B} sequences of the batch, which makes {run.B} sequences" in told
    assert probe.recording.notes["resets"] == {run.name: told}


@pytest.mark.parametrize("how", [chosen, filled, written, mixed])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.LSTM, nn.GRU])
def test_a_reset_may_be_written_in_many_ways(kind: Any, how: Reset) -> None:
    over, module = done("some"), kind(I, H)
    fresh = starts_of(module, 2) if how in (chosen, mixed) else None
    probe, tapes = watched(module, over, how, fresh)
    (run,) = probe.layer_runs
    check(run, "" if issubclass(kind, nn.RNNCellBase) else "l0", tapes, over)
    exact(probe)
    assert run.tie == "given"


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_stack_is_reset_as_a_whole(kind: Any, batch_first: bool) -> None:
    over = done("some")
    probe, tapes = watched(kind(I, H, 2, batch_first=batch_first), over, multiplied)
    for layer, run in enumerate(probe.layer_runs):
        check(run, f"l{layer}", tapes, over)
    assert [run.name for run in probe.layer_runs] == ["l0", "l1"]
    exact(probe)


def test_dropout_between_the_layers_is_the_one_of_every_call() -> None:
    module, over = nn.LSTM(I, H, 3, dropout=0.5), done("some")
    start = starts_of(module, 1)
    with rnndiag.probe(module) as probe:
        zeros = [torch.zeros_like(part) for part in start]
        play(module, torch.randn(T, B, I), over, start, zeros, multiplied).backward()
    assert [run.B for run in probe.layer_runs] == [len(segments(over))] * 3
    exact(probe)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRU])
def test_without_a_reset_it_is_the_plain_recurrence(kind: Any) -> None:
    module, xs = kind(I, H), torch.randn(T, B, I)
    start, never = starts_of(module, 1), torch.zeros(T, B, dtype=torch.bool)
    runs = []
    for how in (multiplied, lambda part, over, fresh: part):
        with rnndiag.probe(module) as probe:
            play(module, xs, never, start, start, how).backward()
        runs += probe.layer_runs
        exact(probe)
        assert not probe.backward_passes[0].resets
    masked, plain = runs
    assert masked.lengths is None
    assert (masked.T, masked.B, masked.tie) == (plain.T, plain.B, plain.tie)
    for one, other in zip(masked.direct + masked.states, plain.direct + plain.states, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.LSTM])
def test_a_learnt_start_of_episodes_gets_the_gradient_of_all_of_them(kind: Any) -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(I, H)
            self.fresh = nn.ParameterList([part[..., :1, :] for part in starts_of(self.rnn, 2)])

    policy, over, xs = Policy(), done("some"), torch.randn(T, B, I)
    fresh = [part.expand(*part.shape[:-2], B, H) for part in policy.fresh]
    with rnndiag.probe(policy) as probe:
        play(policy.rnn, xs, over, fresh, fresh, chosen).backward()
    exact(probe)
    (run,) = probe.layer_runs
    assert run.tie == "learnt"
    assert run.initial_gradient is not None
    sent = rnndiag.adjoints(run).initial
    for parameter, gradient, own in zip(policy.fresh, run.initial_gradient, sent, strict=True):
        assert torch.allclose(gradient.sum(0), parameter.grad.reshape(H), atol=1e-12)
        assert torch.allclose(own, gradient, atol=1e-12)


def test_chunks_with_resets_in_between_are_one_recurrence() -> None:
    rnn, chunks = nn.LSTM(I, H, 2), torch.randn(9, B, I).split(4)
    with rnndiag.probe(rnn) as probe:
        state, total = None, torch.zeros(())
        for k, chunk in enumerate(chunks):
            if state is not None:
                keep = torch.tensor([[1.0], [0.0], [float(k == 1)]])
                state = tuple(keep * part for part in state)
            out, state = rnn(chunk, state)
            total = total + out.square().sum()
        total.backward()
    for run in probe.layer_runs:
        assert run.lengths.tolist() == [9, 4, 8, 4, 1, 1]
    exact(probe)


class Step(nn.Module):
    """A user's own cell, with an output beside its state."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.readout = nn.Linear(I + H, H), nn.Linear(H, 2)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.inner(torch.cat([x, h], -1))) + 0.1 * h
        return self.readout(h), h


@pytest.mark.parametrize("how", [multiplied, chosen])
def test_a_step_module_of_ones_own_may_be_reset(how: Reset) -> None:
    step, over, xs = Step(), done("some"), torch.randn(T, B, I)
    with rnndiag.probe(step) as probe:
        h, total = torch.zeros(B, H), torch.zeros(())
        for x, reset in zip(xs, over, strict=True):
            said, h = step(x, how(h, reset[:, None], torch.ones(B, H)))
            total = total + said.square().sum()
        total.backward()
    (run,) = probe.layer_runs
    assert run.lengths.tolist() == [steps for _, _, steps in segments(over)]
    exact(probe)


@settings(max_examples=25, deadline=None)
@given(
    over=st.lists(st.lists(st.booleans(), min_size=B, max_size=B), min_size=T, max_size=T),
    kind=st.sampled_from([nn.LSTMCell, nn.GRU]),
)
def test_any_mask_gives_the_episodes_that_it_cuts(over: list[list[bool]], kind: Any) -> None:
    mask = torch.tensor(over)
    probe, tapes = watched(kind(I, H), mask, multiplied)
    (run,) = probe.layer_runs
    check(run, "" if kind is nn.LSTMCell else "l0", tapes, mask)
    exact(probe)
