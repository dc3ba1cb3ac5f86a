"""What a sampled sweep looks at, what it says about it, and that it is right on average."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from reference import relative
from truncation.naive import flat, problem

from rnndiag import lag_sweep
from rnndiag.engine.cells import find_cell
from rnndiag.engine.truncation.sweep import sampling
from rnndiag.engine.truncation.sweep.lag_cotangents import Lag, Rows
from rnndiag.engine.truncation.sweep.sampling import spaced_windows
from rnndiag.engine.truncation.sweep.stopping import StoppingRule
from rnndiag.errors import BadArgument


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_small_problems_are_looked_at_whole() -> None:
    sweep = lag_sweep(problem("lstm").run)
    assert sweep.sampling.complete
    assert sweep.sampling.sentence == "Nothing was sampled: exact."
    assert sweep.sampling.numbers == (4, 4, 12, 12, 12, 12)
    assert float(sweep.profile.error.sum()) == 0


def test_sampled_gradients_are_right_on_average() -> None:
    p = problem("gru", T=12, B=6)
    full = p.full()
    found = [
        flat(lag_sweep(p.run, 1, samples=3, anchors=5, generator=seeded(s), chunks=()).gradient)
        for s in range(200)
    ]
    values = torch.stack(found)
    off = (values.mean(0) - full).norm()
    error = (values.var(0).sum() / len(found)).sqrt()
    assert float(off) < 3 * float(error)
    assert float(error) < 0.2 * float(full.norm())


def test_sampled_profiles_and_their_stated_error() -> None:
    p = problem("lstm", T=30, B=12, H=3, scale=1.5)
    exact = lag_sweep(p.run).profile.log.exp()
    hits = errors = 0
    for seed in range(40):
        sweep = lag_sweep(p.run, samples=6, anchors=12, generator=seeded(seed), chunks=())
        off = (sweep.profile.log.exp() - exact).abs() / exact
        stated = sweep.profile.error[1:15]
        hits += int((off[1:15] < 3 * stated).sum())
        errors += len(stated)
        assert float(sweep.profile.error[0]) == 0
        assert sweep.sampling.numbers == (6, 12, 12, 30, 30, 30)
        assert sweep.sampling.sentence == "Sampled: 6 of 12 sequences, 12 of 30 output steps."
        assert sweep.upper_bound
        assert "upper bounds" in sweep.notes[0]
    assert hits / errors > 0.93


def test_sampled_rows_of_the_credit_matrix_are_exact_and_others_unknown() -> None:
    p = problem("gru", T=10, B=3)
    exact = lag_sweep(p.run).credit
    sampled = lag_sweep(p.run, anchors=4, generator=seeded(1)).credit
    known = ~torch.isnan(sampled[:, 0])
    assert int(known.sum()) == 4
    assert relative(sampled[known], exact[known]) < 1e-12
    upper = torch.ones(10, 10).triu(1).bool()
    assert float(sampled[upper].abs().sum()) == 0


def test_a_given_choice_of_sequences() -> None:
    p = problem("lstm", T=8, B=5)
    alone = lag_sweep(p.run.select([1, 4]))
    chosen = lag_sweep(p.run, samples=(1, 4))
    assert chosen.sampling.sequences == (1, 4)
    assert relative(chosen.window_bias, alone.window_bias) < 1e-12
    scaled = float(chosen.tail_mean_square[0]) / float(alone.tail_mean_square[0])
    assert scaled == pytest.approx((5 / 2) ** 2, rel=1e-10)


@pytest.mark.parametrize("cells", [("lstm",), ("gru", "elman_tanh")])
def test_spaced_windows_are_exact_where_they_were_measured(
    cells: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(*cells, T=40, B=3, H=3, scale=1.3)
    runs = p.runs if len(cells) > 1 else p.run
    whole = lag_sweep(runs, budget=None)
    for name, value in {
        "SMALL_SECONDS": 0.0,
        "LEAST_OUTPUTS": 40,
        "DENSE_WINDOWS": 3,
        "WINDOW_GROWTH": 1.5,
        "LEFT_OUT": 1e-30,
    }.items():
        monkeypatch.setattr(sampling, name, value)
    sweep = lag_sweep(runs, budget=1e-3)
    windows = list(sweep.sampling.windows)
    assert windows == list(spaced_windows(40))
    assert len(windows) < 15
    assert "gradients of" in sweep.sampling.sentence
    for name, norms in sweep.tail_norms.items():
        assert (
            relative(norms[[0, *windows[:-1]]], whole.tail_norms[name][[0, *windows[:-1]]]) < 1e-9
        )
        others = [w for w in range(1, 41) if w not in windows]
        assert bool(torch.isnan(norms[others]).all())
    measured = ~torch.isnan(sweep.window_cosine)
    assert torch.allclose(sweep.window_cosine[measured], whole.window_cosine[measured], atol=1e-10)
    assert relative(sweep.credit, whole.credit) < 1e-12


def test_a_sampled_sweep_ends_where_no_credit_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem("elman_tanh", T=60, B=3, H=3, scale=0.5)
    whole = lag_sweep(p.run, budget=None)
    monkeypatch.setattr(sampling, "SMALL_SECONDS", 0.0)
    monkeypatch.setattr(sampling, "LEAST_OUTPUTS", 60)
    sweep = lag_sweep(p.run, budget=1e-3)
    assert sweep.lags < 40
    assert "beyond which lies less than 0.5% of the credit" in sweep.sampling.sentence
    credit = whole.profile.log.exp()
    assert float(credit[sweep.lags :].sum() / credit.sum()) < 1e-3
    assert len(sweep.window_bias) == sweep.lags + 1
    last = float(sweep.window_bias[-1])
    assert last == pytest.approx(float(whole.window_bias[sweep.lags]), rel=1e-9)
    assert sweep.credit_profile.shape == (sweep.lags, 6)
    assert relative(sweep.profile.log, whole.profile.log[: sweep.lags]) < 1e-12
    matrix = sweep.log_credit
    lag = torch.arange(60)[:, None] - torch.arange(60)[None]
    assert bool(torch.isnan(matrix[lag >= sweep.lags]).all())


def test_losses_are_sampled_first_and_then_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to the least of each, and not below."""
    monkeypatch.setattr(sampling, "SMALL_SECONDS", 0.0)
    p = problem("elman_tanh", T=40, B=36, H=2)
    sizes = []
    for budget in (1e6, 6.0, 4.0, 1e-3):
        s = lag_sweep(p.run, budget=budget, chunks=()).sampling
        sizes.append((len(s.sequences), s.outputs))
    assert sizes[0] == (36, 40)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == (9, sampling.LEAST_OUTPUTS)


