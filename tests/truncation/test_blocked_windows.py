"""Windows measured by blocks of lags with a cut every m steps, against naive loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from reference import STEPS, relative
from truncation.naive import Problem, flat, problem

from rnndiag import lag_sweep
from rnndiag.engine.adjoints import adjoints
from rnndiag.engine.truncation.chains.stack import chain_of
from rnndiag.engine.truncation.sweep import blocked_tails as blocked
from rnndiag.engine.truncation.sweep.blocked_tails import BlockedTails, LagBlock, doubling
from rnndiag.engine.truncation.sweep.parameter_layout import layout_of
from rnndiag.engine.truncation.sweep.truncated_adjoints import gradient_of, total_adjoint
from rnndiag.errors import BadArgument

TOLERANCE = 1e-10


def naive_tail(p: Problem, block: LagBlock) -> torch.Tensor:
    """What is left out where the losses of steps j m .. (j + 1) m - 1 reach down to step j m - a + 1."""
    m = block.width
    passes = [
        (max(0, first - block.start + 1), min(first + m, p.T), range(first, min(first + m, p.T)))
        for first in range(0, p.T, m)
    ]
    return p.full() - p.gradient(passes)


def tails_of(p: Problem, groups: int = 2) -> BlockedTails:
    chain = chain_of(p.runs if len(p.runs) > 1 else p.run).prepared()
    layout, delta = layout_of(chain), total_adjoint(chain)
    full = gradient_of(chain, layout, delta, groups)
    return BlockedTails(chain, layout, full, delta)


def check(p: Problem, found: BlockedTails, block: LagBlock) -> None:
    expected = naive_tail(p, block)
    window = min(block.window, p.T - 1)
    size = float(p.full().norm())
    norm = float(found.tails[window].squares[-1].sqrt())
    assert abs(norm - float(expected.norm())) <= TOLERANCE * size
    toward = float(expected @ p.full())
    assert abs(float(found.tails[window].with_gradient) - toward) <= TOLERANCE * size**2


@pytest.mark.parametrize("lengths", [None, [12, 5, 9, 1]], ids=["full", "packed"])
@pytest.mark.parametrize("cell", STEPS)
def test_blocks_of_every_cell(cell: str, lengths: list[int] | None) -> None:
    p = problem(cell, lengths=lengths)
    for block in (LagBlock(1, 4), LagBlock(3, 2), LagBlock(2, 1), LagBlock(5, 5), LagBlock(7, 3)):
        found = tails_of(p)
        found.add_blocks([block])
        check(p, found, block)


@pytest.mark.parametrize("cells", [("lstm",), ("gru", "lstm"), ("elman_tanh", "peephole_lstm")])
def test_adjacent_blocks_of_growing_width(
    cells: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked, "FIRST_WIDTH", 2)
    p = problem(*cells, T=19)
    found = tails_of(p)
    *blocks, beyond = doubling(19, 19, 2)
    assert [(b.start, b.width) for b in blocks] == [(1, 2), (3, 2), (5, 4), (9, 8)]
    assert (beyond.start, beyond.width) == (17, 8)  # no state lies so far behind a cut
    found.add_blocks([*blocks, beyond])
    assert set(found.widths) == {block.window for block in blocks}
    for block in blocks:
        check(p, found, block)
    chunked = p.full() - p.chunk(2, 2)
    assert relative(found.first_tail.sum(0).norm(), chunked.norm()) < TOLERANCE
    assert found.first_width == 2


@pytest.mark.parametrize("T", [1, 2, 3, 5, 8, 9])
def test_short_sequences_have_blocks_with_a_cut_in_them(T: int) -> None:
    """A block as wide as the sequence is long has no cut in it, so its tail would be zero whatever the model."""
    p = problem("lstm", T=T)
    found = tails_of(p)
    found.add_blocks(doubling(T, T))
    blocks = {min(block.window, T - 1): block for block in doubling(T, T)}
    for window, width in found.widths.items():
        check(p, found, blocks[window])
        assert width < T
    assert T == 1 or len(found.widths) >= 1


def test_the_recommended_window_is_found_within_a_tenth() -> None:
    p = problem("lstm", T=60, B=4, H=6, scale=1.6)
    whole = lag_sweep(p.run, budget=None).window_bias
    found = tails_of(p)
    found.measure(60, blocked.FIRST_WIDTH, math.inf)
    measured = {w: found._bias(w) for w in sorted(found.tails)}
    near = min(w for w in measured if all(measured[v] <= 0.1 for v in measured if v >= w))
    true = min(w for w in range(61) if bool((whole[w:] <= 0.1).all()))
    assert abs(near - true) <= max(1, 0.1 * true)


def test_sampled_windows_lie_near_the_exact_ones(sampled: None) -> None:
    p = problem("gru", T=70, B=16, H=4, scale=1.3)
    sweep = lag_sweep(p.run, budget=3.0)
    assert sweep.sampling.sampled
    assert "of all sequences and losses" in sweep.sampling.sentence
    assert relative(flat(sweep.gradient), p.full()) < TOLERANCE
    whole = lag_sweep(p.run, budget=None)
    assert sweep.noise == pytest.approx(whole.noise, rel=1e-9)
    assert len(sweep.window_bias) == 71
    assert float(sweep.window_bias[0]) == 1.0
    pairs = list(zip(sweep.sampling.windows, sweep.sampling.widths, strict=True))
    assert len(pairs) >= 3
    for window, width in pairs:
        inside = whole.window_bias[max(1, window - width) : window + width + 1]
        value = float(sweep.window_bias[window])
        assert 0.7 * float(inside.min()) <= value <= 1.3 * float(inside.max())
    for k, bias in zip(sweep.chunks.size, sweep.chunks.bias, strict=True):
        off = float((p.full() - p.chunk(k, k)).norm() / p.full().norm())
        assert float(bias) == pytest.approx(off, abs=TOLERANCE)


def test_the_first_block_is_wider_where_credit_lies_further_back() -> None:
    lags = torch.arange(60, dtype=torch.float64)
    assert blocked.first_width(lags * math.log(0.86)) == blocked.FIRST_WIDTH  # 91 % within 16 lags
    assert blocked.first_width(lags * math.log(0.87) - 700) == 2 * blocked.FIRST_WIDTH  # 89 %
    assert blocked.first_width(torch.full((60,), float("nan"))) == blocked.FIRST_WIDTH
    widths = [(b.start, b.width) for b in doubling(200, 200, 16)]
    assert widths == [(1, 16), (17, 16), (33, 32), (65, 64), (129, 64), (193, 64)]


@pytest.mark.parametrize(
    ("biases", "settled"),
    [
        ([], False),
        ([0.9], False),
        ([0.9, 0.08], False),
        ([0.9, 0.04], True),
        ([0.08, 0.09], True),
        ([0.04, 0.2], False),
        ([0.04, 0.2, 0.09], False),
        ([0.9, float("nan")], False),
    ],
)
def test_a_bias_has_settled_below_half_the_target_or_twice_below_it(
    biases: list[float], settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tails_of(problem("lstm"))
    found.widths = {7 * (k + 1): 3 for k in range(len(biases))}
    monkeypatch.setattr(found, "_bias", lambda window: biases[window // 7 - 1])
    assert found.settled is settled


def test_a_budget_limits_only_the_windows_beyond_a_settled_bias(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p = problem("lstm", T=120, B=4, H=6, scale=1.6)
    monkeypatch.setattr(blocked, "FIRST_WIDTH", 2)

    def measured(steps: float) -> dict[int, float]:
        found = tails_of(p)
        cost = found.measure(120, 2, steps)
        assert cost <= steps or found.settled
        return {w: found._bias(w) for w in sorted(found.widths)}

    much, little = measured(math.inf), measured(0.0)
    assert len(little) < len(much)
    assert all(much[window] == bias for window, bias in little.items())
    last = list(little.values())[-2:]
    assert last[-1] <= blocked.TARGET_BIAS / 2 or max(last) <= blocked.TARGET_BIAS
    assert next(iter(little.values())) > blocked.TARGET_BIAS


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("cell", ["lstm", "elman_relu"])
def test_a_gradient_of_zero_or_not_finite_has_no_bias(
    cell: str, value: float, sampled: None
) -> None:
    p = problem(cell, T=40, B=16)
    (part, *rest) = p.run.direct
    direct = torch.zeros_like(part)
    direct[-1, 0, 0] = value
    sweep = lag_sweep(replace(p.run, direct=(direct, *map(torch.zeros_like, rest))), budget=3.0)
    assert sweep.sampling.sampled
    assert bool(torch.isnan(sweep.window_bias[1:]).all())


@pytest.mark.parametrize("most", [1, 2, 5, 10, 40])
def test_no_window_beyond_the_lags_asked_for(most: int, sampled: None) -> None:
    p = problem("lstm", T=40, B=16)
    sweep = lag_sweep(p.run, most, budget=2.5)
    assert sweep.sampling.sampled
    assert all(1 <= window <= most for window in sweep.sampling.windows)
    assert most < 3 or sweep.sampling.windows
    assert len(sweep.window_bias) == most + 1
    assert ("beyond which" in sweep.sampling.sentence) == sweep.sampling.stopped_early


@pytest.mark.parametrize("cell", ["lstm", "gru", "peephole_lstm", "lecture_gru"])
@pytest.mark.parametrize("budget", [None, 3.0])
def test_a_sweep_in_inference_mode_gives_the_same_numbers(
    cell: str, budget: float | None, sampled: None
) -> None:
    p = problem(cell, T=40, B=16)
    expected = lag_sweep(p.run, budget=budget)
    with torch.inference_mode():
        found = lag_sweep(p.run, budget=budget)
    known = ~torch.isnan(expected.window_bias) & ~torch.isnan(found.window_bias)
    assert int(known.sum()) > 3
    assert torch.equal(found.window_bias[known], expected.window_bias[known])


@pytest.mark.parametrize("lengths", [None, [40, 3, 17, 40] * 4], ids=["full", "packed"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "lecture_gru", "peephole_lstm"])
def test_given_adjoints_change_no_number(
    cell: str, lengths: list[int] | None, sampled: None
) -> None:
    p = problem(cell, T=40, B=16, lengths=lengths)
    without, given = lag_sweep(p.run), lag_sweep(p.run, adj=adjoints(p.run))
    assert without.sampling.sampled
    assert relative(flat(given.gradient), flat(without.gradient)) < 1e-12
    assert given.noise == pytest.approx(without.noise, rel=1e-12)
    both = ~torch.isnan(given.window_bias) & ~torch.isnan(without.window_bias)
    assert int(both.sum()) > 3
    assert torch.allclose(given.window_bias[both], without.window_bias[both], rtol=1e-9, atol=1e-14)


def test_adjoints_of_another_run_are_refused() -> None:
    p, other = problem("lstm"), problem("lstm", T=5)
    for runs in (p.run, [p.run]):
        with pytest.raises(BadArgument, match="not of the layer run that is swept"):
            lag_sweep(runs, adj=adjoints(other.run))
