"""Reach, decay and half-life against closed forms and the definition written out."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnndiag.errors import BadArgument, RunUnreadable
from rnndiag.run.run import open_run
from rnndiag.stats.reach import decay, half_life, measured, reach, reach_error
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter


def slow_reach(profile: list[float], share: float) -> float:
    """F(n) by the definition: a running sum, then a straight line between the whole n around the share."""
    total = math.fsum(profile)
    before = 0.0
    for n, credit in enumerate(profile):
        after = before + credit / total
        if after >= share - 1e-15:
            return n + (share - before) / (after - before)
        before = after
    raise AssertionError


PROFILES = st.lists(st.floats(1e-6, 10), min_size=1, max_size=40)


@given(PROFILES, st.floats(0.05, 1.0))
def test_reach_is_where_the_running_share_crosses(profile: list[float], share: float) -> None:
    found = reach(np.log(profile), share)
    assert found.reached
    assert found == pytest.approx(slow_reach(profile, share), rel=1e-9, abs=1e-9)
    assert 0 < found <= len(profile)


@given(PROFILES, st.floats(-1500, 1500))
def test_reach_and_its_kin_do_not_depend_on_the_scale(profile: list[float], shift: float) -> None:
    """Profiles far below what a float can hold are logs, and nothing changes."""
    logs = np.log(profile)
    for number in (reach, decay, half_life):
        assert number(logs + shift).value == pytest.approx(
            number(logs).value, rel=1e-6, nan_ok=True
        )


@given(PROFILES, st.integers(1, 9))
def test_padding_and_exact_zeros_at_the_end_change_nothing(profile: list[float], more: int) -> None:
    logs = np.log(profile)
    padded = np.concatenate([logs, np.full(more, np.nan)])
    assert np.array_equal(measured(padded), logs)
    assert reach(padded) == reach(logs)
    assert reach(np.concatenate([logs, np.full(more, -np.inf)])) == pytest.approx(reach(logs))


def test_a_flat_profile_reaches_its_share_of_the_lags() -> None:
    assert reach(np.zeros(200), 0.9) == pytest.approx(180.0)
    assert reach(np.zeros(1), 0.9) == pytest.approx(0.9)


@pytest.mark.parametrize("a", [0.3, 0.9, 0.99, 1.0, 1.05])
def test_a_geometric_profile(a: float) -> None:
    logs = math.log(a) * np.arange(100)
    assert decay(logs) == pytest.approx(a, rel=1e-9)
    assert decay(logs).text == format(a, ".3g")
    assert reach(logs, 0.9) == pytest.approx(slow_reach([a**d for d in range(100)], 0.9))
    if a < 1:
        assert half_life(logs) == pytest.approx(math.log(0.5) / math.log(a))
    else:
        assert half_life(logs) == math.inf
        assert half_life(logs).text == "not reached within 100"


def test_the_tail_decides_the_decay() -> None:
    """A fast start and a slow tail: e^-2 per step for 10 lags, then 0.99."""
    logs = np.concatenate([-2.0 * np.arange(10), -20 + math.log(0.99) * np.arange(1, 91)])
    assert decay(logs) == pytest.approx(0.99, rel=1e-9)
    assert half_life(logs) == pytest.approx(math.log(2) / 2)


def test_no_credit_beyond_lag_zero() -> None:
    logs = np.array([0.0, -np.inf, -np.inf])
    assert reach(logs) == pytest.approx(0.9)
    assert (decay(logs), half_life(logs)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        ([], "not measured"),
        ([np.nan, np.nan], "not measured"),
        ([0.0, np.nan, 0.0], "not finite"),
        ([0.0, np.inf], "not finite"),
        ([-np.inf, -np.inf], "no gradient at any lag"),
    ],
)
def test_where_there_is_no_answer(profile: list[float], reason: str) -> None:
    for number in (reach, decay, half_life):
        found = number(profile)
        assert math.isnan(found)
        assert (found.reached, found.text) == (False, reason)
    assert math.isnan(decay([0.0]))
    assert decay([0.0]).text == "not measurable within 1"
    assert half_life([-np.inf, 0.0]).text == "no gradient at lag 0"


def test_not_reached_within_the_measured_lags() -> None:
    """Of 200 lags 50 were measured; at 0.99 per step a share of 0.456 of the credit lies within them."""
    logs = math.log(0.99) * np.arange(50)
    inside = (1 - 0.99**50) / (1 - 0.99**200)
    assert inside == pytest.approx(0.4561, abs=1e-4)
    found = reach(logs, 0.9, steps=200)
    assert (found.value, found.reached, found.within) == (math.inf, False, 50)
    assert found.text == "not reached within 50"
    assert reach(logs, 0.9, steps=50).reached
    assert reach(logs, inside - 0.01, steps=200).reached
    assert not reach(logs, inside + 0.01, steps=200).reached
    assert reach(math.log(0.5) * np.arange(50), 0.9, steps=200).reached


def test_an_answer_is_a_float_and_travels() -> None:
    found = reach(np.zeros(50))
    assert 40 <= found <= 50
    assert isinstance(found, float)
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert (other, other.reached, other.within) == (found, True, 50)
    assert repr(found) == "Reach(45, reached=True, within=50)"


def test_a_reach_of_a_sample_says_how_closely_it_is_known() -> None:
    found = reach(np.zeros(50)).with_error(3.21)
    assert (found, found.error, found.text, found.give_or_take) == (
        45,
        3.21,
        "45.0 ± 3.2",
        " ± 3.2",
    )
    assert pickle.loads(pickle.dumps(found)).text == copy.copy(found).text == "45.0 ± 3.2"
    for error, text in ((16.2, "45 ± 16"), (8.06, "45.0 ± 8.1"), (0.784, "45.00 ± 0.78")):
        assert reach(np.zeros(50)).with_error(error).text == text
    for error in (math.nan, 0.0, 0.2):
        assert reach(np.zeros(50)).with_error(error).text == "45"
    missed = reach(np.zeros(50), steps=200).with_error(math.nan)
    assert missed.text == "not reached within 50"
    assert math.isnan(reach(np.zeros(50)).error)


def test_the_stated_error_of_a_sampled_reach_matches_its_spread_over_draws() -> None:
    """Few of many rows, each with a decay of its own."""
    draw = np.random.default_rng(0)
    population = draw.uniform(0.6, 0.9, 60)[:, None] ** np.arange(80)
    exact = slow_reach(population.sum(0).tolist(), 0.9)
    off, stated, count = [], [], 15
    for _ in range(400):
        rows = population[draw.choice(60, count, replace=False)]
        without_one = np.log(rows.sum(0) - rows)
        off.append(reach(np.log(rows.sum(0))) - exact)
        stated.append(reach_error(np.log(rows.sum(0)), without_one, 1 - count / 60))
    rms = [math.sqrt(np.mean(np.square(values))) for values in (off, stated)]
    assert rms[1] == pytest.approx(rms[0], rel=0.15)


def test_the_error_of_a_reach_holds_the_bias_of_the_sample() -> None:
    whole = np.log(0.5) * np.arange(30)
    without_one = np.log(0.5) * np.arange(30) * np.array([[1.0], [0.9], [1.1]])
    found = [reach(row).value for row in without_one]
    variance = 2 / 3 * sum((value - np.mean(found)) ** 2 for value in found)
    bias = 2 * (np.mean(found) - reach(whole).value)
    expected = math.sqrt(0.7 * variance + (0.7 * bias) ** 2)
    assert bias != 0
    assert reach_error(whole, without_one, 0.7) == pytest.approx(expected)
    assert reach_error(whole) == 0.0
    assert math.isnan(reach_error(whole, without_one[:1], 0.7))
    assert math.isnan(reach_error(whole, np.full((3, 30), np.nan), 0.7))


def test_a_share_outside_of_one_is_refused() -> None:
    for share in (0.0, 1.1, -1.0, math.nan):
        with pytest.raises(ValueError, match="share"):
            reach(np.zeros(3), share)


def write(
    path: object,
    factors: dict[str, list[float]],
    lags: int = 60,
    steps: int = 60,
    errors: tuple[float, ...] = (),
) -> None:
    with RunWriter(str(path)) as writer:
        for step in range(len(next(iter(factors.values())))):
            made = []
            for layer, values in factors.items():
                profile = np.repeat(math.log(values[step]) * np.arange(lags)[:, None], 6, 1)
                made.append(Measurement.of("credit_profile", profile, layer))
                made.append(Measurement.of("valid_samples", np.ones(steps), layer))
                if step < len(errors):
                    made.append(Measurement.of("reach_error", np.asarray(errors[step]), layer))
            writer.append(Recording(step, measurements=tuple(made)))


def test_a_runs_reach_is_the_median_of_the_judged_of_the_shortest_layer(tmp_path: object) -> None:
    path = f"{tmp_path}/run"
    late = [0.5, 0.9, 0.8, 0.7, 0.6]
    write(path, {"long": [0.99] * 10, "short": [0.1] * 5 + late})
    run = open_run(path)
    assert run.judged().tolist() == [5, 6, 7, 8, 9]
    expected = slow_reach([0.7**d for d in range(60)], 0.9)
    assert run.reach(0.9) == pytest.approx(expected, rel=1e-5)
    assert run.reach(0.9, "short") == run.reach(0.9)
    assert run.reach(0.9, layer="long") > run.reach(0.9)
    assert run.reach(0.9, "short", window="all") == pytest.approx(
        np.median([slow_reach([a**d for d in range(60)], 0.9) for a in [0.1] * 5 + late]), rel=1e-4
    )


def test_a_runs_reach_that_is_not_reached(tmp_path: object) -> None:
    path = f"{tmp_path}/run"
    write(path, {"a": [1.0] * 6}, lags=20, steps=100)
    found = open_run(path).reach()
    assert (found.value, found.text) == (math.inf, "not reached within 20")


def test_a_runs_reach_has_the_error_of_the_recording_in_the_middle(tmp_path: object) -> None:
    for number, (factors, errors, expected) in enumerate(
        [
            ([0.5, 0.7], (0.3, 0.4), 0.25),
            ([0.5, 0.9, 0.7], (0.3, 5.0, 0.4), 0.4),
            ([0.5, 0.7, 0.9], (0.3, math.nan, 0.4), math.nan),
            ([0.5, 0.7], (0.3,), math.nan),
        ]
    ):
        path = f"{tmp_path}/run{number}"
        write(path, {"a": factors}, errors=errors)
        found = open_run(path).reach(window="all").error
        assert found == pytest.approx(expected, nan_ok=True)


def test_the_error_of_another_phase_is_not_taken(tmp_path: object) -> None:
    path = f"{tmp_path}/run"
    profile = np.repeat(math.log(0.7) * np.arange(60)[:, None], 6, 1)
    with RunWriter(path) as writer:
        for step in range(3):
            reached = Measurement.of("credit_profile", profile, "a")
            error = Measurement.of("reach_error", np.asarray(0.5), "a")
            writer.append(Recording(step, measurements=(reached,)))
            writer.append(Recording(step, phase="val", measurements=(reached, error)))
    run = open_run(path)
    assert run.find("reach_error", "a") is not None
    assert math.isnan(run.reach(window="all").error)


def test_an_array_of_several_columns_is_no_profile() -> None:
    with pytest.raises(BadArgument, match="one number a lag"):
        reach(np.zeros((40, 6)))
    with pytest.raises(BadArgument, match="one number a lag"):
        decay(np.zeros((1, 40)))


def test_a_call_of_one_step_does_not_stand_for_the_run(tmp_path: object) -> None:
    """Such as that of a begin-of-sequence token, beside the decoder's run."""
    path = f"{tmp_path}/run"
    with RunWriter(path) as writer:
        made = []
        for layer, lags in (("rnn.l0", 1), ("rnn.l0#2", 8)):
            made.append(Measurement.of("credit_profile", np.zeros((lags, 6)), layer))
            made.append(Measurement.of("valid_samples", np.ones(lags), layer))
        writer.append(Recording(0, measurements=tuple(made)))
    run = open_run(path)
    assert run.reach(window="all") == pytest.approx(7.2)
    assert run.reach(layer="rnn.l0", window="all") == pytest.approx(0.9)


def test_a_quantity_that_the_judged_recordings_lack_is_not_said_to_be_misspelt(
    tmp_path: object,
) -> None:
    path = f"{tmp_path}/run"
    with RunWriter(path) as writer:
        profile = Measurement.of("credit_profile", np.zeros((4, 6)), "a")
        writer.append(Recording(0, measurements=(profile,)))
        for step in range(1, 9):
            writer.append(Recording(step, measurements=(Measurement.of("loss", np.nan),)))
    with pytest.raises(RunUnreadable, match="at these steps") as error:
        open_run(path).reach()
    assert "Did you mean" not in str(error.value)
