"""Lyapunov spectra of layer runs: closed forms, the determinant, and a plain numpy loop."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from spectra.hand_made import draw_run, jacobians_by_jacrev, linear_run, orthogonal, trained_run

import rnndiag
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.spectra import jacobians as tangents
from rnndiag.engine.spectra.frame import LOG_CONDITION
from rnndiag.engine.spectra.lyapunov import kaplan_yorke
from rnndiag.errors import BadArgument


def by_numpy(jacobians: np.ndarray, warmup: int, k: int, seed: int = 5) -> np.ndarray:
    """Growth ln |R_ii| of every step after the warm-up, (T - warmup, k): one sequence, one QR a step."""
    frame = np.linalg.qr(np.random.default_rng(seed).standard_normal((jacobians.shape[-1], k)))[0]
    growth = []
    for jacobian in jacobians:
        frame, upper = np.linalg.qr(jacobian @ frame)
        growth.append(np.log(np.abs(np.diag(upper))))
    return np.array(growth[warmup:])


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.5])
@pytest.mark.parametrize("k", [None, 2])
def test_scaled_orthogonal_nets_have_one_exponent(factor: float, k: int | None) -> None:
    found = rnndiag.lyapunov(linear_run(factor * orthogonal(5), steps=300), k)
    expected = [math.log(factor)] * (k or 5)
    assert found.exponents.tolist() == pytest.approx(expected, abs=1e-13)
    assert found.standard_error.tolist() == pytest.approx([0.0] * (k or 5), abs=1e-13)
    assert found.longest_interval > 10, "nothing spreads"


def test_a_diagonal_net_has_the_logarithms_of_its_entries() -> None:
    entries = torch.tensor([0.3, 1.2, 0.9, 0.01], dtype=torch.float64)
    found = rnndiag.lyapunov(linear_run(torch.diag(entries), steps=400), warmup=100)
    expected = sorted(entries.log().tolist(), reverse=True)
    assert found.exponents.tolist() == pytest.approx(expected, abs=1e-10)
    assert found.log_det_residual < 1e-12
    assert found.kaplan_yorke == pytest.approx(2 + (math.log(1.2 * 0.9)) / -math.log(0.3))


@pytest.mark.parametrize("mode", ["RNN", "LSTM", "GRU"])
def test_the_sum_of_a_trained_nets_exponents_is_its_log_determinant(mode: str) -> None:
    run = trained_run(mode)
    jacobians = jacobians_by_jacrev(run)
    found = rnndiag.lyapunov(run, warmup=10)
    mean = torch.linalg.slogdet(jacobians[10:]).logabsdet.mean(0)
    allowed = max(1e-9, 10 * 2.2e-16 * float(torch.linalg.cond(jacobians[10:]).max()))
    assert (found.by_sequence.sum(-1) - mean).abs().max() <= allowed
    assert float(found.exponents.sum()) == pytest.approx(float(mean.mean()), abs=allowed)
    assert found.log_det_residual <= allowed
    assert found.steps.tolist() == [50, 50]


def test_exponents_of_an_lstm_need_the_carried_state() -> None:
    """∂h_t/∂h_{t-1} alone is not what carries memory: the h block's exponents are far off those of (h, c)."""
    run = trained_run("LSTM", steps=300)
    jacobians = jacobians_by_jacrev(run)[:, :1]
    whole = rnndiag.lyapunov(run.select([0]), k=1, warmup=200)
    expected = by_numpy(jacobians[:, 0].numpy(), 200, 20).mean(0)
    assert float(whole.exponents) == pytest.approx(expected[0], abs=1e-3)
    units = run.sizes[0]
    h_alone = by_numpy(jacobians[:, 0, :units, :units].numpy(), 200, 1).mean()
    assert abs(float(whole.exponents) - h_alone) > 0.5


@pytest.mark.parametrize("cell", ["elman_tanh", "gru", "lecture_gru"])
@pytest.mark.parametrize("interval", [None, 1, 4])
def test_against_a_numpy_loop_that_starts_elsewhere(cell: str, interval: int | None) -> None:
    """After the warm-up both frames have forgotten where they started, so every exponent agrees to rounding."""
    run = draw_run(cell, steps=500, batch=2, units=4, gain=1.5)
    found = rnndiag.lyapunov(run, warmup=300, interval=interval)
    jacobians = jacobians_by_jacrev(run).numpy()
    for b in range(2):
        growth = by_numpy(jacobians[:, b], 300, 4)
        assert found.by_sequence[b].tolist() == pytest.approx(growth.mean(0).tolist(), abs=1e-8)
    leading = rnndiag.lyapunov(run, k=2, warmup=300, interval=interval)
    assert torch.allclose(leading.exponents, found.exponents[:2], rtol=0, atol=1e-8)
    assert math.isnan(leading.log_det_residual)


def test_standard_errors_are_what_they_say() -> None:
    run = draw_run("elman_tanh", steps=240, batch=5, units=3, gain=1.5)
    found = rnndiag.lyapunov(run, warmup=40, blocks=8)
    jacobians = jacobians_by_jacrev(run).numpy()
    by_sequence = found.by_sequence.numpy()
    expected = by_sequence.std(0, ddof=1) / math.sqrt(5)
    assert found.se_sequences.tolist() == pytest.approx(expected.tolist(), rel=1e-10)
    growth = np.stack([by_numpy(jacobians[:, b], 40, 3) for b in range(5)], 1)
    blocks = growth.reshape(8, 25, 5, 3).mean((1, 2))
    expected = blocks.std(0, ddof=1) / math.sqrt(8)
    assert found.se_blocks.tolist() == pytest.approx(expected.tolist(), rel=1e-3)
    assert torch.equal(found.standard_error, torch.maximum(found.se_sequences, found.se_blocks))
    alone = rnndiag.lyapunov(run.select([0]), warmup=40, blocks=1)
    assert alone.se_sequences.isnan().all()
    assert alone.standard_error.isnan().all()


