"""Sampled lag sweeps: what they measure, what they say about it, and how far off the sampled profile is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from reference import relative
from truncation.naive import Problem, flat, problem

from rnndiag import credit_matrix, lag_sweep
from rnndiag.engine.cells import find_cell
from rnndiag.engine.truncation.chains.stack import chain_of
from rnndiag.engine.truncation.sweep import sampling
from rnndiag.engine.truncation.sweep.credit import _log_sums_without, log_matrix, profile_of
from rnndiag.engine.truncation.sweep.lag_cotangents import Lag, Rows
from rnndiag.engine.truncation.sweep.lag_sweep import sampled_credit
from rnndiag.engine.truncation.sweep.stopping import StoppingRule
from rnndiag.errors import BadArgument
from rnndiag.stats.reach import reach, reach_error

T, B = 24, 12


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def never_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "LEFT_OUT", 1e-300)


def with_losses(p: Problem, size: torch.Tensor) -> Problem:
    """The same problem with direct gradients times `size` (T, B)."""
    direct = tuple(part * size[..., None] for part in p.run.direct)
    p.direct, p.runs = [direct], [replace(p.run, direct=direct)]
    return p


def everywhere() -> Problem:
    return problem("lstm", T=T, B=B, scale=1.5)


def packed() -> Problem:
    return problem("gru", T=T, B=B, lengths=[24, 3, 9, 20, 24, 1, 12, 17, 6, 24, 11, 15])


def at_the_ends() -> Problem:
    p = packed()
    assert p.run.lengths is not None
    return with_losses(p, (p.run.lengths[None, :] - 1 == torch.arange(T)[:, None]).double())


def here_and_there() -> Problem:
    return with_losses(everywhere(), (torch.rand(T, B, generator=seeded(5)) < 0.4).double())


def late_starters() -> Problem:
    """Half of the sequences have losses in the second half alone, and larger ones."""
    size = torch.ones(T, B, dtype=torch.float64)
    size[: T // 2, ::2] = 0.0
    size[T // 2 :, ::2] = 10.0
    return with_losses(everywhere(), size)


def test_small_problems_are_exact() -> None:
    sweep = lag_sweep(problem("lstm").run)
    assert sweep.sampling.complete
    assert not sweep.sampling.sampled
    assert sweep.sampling.sentence == "Nothing was sampled: exact."
    assert sweep.sampling.numbers == (4, 4, 12, 12, 12, 12)
    assert float(sweep.profile.error.sum()) == 0


@pytest.mark.parametrize(
    "make",
    [everywhere, packed, at_the_ends, here_and_there, late_starters],
    ids=lambda f: f.__name__,
)
def test_sampled_credit_is_right_on_average(make: object, never_stops: None) -> None:
    """Σ of C[u, u-d] over outputs, each one drawn standing for its stretch, averaged over draws, is that of all."""
    p = make()  # type: ignore[operator]
    exact, lags = credit_matrix(p.run), range(0, T, 3)
    expected = torch.stack([exact.diagonal(-d).sum() for d in lags])
    found = []
    chain = chain_of(p.run).prepared()
    chosen = sampling.choose(chain, T, None, anchors=7)
    for seed in range(60):
        credit, _ = sampled_credit(chain, chosen, seeded(seed))
        assert credit.weights is not None
        weighted = log_matrix(credit).exp().nan_to_num() * credit.weights[:, None]
        found.append(torch.stack([weighted.diagonal(-d).sum() for d in lags]))
    values = torch.stack(found)
    error = values.std(0) / len(found) ** 0.5
    assert bool(((values.mean(0) - expected).abs() <= 4 * error + 1e-12 * expected[0]).all())
    assert float(error[0]) < 0.1 * float(expected[0])


@pytest.mark.parametrize("losses", [None, range(20, 40)], ids=["all", "late"])
def test_stated_errors_cover_what_the_sample_is_off_by(
    losses: range | None, never_stops: None
) -> None:
    """Of the profile by lag, and of the reach: the error holds the sample's bias too."""
    p = problem("lstm", T=40, B=6, H=4, scale=1.5, losses=losses)
    exact = lag_sweep(p.run, budget=None, chunks=()).profile.log
    truth = float(reach(exact.numpy(), steps=40))
    inside = outside = reach_inside = 0
    chain = chain_of(p.run).prepared()
    chosen = sampling.choose(chain, 40, None, anchors=10)
    for seed in range(40):
        credit, _ = sampled_credit(chain, chosen, seeded(seed))
        profile = profile_of(credit, 1 - 10 / chosen.of_outputs)
        off = (profile.log.exp() - exact.exp()).abs() / exact.exp()
        assert float(profile.error[0]) == 0
        inside += int((off <= 2 * profile.error)[1:15].sum())
        outside += int((off > 2 * profile.error)[1:15].sum())
        assert profile.without_one is not None
        error = reach_error(profile.log, profile.without_one, profile.unsampled)
        reach_inside += abs(float(reach(profile.log.numpy(), steps=40)) - truth) <= 2 * error
    assert inside / (inside + outside) > 0.85
    assert reach_inside / 40 > 0.85


