"""Layer runs made by hand, their selections, and gradients against finite differences and gradcheck."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from reference import STEPS, draw_state, draw_weights, relative

from rnndiag.engine.adjoints import adjoints
from rnndiag.engine.cells import Cell, find_cell
from rnndiag.engine.contributions import contribution_norms, contributions
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.unroll import unroll
from rnndiag.errors import BadArgument
from rnndiag.recorder.capture import hidden_parts

T, B, I, H = 5, 3, 2, 3


def small(cell: str, lengths: list[int] | None = None) -> LayerRun:
    weights, initial = draw_weights(cell, I, H), draw_state(cell, B, H)
    draw = torch.Generator().manual_seed(2)
    direct = tuple(torch.randn(T, B, H, dtype=torch.float64, generator=draw) for _ in initial)
    inputs = torch.randn(T, B, I, dtype=torch.float64, generator=draw)
    where = None if lengths is None else torch.tensor(lengths)
    return unroll(find_cell(cell), weights, inputs, direct, initial, where)


def loss_of(run: LayerRun, weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Σ <e_t, s_t>: the loss whose direct gradients are the run's."""
    again = unroll(run.cell, weights, x, run.direct, run.initial, run.lengths)
    return sum((e * s).sum() for e, s in zip(run.direct, again.states, strict=True))


@pytest.mark.parametrize("cell", STEPS)
def test_total_contributions_match_finite_differences(cell: str) -> None:
    run, eps = small(cell, [5, 2, 4]), 1e-6
    for key, weight in run.weights.items():
        if cell == "elman_relu" and key.startswith("bias"):
            continue  # a kink may lie within eps of a unit
        draw = torch.Generator().manual_seed(7)
        way = torch.randn(weight.shape, dtype=torch.float64, generator=draw)
        up, down = (
            loss_of(run, {**run.weights, key: weight + sign * eps * way}, run.inputs)
            for sign in (1, -1)
        )
        slope = (up - down) / (2 * eps)
        found = (contributions(run, key).sum(0) * way).sum()
        assert float(found) == pytest.approx(float(slope), rel=1e-6, abs=1e-7), key


@pytest.mark.parametrize("cell", [c for c in STEPS if c != "elman_relu"])
def test_gradcheck_of_a_function_whose_backward_is_ours(cell: str) -> None:
    run = small(cell)

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, weight_hh: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x, weight_hh)
            weights = {**run.weights, "weight_hh": weight_hh.detach()}
            made = unroll(run.cell, weights, x.detach(), run.direct, run.initial)
            return made.states[0]

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x, weight_hh = ctx.saved_tensors
            direct = (grad, *[torch.zeros_like(part) for part in run.direct[1:]])
            weights = {**run.weights, "weight_hh": weight_hh}
            made = unroll(run.cell, weights, x, direct, run.initial)
            return adjoints(made).inputs(), contributions(made, "weight_hh").sum(0)

    x = run.inputs.clone().requires_grad_()
    weight = run.weights["weight_hh"].clone().requires_grad_()
    assert torch.autograd.gradcheck(Layer.apply, (x, weight))


@pytest.mark.parametrize("cell", STEPS)
def test_chosen_steps_and_chosen_samples(cell: str) -> None:
    run = small(cell, [5, 1, 3])
    times = torch.tensor([3, 0])
    for key in run.weights:
        all_steps = contributions(run, key)
        assert relative(contributions(run, key, times=times), all_steps[times]) <= 1e-13
        by_sample = sum(contributions(run.select([b]), key) for b in range(B))
        assert relative(by_sample, all_steps) <= 1e-12