def test_padding_is_not_counted() -> None:
    run = draw_run("gru", steps=60, lengths=[60, 33, 4])
    found = rnndiag.lyapunov(run, warmup=5)
    assert found.steps.tolist() == [55, 28, 0]
    assert found.by_sequence[2].isnan().all()
    for b, length in ((0, 60), (1, 33)):
        alone = draw_run("gru", steps=60).select([b])
        part = tangents.stretch(alone, 0, length)
        expected = rnndiag.lyapunov(part, warmup=5).exponents
        ordered = found.by_sequence[b].sort(descending=True).values
        assert torch.allclose(ordered, expected, rtol=0, atol=1e-9)
    weighted = (55 * found.by_sequence[0] + 28 * found.by_sequence[1]) / 83
    assert torch.allclose(found.exponents, weighted, rtol=0, atol=1e-12)
    assert found.log_det_residual < 1e-9


def test_the_interval_keeps_the_condition_and_its_error_is_measured() -> None:
    run = draw_run("gru", steps=400, units=6)
    found = rnndiag.lyapunov(run)
    exact = rnndiag.lyapunov(run, interval=1)
    assert found.longest_interval > 1
    assert exact.longest_interval == 1
    assert exact.interval_error == 0.0
    assert found.log_condition < 2 * LOG_CONDITION
    assert (found.exponents - exact.exponents).abs().max() < 1e-10
    assert 0 < found.interval_error < 1e-10
    coarse = rnndiag.lyapunov(run, interval=30)
    true_error = (coarse.exponents - exact.exponents).abs().max()
    assert true_error > 1e-4, "30 steps are too many here"
    assert true_error / 20 < coarse.interval_error < 20 * true_error


def test_a_relu_unit_at_rest_has_an_exponent_of_minus_infinity() -> None:
    run = draw_run("elman_relu", steps=40, batch=1, units=6, seed=1)
    resting = (run.states[0][:, 0] == 0).sum(-1).max()
    found = rnndiag.lyapunov(run, warmup=0)
    assert 0 < int(resting) < run.S
    assert int(found.exponents.isinf().sum()) == int(resting)
    assert found.exponents[0].isfinite()
    assert found.log_det_residual == 0.0, "both sides are -inf"
    assert found.se_blocks[-1].isnan()


def test_stretches_of_time_and_single_sequences_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = draw_run("lstm", steps=50, lengths=[50, 20, 31])
    whole = rnndiag.lyapunov(run, warmup=7)
    monkeypatch.setattr(tangents, "MOST_STEPS", 13)
    assert len(list(tangents.stretches(run, torch.float64))) == 4
    capped = rnndiag.lyapunov(run, warmup=7)
    assert torch.allclose(whole.exponents, capped.exponents, rtol=0, atol=1e-9)
    monkeypatch.setattr(tangents, "STRETCH_BYTES", 10_000)
    assert tangents.steps_at_once(run, torch.float64) < 10
    pieces = rnndiag.lyapunov(run, warmup=7)
    assert torch.allclose(whole.exponents, pieces.exponents, rtol=0, atol=1e-9)
    assert pieces.log_det_residual < 1e-9
    monkeypatch.setattr(
        importlib.import_module("rnndiag.engine.spectra.lyapunov"), "FRAME_BYTES", 1
    )
    single = rnndiag.lyapunov(run, warmup=7)
    for name in ("exponents", "by_sequence", "se_sequences", "se_blocks", "steps"):
        assert torch.allclose(getattr(single, name), getattr(whole, name), rtol=0, atol=1e-9), name
    assert single.log_det_residual < 1e-9


def test_finite_time_exponents_come_with_it() -> None:
    run = draw_run("gru", steps=30)
    found = rnndiag.lyapunov(run, lags=[1, 4])
    assert found.lags == (1, 4)
    products = rnndiag.jacobian_products(run, [1, 4])
    assert found.finite_time_exponents is not None
    assert torch.equal(found.finite_time_exponents, products.finite_time_exponents)
    values = torch.linalg.svdvals(jacobians_by_jacrev(run)).log()
    assert torch.allclose(
        found.finite_time_exponents[0], values[list(products.anchors)].mean((0, 1)), atol=1e-8
    )


def test_draws_of_others_are_left_alone_and_the_result_repeats() -> None:
    run = draw_run("gru", steps=20)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = rnndiag.lyapunov(run)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(rnndiag.lyapunov(run).exponents, first.exponents)


@pytest.mark.parametrize(
    ("exponents", "complete", "dimension"),
    [
        ([0.9056, 0.0, -14.5723], True, 2 + 0.9056 / 14.5723),
        ([-0.1, -0.2], True, 0.0),
        ([0.5, 0.1], True, 2.0),
        ([0.5, 0.1], False, math.nan),
        ([0.2, -0.1, -math.inf], True, 2.0),
    ],
)
def test_kaplan_yorke(exponents: list[float], complete: bool, dimension: float) -> None:
    found = kaplan_yorke(torch.tensor(exponents, dtype=torch.float64), complete)
    assert found == pytest.approx(dimension, nan_ok=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 6}, "state of size 5"),
        ({"warmup": 7}, "warm-up of 7 steps leaves nothing"),
        ({"interval": 0}, "must be 1 or more"),
        ({"lags": [8]}, "lags from 1 to 7"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    run: LayerRun = draw_run("gru")
    with pytest.raises(BadArgument, match=message):
        rnndiag.lyapunov(run, **changes)