def test_sampled_rows_of_the_credit_matrix_are_exact_and_others_unknown(never_stops: None) -> None:
    p = problem("gru", T=10, B=3)
    exact = lag_sweep(p.run).credit
    sampled = lag_sweep(p.run, anchors=4, generator=seeded(1)).credit
    known = ~torch.isnan(sampled[:, 0])
    assert int(known.sum()) == 4
    assert relative(sampled[known], exact[known]) < 1e-12
    upper = torch.ones(10, 10).triu(1).bool()
    assert float(sampled[upper].abs().sum()) == 0


def test_gradient_windows_and_noise_of_a_sampled_sweep_are_of_the_whole_batch() -> None:
    p = problem("lstm", T=30, B=4, H=3, scale=1.5)
    whole, sampled = lag_sweep(p.run), lag_sweep(p.run, anchors=5)
    assert relative(flat(sampled.gradient), p.full()) < 1e-12
    assert sampled.noise == pytest.approx(whole.noise, rel=1e-12)
    assert sampled.full_gradient_norm == pytest.approx(whole.full_gradient_norm, rel=1e-12)
    assert "5 of 30 output steps for the profile" in sampled.sampling.sentence
    assert "of all sequences and losses" in sampled.notes[-1]


def test_a_sweep_over_some_sequences_is_that_of_those_sequences_alone() -> None:
    p = problem("lstm", T=8, B=5)
    alone = lag_sweep(p.run.select([1, 4]))
    chosen = lag_sweep(p.run, samples=(1, 4))
    for name in ("window_bias", "tail_mean_square", "log_credit"):
        assert torch.equal(getattr(chosen, name), getattr(alone, name))
    assert chosen.noise == alone.noise
    assert chosen.sampling.sentence == chosen.notes[-1] == "Sampled: 2 of 5 sequences."
    assert lag_sweep(p.run, samples=3).sampling.numbers[:2] == (3, 5)
    assert lag_sweep(p.run, samples=100).sampling.complete


def test_profiles_without_one_output_are_those_of_the_others(never_stops: None) -> None:
    """Against the credit matrix with that row left out."""
    sweep = lag_sweep(problem("gru", T=T, B=B, scale=1.5).run, anchors=6, generator=seeded(2))
    profile, weight = sweep.profile, sweep.loss_weights
    assert weight is not None
    assert profile.without_one is not None
    assert profile.unsampled == pytest.approx(1 - 6 / T)
    steps = weight.nonzero().flatten().tolist()
    assert profile.without_one.shape == (6, T)
    for row, without in zip(profile.without_one, steps, strict=True):
        for d in range(T):
            counted = [u for u in steps if u != without and u >= d]
            over = sum(float(weight[u] * sweep.credit[u, u - d]) for u in counted)
            under = sum(float(weight[u] * sweep.credit[u, u]) for u in counted)
            if counted:
                assert float(row[d].exp()) == pytest.approx(over / under, rel=1e-9)
            else:
                assert bool(torch.isnan(row[d]))


def test_leaving_one_unit_out_is_exact_where_it_outweighs_all_others() -> None:
    logs = torch.randn(50, 30, dtype=torch.float64) * 5
    logs[:, 7] += 800
    logs[3] = -torch.inf
    found = _log_sums_without(logs)
    for k in range(30):
        others = torch.cat([logs[:, :k], logs[:, k + 1 :]], 1).logsumexp(1)
        assert torch.allclose(found[:, k], others, rtol=1e-12, atol=1e-12)


