"""Healthy seeds against healthy seeds: alarms stay within the promised rate and its binomial error."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from benchmarks.small_programs import Program, train
from rnndiag.health import check
from rnndiag.health.baseline import measure, run_values
from rnndiag.health.bounds import Bounds
from rnndiag.health.change import compare
from rnndiag.health.config import Config
from rnndiag.health.outcome import exit_code
from rnndiag.run.run import Run

SEEDS, COMPARISONS, BASELINE, RATE = 14, 200, 5, 0.01
CHECKS = ("reach", "decay", "spectral_radius")
MOST = 6
"""200 draws at 1 %: 2 expected, and three binomial standard errors of 1.4 above that."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("seeds")
    program = Program(hidden=12, steps=40, learning_rate=1e-3, batch_size=64)
    return [train(program, folder / str(seed), seed, recordings=6) for seed in range(SEEDS)]


@pytest.mark.long
@pytest.mark.parametrize("candidates", [1, 3])
def test_two_hundred_healthy_comparisons(runs: list[Run], candidates: int) -> None:
    """With `shift` at 0 the interval alone decides, so this is the rate that it promises."""
    values = [run_values(run, Config()) for run in runs]
    rng = random.Random(candidates)
    alarms: Counter[str] = Counter()
    bounds = Bounds(change="noise", shift=0.0)
    for _ in range(COMPARISONS):
        drawn = rng.sample(range(SEEDS), BASELINE + candidates)
        for name in CHECKS:
            numbers = [values[seed][name]["rnn.l0"] for seed in drawn]
            result = compare(numbers[:BASELINE], numbers[BASELINE:], bounds, RATE, BASELINE)
            assert result.noise_known
            alarms[name] += result.failed
    assert all(alarms[name] <= MOST for name in CHECKS), alarms


@pytest.mark.long
def test_the_gate_as_it_is_by_default_passes_every_other_seed(runs: list[Run]) -> None:
    baseline = measure(runs[:BASELINE], Config())
    codes = [exit_code(check(run, baseline)) for run in runs[BASELINE:]]
    assert codes.count(0) >= len(codes) - 1
