"""The lag sweep against naive loops that run every window again from a detached state."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import STEPS, relative
from truncation.naive import Problem, flat, problem

from rnndiag import credit_matrix, lag_sweep, loss_terms
from rnndiag.engine.cells import find_cell
from rnndiag.engine.unroll import unroll
from rnndiag.errors import BadArgument, NotSupported

LENGTHS = [12, 5, 9, 1]
TOLERANCE = 1e-10


def check_windows(p: Problem, runs: object, taus: range) -> None:
    sweep = lag_sweep(runs, lag_gradients=True)  # type: ignore[arg-type]
    full = p.full()
    size = float(full.norm())
    lag_gradients = sweep.lag_gradients
    running = torch.zeros_like(full)
    for d in range(p.T):
        running = running + flat({k: g[d] for k, g in lag_gradients.items()})
        tau = d + 1
        if tau not in taus:
            continue
        expected = p.window(tau)
        assert relative(running, expected) <= TOLERANCE
        off = full - expected
        assert abs(float(sweep.tail_norms["all"][tau]) - float(off.norm())) <= TOLERANCE * size
        assert abs(float(sweep.window_bias[tau]) - float(off.norm()) / size) <= TOLERANCE
        cosine = float(expected @ full) / (float(expected.norm()) * size)
        assert float(sweep.window_cosine[tau]) == pytest.approx(cosine, abs=TOLERANCE)
        progress = float(expected @ full) / size**2
        assert float(sweep.window_progress[tau]) == pytest.approx(progress, abs=TOLERANCE)
    assert relative(running, full) <= TOLERANCE
    assert relative(flat(sweep.gradient), full) <= TOLERANCE
    assert float(sweep.tail_norms["all"][0]) == pytest.approx(size, rel=TOLERANCE)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "packed"])
@pytest.mark.parametrize("cell", STEPS)
def test_every_window_of_every_cell(cell: str, lengths: list[int] | None) -> None:
    p = problem(cell, lengths=lengths)
    check_windows(p, p.run, range(1, 13))


@pytest.mark.parametrize(
    "options",
    [{}, {"lengths": LENGTHS}, {"dropout": True}, {"upper_only": True, "dropout": True}],
    ids=["plain", "packed", "dropout", "upper_only"],
)
@pytest.mark.parametrize(
    "cells", [("lstm", "lstm"), ("gru", "elman_relu"), ("lecture_gru", "peephole_lstm")]
)
def test_every_window_of_a_stack(cells: tuple[str, str], options: dict[str, object]) -> None:
    """Stack semantics: all layers are cut at the same step."""
    p = problem(*cells, **options)  # type: ignore[arg-type]
    check_windows(p, p.runs, range(1, 13))


def test_three_layers_cut_together() -> None:
    p = problem("elman_tanh", "gru", "lstm", T=7, upper_only=True)
    check_windows(p, p.runs, range(1, 8))


def test_a_stack_of_which_one_layer_was_recorded_in_double_precision() -> None:
    """Gradients that leave the range of float32 in one layer, as in the lowest of sixty cells."""
    p = problem("elman_tanh", "gru", T=7, upper_only=True)
    lower, upper = (run.to(torch.float32) for run in p.runs)
    double = lower.to(torch.float64)
    found, whole = lag_sweep((double, upper)), lag_sweep((double, upper.to(torch.float64)))
    assert torch.equal(found.window_bias, whole.window_bias)


def test_layer_semantics_of_a_lower_layer() -> None:
    """One layer of a stack by itself: what comes from above is its direct gradient, whatever made it."""
    p = problem("lstm", "gru", T=8)
    alone = problem("lstm", T=8)
    alone.direct = [p.runs[0].direct]
    alone.runs = [p.runs[0]]
    check_windows(alone, alone.run, range(1, 9))


@pytest.mark.parametrize("cell", ["elman_tanh", "lstm", "gru"])
def test_spot_windows_of_a_long_sequence(cell: str) -> None:
    p = problem(cell, T=200, B=2, H=3, scale=1.5)
    full = p.full()
    sweep = lag_sweep(p.run, budget=None)
    for tau in (1, 5, 196, 199):
        off = float((full - p.window(tau)).norm())
        assert abs(float(sweep.tail_norms["all"][tau]) - off) <= TOLERANCE * float(full.norm())


def test_losses_at_some_steps_only() -> None:
    for losses in ([11], [3, 11], [2, 3, 4], [0]):
        p = problem("lstm", losses=losses)
        check_windows(p, p.run, range(1, 13))


def test_loss_at_the_end_of_every_packed_sequence() -> None:
    """One output a sequence, each at another step: rows are packed by sequence."""
    lengths = [12, 5, 9, 1]
    p = problem("gru", lengths=lengths)
    ends = torch.zeros(12, 4, 1, dtype=torch.float64)
    for b, n in enumerate(lengths):
        ends[n - 1, b] = 1
    p.direct = [tuple(part * ends for part in p.direct[0])]
    p.runs = [replace(p.run, direct=p.direct[0])]
    check_windows(p, p.run, range(1, 13))
    matrix = credit_matrix(p.run)
    full = lag_sweep(p.run)
    assert relative(full.credit, matrix) < 1e-12
    for b, n in enumerate(lengths):
        alive = sum(m >= n for m in lengths)
        delta = naive_credit(p.sequences()[b], n - 1)
        expected = torch.zeros(12, dtype=torch.float64)
        expected[:n] = delta[:n] / alive
        assert relative(matrix[n - 1], expected) < 1e-12


def naive_credit(p: Problem, u: int) -> torch.Tensor:
    """Mean over samples of |dL_u/ds_s| with the parts of s_s held apart, by torch.autograd."""
    states = [p.initial]
    leaves = []
    now = list(p.initial)
    for t in range(u + 1):
        new = p.step(p.weights, t, now)
        now = [tuple((part * 1).requires_grad_() for part in s) for s in new]
        leaves.append([part for s in now for part in s])
    del states
    total = sum(
        (e[u] * part).sum()
        for own, s in zip(p.direct, now, strict=True)
        for e, part in zip(own, s, strict=True)
    )
    row = torch.zeros(p.T, dtype=torch.float64)
    for s, parts in enumerate(leaves):
        grads = torch.autograd.grad(
            total, parts, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        row[s] = torch.cat(grads, -1).norm(dim=-1).mean()
    return row


@pytest.mark.parametrize("cells", [("lstm",), ("gru",), ("elman_tanh", "lstm")])
def test_credit_matrix_by_autograd(cells: tuple[str, ...]) -> None:
    p = problem(*cells, T=8)
    matrix = credit_matrix(p.runs if len(cells) > 1 else p.run)
    assert matrix.shape == (8, 8)
    assert torch.equal(matrix, matrix.tril())
    for u in range(8):
        assert relative(matrix[u], naive_credit(p, u)) < 1e-12
    short = credit_matrix(p.run if len(cells) == 1 else p.runs, max_lag=3)
    lag = torch.arange(8)[:, None] - torch.arange(8)[None]
    assert torch.equal(torch.isnan(short), lag >= 3)
    assert relative(short[lag < 3], matrix[lag < 3]) < 1e-12


def test_profile_and_quantiles_from_the_matrix() -> None:
    p = problem("gru", T=10, losses=[2, 3, 5, 8, 9])
    sweep = lag_sweep(p.run)
    matrix = credit_matrix(p.run).numpy()
    for d in range(10):
        outputs = [u for u in (2, 3, 5, 8, 9) if u >= d]
        over = np.array([matrix[u, u - d] for u in outputs])
        under = np.array([matrix[u, u] for u in outputs])
        row = sweep.credit_profile[d].exp().numpy()
        assert row[0] == pytest.approx(over.sum() / under.sum(), rel=1e-12)
        wanted = np.quantile(over / under, [0.05, 0.25, 0.5, 0.75, 0.95])
        assert row[1:] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("a", [0.01, 0.5, 1.0, 1.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scaled_orthogonal_linear_net_is_a_straight_line(a: float, dtype: torch.dtype) -> None:
    """W = a * orthogonal: profile(d) = a^d, log-linear far below what a float can hold."""
    draw = torch.Generator().manual_seed(3)
    q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=draw))
    weights = {
        "weight_ih": torch.randn(6, 2, dtype=dtype, generator=draw),
        "weight_hh": (a * q).to(dtype),
    }
    T = 160
    inputs = torch.zeros(T, 3, 2, dtype=dtype)
    direct = torch.zeros(T, 3, 6, dtype=dtype)
    direct[-1] = torch.randn(3, 6, dtype=dtype, generator=draw)
    run = unroll(find_cell("linear"), weights, inputs, (direct,))
    found = lag_sweep(run).profile.log
    expected = torch.arange(T, dtype=torch.float64) * math.log(a)
    assert float(expected.min()) < -700 or a > 0.1
    slack = 1e-12 if dtype == torch.float64 else 2e-6
    assert torch.allclose(found, expected, rtol=slack, atol=slack * T)


def test_exact_zero_is_minus_infinity() -> None:
    """A dead relu net passes nothing: ln 0, not a floor."""
    weights = {
        "weight_ih": torch.eye(3, dtype=torch.float64),
        "weight_hh": torch.eye(3, dtype=torch.float64),
        "bias_ih": -torch.ones(3, dtype=torch.float64),
    }
    direct = torch.ones(5, 2, 3, dtype=torch.float64)
    run = unroll(find_cell("elman_relu"), weights, torch.zeros(5, 2, 3).double(), (direct,))
    profile = lag_sweep(run).profile.log
    assert float(profile[0]) == 0
    assert torch.equal(profile[1:], torch.full((4,), -math.inf, dtype=torch.float64))


@pytest.mark.parametrize("cell", ["lstm", "peephole_lstm", "lecture_gru"])
def test_loss_terms_add_up_to_the_gradient_of_one_loss(cell: str) -> None:
    p = problem(cell, T=6)
    u = 4
    expected = p.gradient([(0, u + 1, [u])])
    found = {key: loss_terms(p.run, key, u) for key in p.weights[0]}
    assert relative(flat({k: v.sum(0) for k, v in found.items()}), expected) < TOLERANCE
    for start in range(u + 1):
        tail = p.gradient([(start, u + 1, [u])])
        kept = flat({k: v[start:].sum(0) for k, v in found.items()})
        assert relative(kept, tail) < TOLERANCE
    assert all(float(v[u + 1 :].abs().sum()) == 0 for v in found.values())


def test_noise_yardstick_from_single_sequences() -> None:
    p = problem("lstm", B=5, T=6)
    shares = torch.stack([q.full() for q in p.sequences()])
    mean = shares.sum(0) / 5
    expected = math.sqrt(5 / 4 * float((shares - mean).square().sum()))
    assert lag_sweep(p.run).noise == pytest.approx(expected, rel=1e-12)
    assert math.isnan(lag_sweep(p.run, independent=False).noise)
    one = lag_sweep(p.run.select([2]))
    assert math.isnan(one.noise)
    assert "One sequence only" in one.notes[0]


def test_unbiased_squares_are_u_statistics() -> None:
    p = problem("gru", B=5, T=6)
    sweep = lag_sweep(p.run)
    parts = p.sequences()
    for tau in (0, 1, 3):
        kept = [q.window(tau) if tau else torch.zeros_like(q.full()) for q in parts]
        q = torch.stack([part.full() - k for part, k in zip(parts, kept, strict=True)])
        pairs = q @ q.T
        expected = float(pairs.sum() - pairs.trace()) * 5 / 4
        assert float(sweep.tail_mean_square[tau]) == pytest.approx(expected, rel=1e-10)
        means = []
        for b in range(5):
            rest = torch.tensor([c for c in range(5) if c != b])
            left = pairs[rest][:, rest]
            means.append(float(left.sum() - left.trace()) * 25 / 12)
        expected_error = math.sqrt(4 / 5 * sum((m - np.mean(means)) ** 2 for m in means))
        error = float(sweep.tail_mean_square_error[tau])
        assert error == pytest.approx(expected_error, rel=1e-10)


def test_groups_of_sequences_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    from rnndiag.engine.truncation.sweep import sequence_statistics

    p = problem("lstm", B=6, T=5)
    whole = lag_sweep(p.run)
    params = sum(w.numel() for w in p.weights[0].values())
    monkeypatch.setattr(sequence_statistics, "BUFFER_BYTES", 3 * 4 * 8 * params)
    grouped = lag_sweep(p.run)
    assert relative(grouped.tail_norms["all"], whole.tail_norms["all"]) < 1e-12
    assert grouped.noise == pytest.approx(whole.noise, rel=1e-12)
    parts = torch.stack([q.full() for q in p.sequences()]).view(3, 2, -1).sum(1)
    pairs = parts @ parts.T
    expected = float(pairs.sum() - pairs.trace()) * 3 / 2
    assert float(grouped.tail_mean_square[0]) == pytest.approx(expected, rel=1e-10)


def test_transient_coefficients_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from rnndiag.engine.truncation.chains import chain
    from rnndiag.engine.truncation.sweep import step_back

    p = problem("lstm", T=9)
    whole = lag_sweep(p.run)
    monkeypatch.setattr(chain, "DIAGONAL_BYTES", 0)
    monkeypatch.setattr(step_back, "PIECE_BYTES", 10_000)
    bounded = lag_sweep(p.run)
    assert bounded.sampling == whole.sampling
    assert relative(bounded.credit, whole.credit) < 1e-12
    assert relative(bounded.tail_norms["all"], whole.tail_norms["all"]) < 1e-12
    assert relative(bounded.chunks.bias, whole.chunks.bias) < 1e-12


def test_mistakes_are_told() -> None:
    p = problem("lstm", "gru", T=4)
    with pytest.raises(BadArgument, match="max_lag is 0"):
        lag_sweep(p.runs, max_lag=0)
    with pytest.raises(BadArgument, match="no parameter 'weight_xx'"):
        loss_terms(p.runs[0], "weight_xx", 1)
    with pytest.raises(BadArgument, match="no output 4"):
        loss_terms(p.runs[0], "weight_hh", 4)
    squashed = replace(p.runs[1], inputs=p.runs[1].inputs.tanh())
    with pytest.raises(NotSupported, match="neither nothing nor dropout"):
        lag_sweep([p.runs[0], squashed])
    backwards = replace(p.runs[1], reverse=True)
    with pytest.raises(NotSupported, match="both directions"):
        lag_sweep([p.runs[0], backwards])