def test_a_sampled_profile_stops_where_no_credit_is_left(sampled: None) -> None:
    p = problem("elman_tanh", T=60, B=3, H=3, scale=0.5)
    whole = lag_sweep(p.run, budget=None)
    sweep = lag_sweep(p.run, budget=1e-3)
    assert sweep.sampling.stopped_early
    assert sweep.lags < 40
    assert "beyond which lies less than 0.2% of the credit" in sweep.sampling.sentence
    credit = whole.profile.log.exp()
    assert float(credit[sweep.lags :].sum() / credit.sum()) < sampling.LEFT_OUT
    assert len(sweep.window_bias) == 61
    assert sweep.credit_profile.shape == (sweep.lags, 6)
    lag = torch.arange(60)[:, None] - torch.arange(60)[None]
    assert bool(torch.isnan(sweep.log_credit[lag >= sweep.lags]).all())


def test_a_smaller_budget_follows_fewer_losses_down_to_a_least_number(sampled: None) -> None:
    p = problem("elman_tanh", T=40, B=8, H=2)
    sizes = [
        lag_sweep(p.run, budget=budget, chunks=()).sampling.outputs
        for budget in (1e6, 11.0, 10.0, 1e-3)
    ]
    assert sizes[0] == 40
    assert sizes == sorted(sizes, reverse=True)
    assert 40 > sizes[1] > sizes[-1] == sampling.LEAST_OUTPUTS


def test_losses_are_not_sampled_where_each_sequence_has_few(sampled: None) -> None:
    p = problem("lstm", T=40, B=16, losses=[20, 39])
    sweep = lag_sweep(p.run, budget=1e-3)
    assert sweep.sampling.sampled
    assert sweep.sampling.outputs == 2
    assert float(sweep.profile.error.abs().max()) == 0
    exact = lag_sweep(p.run, budget=None).profile.log[: sweep.lags]
    assert relative(sweep.profile.log, exact) < 1e-12


def test_counts_below_one_are_refused() -> None:
    run = problem("gru", T=4).run
    for name in ("samples", "anchors"):
        with pytest.raises(BadArgument, match=f"{name} is 0"):
            lag_sweep(run, **{name: 0})
    assert math.isfinite(lag_sweep(run, samples=100, anchors=100).noise)


def ended_after(profile: list[float], rows: int = 3) -> int:
    """Lags after which a sweep stops whose rows all have this credit, each as far as it reaches back."""
    lags, first = len(profile), 100
    steps = torch.arange(first, first + rows)
    stopping = StoppingRule(Rows(steps, steps), lags)
    for d, size in enumerate(profile):
        alive = int((steps >= d).sum())
        norm = torch.full((alive, 2), size, dtype=torch.float64)
        if stopping.should_stop(Lag(d, rows - alive, slice(0, 0), (), norm, None)):
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


def test_a_sweep_does_not_stop_while_credit_does_not_fall() -> None:
    assert ended_after([1.0] * 90) == 90
    assert ended_after([1.0] * 40 + [1 - 2**-53] * 50) == 90
    assert ended_after([1.0] * 30 + [2e-3] * 60) == 64  # every remaining lag may be as large
    assert ended_after([1e-5] * 20 + [1.0] * 70) == 90
    assert ended_after([3.0**d for d in range(90)]) == 90
    assert ended_after([math.inf] * 90) == ended_after([math.nan] * 90) == 90
    assert ended_after([1.0, 0.0] + [0.0] * 88) == 2
    assert ended_after([1.0] * 30 + [1e-9] * 60) == 32


def test_a_sweep_does_not_stop_because_rows_end() -> None:
    """The credit of late rows counts against what the same rows had at lag 0, not against all rows."""
    steps = torch.cat([torch.arange(40), torch.tensor([99])])
    stopping = StoppingRule(Rows(steps, steps), 100)
    for d in range(90):
        alive = int((steps >= d).sum())
        norm = torch.ones(41, 1, dtype=torch.float64)
        norm[-1] = 1e-6
        assert not stopping.should_stop(
            Lag(d, 41 - alive, slice(0, 0), (), norm[41 - alive :], None)
        )


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_sampled_sweeps_of_nets_that_do_not_forget(scale: float, sampled: None) -> None:
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
        assert not sweep.sampling.stopped_early
        slope = sweep.profile.log[600] - sweep.profile.log[300]
        assert float(slope) == pytest.approx(300 * math.log(scale), abs=1e-6)