def test_a_batch_longer_than_the_weights_is_normed_by_forming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both ways of norming give the same, whichever the shape asks for, and in stretches too."""
    weights = draw_weights("gru", 1, 2)
    draw = torch.Generator().manual_seed(1)
    x, e = (torch.randn(4, 20, n, dtype=torch.float64, generator=draw) for n in (1, 2))
    adj = adjoints(unroll(find_cell("gru"), weights, x, (e,)))
    monkeypatch.setattr("rnndiag.engine.contributions.VJP_BYTES", 1)
    for key, norms in contribution_norms(adj).items():
        each = contributions(adj.run, key, adj).flatten(1)
        assert relative(norms.norm, each.norm(dim=1)) <= 1e-12


def test_mask_previous_and_precision() -> None:
    run = small("lstm", [5, 1, 3])
    assert run.mask().sum(0).tolist() == [5, 1, 3]
    assert torch.equal(run.previous()[1][0], run.initial[1])
    assert torch.equal(run.previous()[1][3], run.states[1][2])
    assert run.to(torch.float32).states[0].dtype == torch.float32
    assert (run.T, run.B, run.S, run.sizes) == (T, B, 2 * H, (H, H))
    assert torch.equal(torch.cat(run.split(run.state_vector()), -1), run.state_vector())
    assert not run.states[0][1:, 1].any()


def test_wrong_parts_are_answered_with_the_parts() -> None:
    run = small("lstm")
    with pytest.raises(BadArgument, match=r"\('h', 'c'\).*1 direct"):
        unroll(run.cell, run.weights, run.inputs, run.direct[:1])
    free = Cell("free", ("h",), run_step=lambda weights, x, state: state)
    with pytest.raises(BadArgument, match="how large its state is"):
        unroll(free, {}, run.inputs, run.direct[:1])
    with pytest.raises(BadArgument, match="no weight 'weight_xx'"):
        contributions(run, "weight_xx")


def one_before(run: LayerRun) -> list[torch.Tensor]:
    return [torch.cat([a[None], b[:-1]]) for a, b in zip(run.initial, run.states, strict=True)]


def test_every_stretch_of_the_states_before() -> None:
    run = small("lstm")
    expected = one_before(run)
    for start in range(T):
        for stop in (None, *range(start + 1, T + 3)):
            for part, whole in zip(run.previous(start, stop), expected, strict=True):
                assert torch.equal(part, whole[start:stop])


def test_the_states_before_some_steps() -> None:
    run, times = small("lstm"), torch.tensor([T - 1, 0, 2, 0])
    for part, whole in zip(run.previous_at(times), one_before(run), strict=True):
        assert torch.equal(part, whole[times])


@pytest.mark.parametrize("kept", [0, 2**20])
def test_cell_states_recovered_by_stretches(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    run = small("lstm")
    monkeypatch.setattr(hidden_parts, "CHUNK_BYTES", 1)
    monkeypatch.setattr(hidden_parts, "KEPT_BYTES", kept)
    states, gates = hidden_parts.complete_states(
        run.cell, run.weights, run.inputs, run.states[0], run.initial
    )
    assert relative(states[1], run.states[1]) <= 1e-14
    assert (gates is None) == (kept == 0)
    if gates is not None:
        again = gates["f"] * run.previous()[1] + gates["i"] * gates["g"]
        assert relative(again, run.states[1]) <= 1e-14


def test_adjoints_whose_sum_overflows_are_finite_all_the_same() -> None:
    run = small("lstm").to(torch.float32)
    direct = tuple(torch.full_like(part, 2e37) for part in run.direct)
    large = adjoints(replace(run, direct=direct))
    expected = adjoints(replace(run, direct=tuple(torch.ones_like(part) for part in direct)))
    assert not bool(large.parts[0].sum().isfinite())
    assert large.forward_error is not None  # the quick scan's answer, not that of autograd's
    for part, one in zip(large.parts, expected.parts, strict=True):
        assert relative(part / 2e37, one) <= 1e-6


def test_sequences_are_chosen_by_number_mask_or_from_the_end() -> None:
    run = small("lstm")
    expected = run.select([2])
    for samples in (2, -1, [False] * (run.B - 1) + [True], torch.tensor(2), range(2, 3)):
        found = run.select(samples)
        assert torch.equal(found.states[1], expected.states[1])
        assert found.initial[0].shape == (1, run.sizes[0])
    with pytest.raises(BadArgument, match="No sequence"):
        run.select([])
