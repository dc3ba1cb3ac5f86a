"""The verdict follows from the numbers: each rule, and which of two leads."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rnndiag.stats.need import Gain, LagGain, MemoryNeed, Use
from rnndiag.stats.need.flips import family_wise_p, in_blocks, p_of_sum
from rnndiag.stats.need.gains import HeldOutGains, interval

NONE = LagGain(0.0, 0.0, 0.0, 1.0, 1.0)
QUIET = MemoryNeed(
    layer="rnn",
    loss=1.0,
    groups=(),
    present=Gain(0.0, 0.0, 0.0),
    present_p=1.0,
    within=NONE,
    further=NONE,
    use=(Use(1, 0.2, 0.1, 0.3), Use(4, 0.0, 0.0, 0.0)),
    used_memory=4,
    burn_in=6,
    floor=0.01,
    beyond=8,
    limit="window",
    max_lag=30,
    sequences=150,
    n_sequences=384,
    rows=4000,
)
FAR = LagGain(0.1, 0.05, 0.15, 0.001, 0.001)


@pytest.mark.parametrize(
    ("numbers", "lead"),
    [
        ({}, "nothing_found"),
        ({"further": FAR}, "needed_beyond"),
        ({"further": FAR, "n_sequences": 31}, "unresolved"),
        ({"further": FAR, "rows": 63}, "unresolved"),
        ({"further": FAR, "loss": 0.001}, "solved"),
        ({"further": FAR._replace(p_over_control=0.2)}, "nothing_found"),
        ({"further": FAR._replace(p=0.2)}, "nothing_found"),
        ({"further": FAR._replace(lower=0.011)}, "unresolved"),
        ({"further": FAR._replace(gain=0.005, lower=0.003)}, "negligible"),
        ({"within": FAR}, "needed_within"),
        ({"within": FAR, "further": FAR}, "needed_beyond"),
        ({"present": Gain(0.2, 0.1, 0.3), "present_p": 0.001}, "readout"),
        ({"present": Gain(0.2, 0.1, 0.3), "present_p": 0.001, "within": FAR}, "readout"),
        ({"present": Gain(0.2, 0.1, 0.3), "present_p": 0.001, "further": FAR}, "needed_beyond"),
        ({"present": Gain(0.6, 0.5, 0.7), "present_p": 0.001, "further": FAR}, "readout"),
        # The loss of a density has no natural zero: half of it means nothing, the gains can be compared.
        (
            {
                "loss": -4.0,
                "present": Gain(0.1, 0.08, 0.12),
                "present_p": 0.001,
                "further": FAR._replace(gain=0.4, lower=0.3),
            },
            "needed_beyond",
        ),
        ({"loss": -4.0, "present": Gain(0.1, 0.08, 0.12), "present_p": 0.001}, "readout"),
        ({"floor": math.inf, "reach": 9.0}, "reached_not_used"),
        ({"floor": math.inf, "reach": 3.0}, "unresolved"),
        ({"floor": math.inf, "reach": 9.0, "used_memory": None}, "unresolved"),
        ({"limit": "given", "beyond": 31}, "not_testable"),
        ({"limit": "reach", "beyond": 31}, "nothing_found"),
    ],
)
def test_verdict_of_numbers(numbers: dict[str, object], lead: str) -> None:
    need = replace(QUIET, **numbers)  # type: ignore[arg-type]
    assert need.lead == lead
    assert need.sentence.endswith(".")
    assert "nan" not in str(need)


def test_lesser_verdicts_are_told_beside_the_leading_one() -> None:
    need = replace(QUIET, further=FAR, within=FAR, reach=12.0)
    told = " ".join(need.further_sentences)
    assert "lie within reach" in told
    # beside a need beyond it reads as the opposite
    assert "a shorter window loses nothing" not in told
    told = " ".join(replace(QUIET, within=FAR, reach=12.0).further_sentences)
    assert "a shorter window loses nothing" in told


def test_scale_is_the_loss_without_memory() -> None:
    assert QUIET.scale == pytest.approx(1.2)
    assert QUIET.gate == pytest.approx(0.012)


def test_gain_is_told_as_a_share_of_the_loss_only_where_the_loss_has_a_zero() -> None:
    assert "(5 % of it)" in replace(QUIET, further=FAR).sentence
    assert "of it)" not in replace(QUIET, further=FAR, loss=-2.0).sentence
    assert "of it)" not in replace(QUIET, further=FAR, loss=0.01).sentence


def test_scale_is_no_less_than_the_loss() -> None:
    assert replace(QUIET, use=(Use(1, -0.2, -0.3, -0.1),)).scale == 1.0


def test_p_of_noise_is_uniform_and_that_of_a_shift_is_small() -> None:
    draw = np.random.default_rng(0)
    below = [p_of_sum(draw.standard_normal(60), 199, seed) <= 0.05 for seed in range(400)]
    assert 0.02 <= np.mean(below) <= 0.09
    assert p_of_sum(draw.standard_normal(60) + 1, 199, 0) <= 0.01
    assert p_of_sum(np.zeros(5), 199, 0) == 1.0


def test_family_wise_p_counts_the_largest_of_all_groups() -> None:
    draw = np.random.default_rng(1)
    below = [
        min(family_wise_p(draw.standard_normal((6, 60)), 199, seed)) <= 0.05 for seed in range(300)
    ]
    assert np.mean(below) <= 0.09


def test_overlapping_sequences_are_averaged_over_blocks() -> None:
    values = np.arange(7.0)
    assert in_blocks(values, 3).tolist() == [1.0, 4.0, 6.0]
    gains = HeldOutGains(values, np.zeros((2, 7)), np.zeros((2, 7)), block=3)
    assert gains.units == 3


def test_interval_of_a_refused_level_is_exactly_zero() -> None:
    assert interval(np.zeros(9)) == (0.0, 0.0, 0.0)