def test_mistakes_are_told() -> None:
    run = problem("gru", T=4).run
    for name in ("samples", "anchors"):
        with pytest.raises(BadArgument, match=f"{name} is 0"):
            lag_sweep(run, **{name: 0})
    assert math.isfinite(lag_sweep(run, samples=100, anchors=100).noise)


def ended_after(profile: list[float], rows: int = 3) -> int:
    """After how many lags a sweep ends whose rows all have this credit, each as far as it reaches back."""
    lags, first = len(profile), 100
    steps = torch.arange(first, first + rows)
    ending = StoppingRule(Rows(steps, steps), lags)
    for d, size in enumerate(profile):
        alive = int((steps >= d).sum())
        norm = torch.full((alive, 2), size, dtype=torch.float64)
        if ending.after(Lag(d, rows - alive, slice(0, 0), (), norm, None)):
            return d + 1
        if not alive:
            break
    return lags


@pytest.mark.parametrize("factor", [0.5, 0.8, 0.9, 0.95])
def test_a_sampled_sweep_leaves_out_little_of_the_credit(factor: float) -> None:
    profile = [factor**d for d in range(90)]
    end = ended_after(profile)
    assert end < 90 or factor == 0.95
    assert sum(profile[end:]) <= sampling.LEFT_OUT * sum(profile[:end])


def test_a_sweep_goes_on_while_credit_does_not_fall() -> None:
    assert ended_after([1.0] * 90) == 90
    assert ended_after([1.0] * 40 + [1 - 2**-53] * 50) == 90
    assert ended_after([1.0] * 30 + [5e-3] * 60) == 64  # what rests may all be as large as now
    assert ended_after([1e-5] * 20 + [1.0] * 70) == 90
    assert ended_after([3.0**d for d in range(90)]) == 90
    assert ended_after([math.inf] * 90) == ended_after([math.nan] * 90) == 90
    assert ended_after([1.0, 0.0] + [0.0] * 88) == 2
    assert ended_after([1.0] * 30 + [1e-9] * 60) == 32


def test_a_sweep_does_not_end_because_outputs_do() -> None:
    """Rows that began late in the sequence live on: their credit counts against what they had, not against all."""
    steps = torch.cat([torch.arange(40), torch.tensor([99])])
    ending = StoppingRule(Rows(steps, steps), 100)
    for d in range(90):
        alive = int((steps >= d).sum())
        norm = torch.ones(41, 1, dtype=torch.float64)
        norm[-1] = 1e-6
        assert not ending.after(Lag(d, 41 - alive, slice(0, 0), (), norm[41 - alive :], None))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_default_of_nets_that_do_not_forget(scale: float, sampled: None) -> None:
    """Credit that stays the same to rounding, and credit that grows beyond what a float holds."""
    p = problem("elman_tanh", T=700, B=16, H=4, losses=[699] if scale == 1 else None)
    weight, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=seeded(1)))
    run = replace(
        p.run,
        cell=find_cell("linear"),
        weights={**p.run.weights, "weight_hh": scale * weight},
    )
    for budget in (3.0, 1.0):
        sweep = lag_sweep(run, budget=budget, chunks=())
        assert not sweep.sampling.ended
        slope = sweep.profile.log[600] - sweep.profile.log[300]
        assert float(slope) == pytest.approx(300 * math.log(scale), abs=1e-6)
