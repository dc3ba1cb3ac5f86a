"""Adjoints and contributions of every cell against the unrolled loop, in float64."""

from __future__ import annotations

import pytest
import torch
from reference import GATES, STEPS, TWO_PARTS, Tape, draw_state, draw_weights, mask, relative
from reference import unroll as unroll_by_hand

from rnndiag.engine.adjoints import adjoints
from rnndiag.engine.cells import CELLS, Cell, find_cell
from rnndiag.engine.contributions import contribution_norms, contributions
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.unroll import unroll

T, B, I, H = 7, 4, 3, 5
LENGTHS = [7, 3, 5, 1]

CASES = [
    pytest.param(cell, options, id="-".join([cell, *map(str, options)]))
    for cell in STEPS
    for options in (
        (),
        ("lengths",),
        ("no_bias", "initial"),
        ("initial", "lengths"),
        *([("projection", "lengths", "initial")] if cell == "lstm" else []),
        *([("matrix_peepholes", "lengths")] if cell == "peephole_lstm" else []),
    )
]


def make(cell: str, options: tuple[str, ...]) -> tuple[LayerRun, Tape, dict[str, torch.Tensor]]:
    """The same layer run by rnndiag and by hand, with a loss on every part of every state that exists."""
    projection = 2 if "projection" in options else 0
    weights = draw_weights(
        cell,
        I,
        H,
        projection=projection,
        bias="no_bias" not in options,
        matrix_peepholes="matrix_peepholes" in options,
    )
    lengths = LENGTHS if "lengths" in options else None
    draw = torch.Generator().manual_seed(5)
    inputs = torch.randn(T, B, I, dtype=torch.float64, generator=draw)
    initial = draw_state(cell, B, H, projection)
    if "initial" not in options:
        initial = tuple(torch.zeros_like(part) for part in initial)
    direct = tuple(
        torch.randn(T, B, part.shape[-1], dtype=torch.float64, generator=draw) for part in initial
    )
    run = unroll(
        find_cell(cell),
        weights,
        inputs,
        direct,
        initial,
        None if lengths is None else torch.tensor(lengths),
    )
    leaves = {key: value.clone().requires_grad_() for key, value in weights.items()}
    x = inputs.clone().requires_grad_()
    _, _, tape = unroll_by_hand(cell, leaves, x, initial, lengths)
    keep = mask(LENGTHS if lengths else [T] * B, T)[..., None]
    loss = sum(
        (torch.stack(states) * e * keep).sum()
        for states, e in zip(zip(*tape.relays, strict=True), direct, strict=True)
    )
    loss.backward()
    return run, tape, {**{k: v.grad for k, v in leaves.items()}, "x": x.grad, "keep": keep}


@pytest.mark.parametrize(("cell", "options"), CASES)
def test_adjoints_and_contributions_match_the_unrolled_loop(
    cell: str, options: tuple[str, ...]
) -> None:
    run, tape, truth = make(cell, options)
    keep = truth["keep"]
    adj = adjoints(run)
    for found, expected in zip(run.states, tape.states(), strict=True):
        assert relative(found, expected * keep) <= 1e-13
    for found, expected in zip(adj.parts, tape.adjoints(), strict=True):
        assert relative(found, expected * keep) <= 1e-12
    for found, start in zip(adj.initial, tape.initial, strict=True):
        assert start.grad is not None
        assert relative(found, start.grad) <= 1e-12
    assert relative(adj.inputs(), truth["x"]) <= 1e-12
    for key in run.weights:
        found = contributions(run, key, adj)
        assert relative(found, tape.contributions(key)) <= 1e-12, key
        assert relative(found.sum(0), truth[key]) <= 1e-12, key


@pytest.mark.parametrize(("cell", "options"), CASES)
def test_norms_are_those_of_the_contributions(cell: str, options: tuple[str, ...]) -> None:
    run, tape, _ = make(cell, options)
    valid = run.mask().sum(1)
    singles = [make_single(run, b) for b in range(B)]
    for key, norms in contribution_norms(adjoints(run)).items():
        each = tape.contributions(key).flatten(1)
        total = each.sum(0)
        assert relative(norms.norm, each.norm(dim=1)) <= 1e-11, key
        assert relative(norms.total.flatten(), total) <= 1e-12, key
        cosine = (each @ total) / (each.norm(dim=1) * total.norm())
        assert torch.allclose(norms.alignment, cosine, rtol=1e-10, atol=1e-12, equal_nan=True), key
        if not norms.sample_norm.isnan().all():
            per_sample = torch.stack(
                [contributions(single, key).flatten(1).norm(dim=1) for single in singles]
            )
            assert relative(norms.sample_norm, per_sample.sum(0) / valid) <= 1e-11, key
    blocks = GATES[cell][1]
    gate_norm = contribution_norms(adjoints(run))["weight_hh"].gate_norm
    assert gate_norm is not None
    by_gate = tape.contributions("weight_hh").unflatten(1, (blocks, H)).flatten(2).norm(dim=2).T
    assert relative(gate_norm, by_gate) <= 1e-11


def make_single(run: LayerRun, sample: int) -> LayerRun:
    return run.select([sample])


