"""The losses that a quick sweep follows for its profile: other sequences at every output, right on average."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from truncation.naive import Problem, problem

from rnndiag import credit_matrix, lag_sweep
from rnndiag.engine.truncation.chains.stack import chain_of
from rnndiag.engine.truncation.sweep import sampling as sampling_module
from rnndiag.engine.truncation.sweep.budgeted_sweep import sampled_credit
from rnndiag.engine.truncation.sweep.credit import _log_sums_without
from rnndiag.engine.truncation.sweep.lag_cotangents import rows_of
from rnndiag.engine.truncation.sweep.sampled_losses import drawn
from rnndiag.engine.truncation.sweep.sampling import Sampling

T, B = 24, 12


@pytest.fixture(autouse=True)
def _followed_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_module, "LEFT_OUT", 1e-300)


def sampling_of(p: Problem, sequences: int, outputs: int) -> Sampling:
    of = int(chain_of(p.run).outputs().any(1).sum())
    return Sampling(tuple(range(sequences)), p.run.B, min(outputs, of), of, (), p.T, p.T)


def with_losses(p: Problem, hit: torch.Tensor) -> Problem:
    """The same problem with losses where `hit` (T, B) says alone."""
    direct = tuple(part * hit[..., None] for part in p.run.direct)
    p.direct, p.runs = [direct], [replace(p.run, direct=direct)]
    return p


def everywhere() -> Problem:
    return problem("lstm", T=T, B=B, scale=1.5)


def packed() -> Problem:
    return problem("gru", T=T, B=B, lengths=[24, 3, 9, 20, 24, 1, 12, 17, 6, 24, 11, 15])


def at_the_ends() -> Problem:
    p = packed()
    assert p.run.lengths is not None
    ends = p.run.lengths[None, :] - 1 == torch.arange(T)[:, None]
    return with_losses(p, ends)


def here_and_there() -> Problem:
    generator = torch.Generator().manual_seed(5)
    return with_losses(everywhere(), torch.rand(T, B, generator=generator) < 0.4)


def late_starters() -> Problem:
    """Half of the sequences have losses in the second half alone, and larger ones."""
    p = everywhere()
    size = torch.ones(T, B, dtype=torch.float64)
    size[: T // 2, ::2] = 0.0
    size[T // 2 :, ::2] = 10.0
    return with_losses(p, size)


PROBLEMS = [everywhere, packed, at_the_ends, here_and_there, late_starters]


@pytest.mark.parametrize("make", PROBLEMS)
def test_the_profile_is_right_on_average(make: object) -> None:
    """Σ of C[u, u-d] over outputs, each one drawn standing for its stretch, averaged over draws, is that of all."""
    p = make()  # type: ignore[operator]
    chain, sampling = chain_of(p.run).prepared(), sampling_of(p, 3, 7)
    exact = credit_matrix(p.run)
    lags = range(0, T, 3)
    expected = torch.stack([exact.diagonal(-d).sum() for d in lags])
    found = []
    for seed in range(300):
        anchors = drawn(chain, sampling, torch.Generator().manual_seed(seed))
        matrix = sampled_credit(chain, anchors, sampling)[0].exp().nan_to_num()
        weight = torch.ones(T) if anchors.stands_for is None else anchors.stands_for
        weighted = matrix * weight[:, None]
        found.append(torch.stack([weighted.diagonal(-d).sum() for d in lags]))
    values = torch.stack(found)
    error = values.std(0) / len(found) ** 0.5
    assert bool(((values.mean(0) - expected).abs() <= 4 * error + 1e-12 * expected[0]).all())
    assert float(error[0]) < 0.1 * float(expected[0])


@pytest.mark.parametrize("make", PROBLEMS)
def test_sequences_are_taken_by_turns_where_they_have_a_loss(make: object) -> None:
    p = make()  # type: ignore[operator]
    chain, sampling = chain_of(p.run).prepared(), sampling_of(p, 3, 8)
    rows = drawn(chain, sampling, torch.Generator().manual_seed(3)).rows
    assert isinstance(rows.where, torch.Tensor)
    if int(chain.outputs().sum()) <= 3 * 8:
        assert torch.equal(rows.where, rows_of(chain).where)  # all of them are followed
        return
    steps, columns = rows.where // B, rows.where % B
    assert bool((steps == rows.steps[:, None]).all())
    assert all(len(set(row)) == 3 for row in columns.tolist())
    hit = chain.outputs()
    met = hit.flatten()[rows.where].sum(1)
    assert torch.equal(met, hit[rows.steps].sum(1).clamp(max=3))
    if bool(hit.all()):
        assert columns.flatten().bincount(minlength=B).tolist() == [2] * B


@pytest.mark.parametrize("make", [everywhere, packed])
def test_every_sequence_at_every_output_is_the_whole(make: object) -> None:
    p = make()  # type: ignore[operator]
    chain, sampling = chain_of(p.run).prepared(), sampling_of(p, B, T)
    anchors = drawn(chain, sampling, torch.Generator())
    matrix, profile, _ = sampled_credit(chain, anchors, sampling)
    assert torch.allclose(matrix.exp(), credit_matrix(p.run), rtol=1e-12, atol=0)
    assert float(profile.error.abs().sum()) == 0


@pytest.mark.parametrize("losses", [None, [39], [20, 39]], ids=["all", "last", "two"])
def test_the_stated_error_covers_what_the_sample_is_off_by(losses: list[int] | None) -> None:
    p = problem("lstm", T=40, B=16, H=4, scale=1.5, losses=losses)
    chain, sampling = chain_of(p.run).prepared(), sampling_of(p, 4 if losses is None else 8, 10)
    exact = sampled_credit(chain, drawn(chain, sampling_of(p, 16, 40), torch.Generator()), sampling)
    expected = exact[1].log.exp()
    inside = outside = 0
    squares = torch.zeros(2, 14, dtype=torch.float64)
    for seed in range(60):
        anchors = drawn(chain, sampling, torch.Generator().manual_seed(seed))
        profile = sampled_credit(chain, anchors, sampling)[1]
        off = (profile.log.exp() - expected).abs() / expected
        squares += torch.stack([off, profile.error])[:, 1:15].square()
        inside += int((off <= 2 * profile.error)[1:15].sum())
        outside += int((off > 2 * profile.error)[1:15].sum())
    assert inside / (inside + outside) > 0.85
    stated = (squares[1] / squares[0]).sqrt()
    assert 0.7 < float(stated.min()) <= float(stated.max()) < 2.5


def test_profiles_without_one_output_are_those_of_the_others() -> None:
    """What the error of a reach is made of, against the credit matrix with that row left out."""
    p = problem("gru", T=T, B=B, scale=1.5)
    chain, sampling = chain_of(p.run).prepared(), sampling_of(p, 4, 6)
    anchors = drawn(chain, sampling, torch.Generator().manual_seed(2))
    matrix, profile, _ = sampled_credit(chain, anchors, sampling)
    ((left_out, rest),) = profile.left_out
    assert rest == pytest.approx(1 - 6 * 4 / (T * B))
    steps, weight = anchors.rows.steps.tolist(), anchors.stands_for
    assert weight is not None
    assert left_out.shape == (6, T)
    for row, without in zip(left_out, steps, strict=True):
        for d in range(T):
            counted = [u for u in steps if u != without and u >= d]
            over = sum(float(weight[u] * matrix[u, u - d].exp()) for u in counted)
            under = sum(float(weight[u] * matrix[u, u].exp()) for u in counted)
            if counted:
                assert float(row[d].exp()) == pytest.approx(over / under, rel=1e-9)
            else:
                assert bool(torch.isnan(row[d]))


def test_profiles_without_one_sequence_are_those_of_the_others() -> None:
    p = packed()
    sweep = lag_sweep(p.run, samples=tuple(range(5)), chunks=())
    ((left_out, rest),) = sweep.profile.left_out
    assert rest == pytest.approx(1 - 5 / B)
    assert left_out.shape[0] == 5
    for b, row in enumerate(left_out):
        others = tuple(k for k in range(5) if k != b)
        matrices = [credit_matrix(p.run.select([k])) for k in others]
        for d in range(len(row)):
            over, under = (
                sum(float(m.diagonal(-lag)[max(0, d - lag) :].sum()) for m in matrices)
                for lag in (d, 0)
            )
            if under:
                assert float(row[d].exp()) == pytest.approx(over / under, rel=1e-9)
            else:
                assert bool(torch.isnan(row[d]))


def test_leaving_one_out_takes_no_more_memory_than_the_profiles() -> None:
    """Also where one unit outweighs all others together, to rounding."""
    logs = torch.randn(50, 30, dtype=torch.float64) * 5
    logs[:, 7] += 800
    logs[3] = -torch.inf
    found = _log_sums_without(logs)
    for k in range(30):
        others = torch.cat([logs[:, :k], logs[:, k + 1 :]], 1).logsumexp(1)
        assert torch.allclose(found[:, k], others, rtol=1e-12, atol=1e-12)