def test_norms_formed_by_stretches_equal_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, _ = make("lecture_gru", ("lengths",))
    adj = adjoints(run)
    at_once = contribution_norms(adj)
    monkeypatch.setattr("rnndiag.engine.contributions.VJP_BYTES", 1)
    by_step = contribution_norms(adj)
    for key, norms in at_once.items():
        assert relative(by_step[key].norm, norms.norm) <= 1e-13
        assert relative(by_step[key].total, norms.total) <= 1e-13


def test_preactivations_differentiated_by_stretches_equal_those_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, _, _ = make("peephole_lstm", ("lengths", "initial", "matrix_peepholes"))
    at_once = adjoints(run)
    monkeypatch.setattr("rnndiag.engine.adjoints.GRAPH_BYTES", 1)
    by_step = adjoints(run)
    assert at_once.a_ih is not None
    assert by_step.a_ih is not None
    assert relative(by_step.a_ih, at_once.a_ih) <= 1e-14
    assert by_step.a_hh is by_step.a_ih


@pytest.mark.parametrize("cell", [c for c in STEPS if c != "lecture_gru"])
def test_scan_in_stretches_and_any_batch_shape(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, tape, truth = make(cell, ("initial", "lengths"))
    monkeypatch.setattr("rnndiag.engine.adjoints.CHUNK_BYTES", 1)
    adj = adjoints(run)
    for found, expected in zip(adj.parts, tape.adjoints(), strict=True):
        assert relative(found, expected * truth["keep"]) <= 1e-12


def test_one_step_one_sample_one_unit() -> None:
    for name in STEPS:
        weights = draw_weights(name, 1, 1)
        initial = draw_state(name, 1, 1)
        direct = tuple(torch.ones(1, 1, 1, dtype=torch.float64) for _ in initial)
        run = unroll(find_cell(name), weights, torch.ones(1, 1, 1).double(), direct, initial)
        adj = adjoints(run)
        assert torch.equal(adj.state, torch.ones(1, 1, len(initial), dtype=torch.float64))
        assert contributions(run, "weight_hh").shape == (1, *weights["weight_hh"].shape)


def test_the_cell_path_within_a_step_is_no_part_of_the_adjoint_of_c() -> None:
    """δ^c is not c_t.grad: with a loss on h alone, at the last step δ^c is zero though c_t feeds h_t."""
    for name in TWO_PARTS:
        weights, initial = draw_weights(name, I, H), draw_state(name, B, H)
        direct = (torch.ones(T, B, H).double(), torch.zeros(T, B, H).double())
        run = unroll(find_cell(name), weights, torch.ones(T, B, I).double(), direct, initial)
        delta_c = adjoints(run).parts[1]
        assert not delta_c[-1].any()
        assert delta_c[0].any()


def test_registered_elementwise_cells_are_elementwise() -> None:
    """The fast path takes diagonals alone, so the off-diagonal entries must be zero."""
    for cell in CELLS.values():
        weights = draw_weights(cell.name, I, H) if cell.name in STEPS else None
        if weights is None or not cell.is_elementwise(weights):
            continue
        assert cell.pointwise is not None
        a_ih = torch.randn(len(cell.gates) * H, dtype=torch.float64)
        a_hh = torch.randn(len(cell.blocks) * H, dtype=torch.float64)
        state = tuple(torch.randn(H, dtype=torch.float64) for _ in cell.parts)
        extras = cell.extra_weights(weights)
        rows = torch.autograd.functional.jacobian(
            lambda a, r, *s, cell=cell, extras=extras: cell.pointwise(a, r, s, **extras),
            (a_ih, a_hh, *state),
        )
        for row in rows:
            for block in row:
                square = block.unflatten(1, (-1, H)).movedim(1, 0)
                off = square - torch.diag_embed(square.diagonal(dim1=-2, dim2=-1))
                assert not off.any(), cell.name


def test_activations_agree_with_the_step() -> None:
    """h = o tanh c, and so on: what the statistics call a gate is what the step uses."""
    for name in TWO_PARTS:
        run, _, _ = make(name, ("initial",))
        cell: Cell = run.cell
        before = run.previous()
        a = run.inputs @ run.weights["weight_ih"].T + run.weights["bias_ih"]
        r = before[0] @ run.weights["weight_hh"].T + run.weights["bias_hh"]
        assert cell.activations is not None
        gate = cell.activations(a, r, before, **cell.extra_weights(run.weights))
        h, c = run.states
        assert relative(gate["o"] * torch.tanh(c), h) <= 1e-13
        i = gate.get("i", 1 - gate["f"])
        assert relative(gate["f"] * before[1] + i * gate["g"], c) <= 1e-13


def test_recovered_cell_states_are_those_of_the_step() -> None:
    run, _, _ = make("lstm", ("initial",))
    before = run.previous()
    a = run.inputs @ run.weights["weight_ih"].T + run.weights["bias_ih"]
    r = before[0] @ run.weights["weight_hh"].T + run.weights["bias_hh"]
    assert run.cell.recover is not None
    assert run.cell.activations is not None
    (c,) = run.cell.recover(run.cell.activations(a, r, before), run.initial)
    assert relative(c, run.states[1]) <= 1e-14
