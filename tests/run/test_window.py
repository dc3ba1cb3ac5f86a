"""The recommended window against the definition, closed forms, and simulated gradients with a known bias."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnndiag.run.run import open_run
from rnndiag.stats.window import smallest_window, systematic_bias
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter


@given(st.lists(st.floats(0, 2), min_size=1, max_size=30), st.floats(0.01, 1))
def test_smallest_window_by_the_definition(bias: list[float], epsilon: float) -> None:
    good = [t for t in range(len(bias)) if all(b <= epsilon for b in bias[t:])]
    found = smallest_window(bias, epsilon)
    if good:
        assert (found.steps, found.extrapolated, found.bias) == (good[0], False, bias[good[0]])
    else:
        assert found.extrapolated
        assert found.steps > len(bias) - 1


def test_a_geometric_bias_and_its_extrapolation() -> None:
    bias = 0.9 ** np.arange(60)
    assert smallest_window(bias, 0.1).steps == math.ceil(math.log(0.1) / math.log(0.9)) == 22
    short = smallest_window(bias[:11], 0.1)
    assert (short.steps, short.extrapolated, short.within) == (22, True, 10)
    assert short.text == (
        "at most 22 steps for a bias on the minibatch under 10%, extrapolated from the measured decay"
    )
    assert smallest_window(bias[:11], 0.1, steps=15).steps == 15


def test_of_two_decays_the_slower_bounds() -> None:
    logs = np.concatenate([-0.5 * np.arange(16), -7.5 - 0.01 * np.arange(1, 6)])
    found = smallest_window(np.exp(logs), 1e-6)
    assert found.extrapolated
    assert found.steps > 20 + (math.log(1e6) - 7.55) / 0.1


def test_between_measured_windows_a_geometric_bias_is_hit() -> None:
    bias, measured = 0.9 ** np.arange(60.0), [0, 5, 13, 25, 49]
    found = smallest_window(bias[measured], 0.1, measured)
    assert (found.steps, found.between) == (22, (13, 25))
    assert found.bias == pytest.approx(0.9**22)
    assert found.text == (
        "about 22 steps for a bias on the minibatch under 10%, interpolated between the measured 13 and 25"
    )


@given(
    st.lists(st.tuples(st.integers(1, 20), st.floats(0, 2)), min_size=1, max_size=12),
    st.floats(0.01, 1),
)
def test_an_interpolated_window_lies_between_its_neighbours(
    gaps: list[tuple[int, float]], epsilon: float
) -> None:
    windows, bias = np.cumsum([gap for gap, _ in gaps]), [value for _, value in gaps]
    found = smallest_window(bias, epsilon, windows)
    measured = smallest_window(bias, epsilon, windows, interpolate=False)
    if found.between is None:
        assert found == measured
        return
    low, high = found.between
    assert low < found.steps < high == measured.steps
    assert found.bias <= epsilon * (1 + 1e-12)
    assert bias[list(windows).index(low)] > epsilon


@pytest.mark.parametrize(
    ("bias", "windows"),
    [
        ([1.0, 0.05], [3, 3]),
        ([1e200, 1e-200], [0, 50]),
        ([0.1 + 1e-17, np.nextafter(0.1, 1), 0.1], [0, 20, 60]),
        ([5e-324, 1.0, 5e-324], [0, 20, 60]),
    ],
)
def test_windows_between_at_the_edge_of_a_float(bias: list[float], windows: list[int]) -> None:
    found = smallest_window(bias, 0.1, windows)
    assert windows[0] <= found.steps <= windows[-1]
    assert found.bias <= 0.1


def test_a_window_that_one_of_two_recordings_measured_has_its_error_alone() -> None:
    found = systematic_bias([[1.0, 0.2], [1.0, np.nan]], [1.0, 1.0], [[0.0, 0.01], [0.0, np.nan]])
    assert found.square_error.tolist() == pytest.approx([0.0, 0.01])
    both = systematic_bias([[1.0, 0.2], [1.0, 0.2]], [1.0, 1.0], [[0.0, 0.01], [0.0, 0.01]])
    assert both.square_error.tolist() == pytest.approx([0.0, 0.01 / math.sqrt(2)])


def test_whole_bptt_is_not_put_between() -> None:
    """τ = T is exact by definition; it says nothing of how the bias falls on the way there."""
    found = smallest_window([1.0, 0.5, 0.0], 0.1, [0, 20, 200])
    assert (found.steps, found.between) == (200, None)


def test_a_bias_that_does_not_fall_has_no_window() -> None:
    found = smallest_window(np.full(20, 0.5))
    assert (found.steps, found.reached) == (math.inf, False)
    assert found.text == "no window within 19 steps keeps the bias under 10%"
    assert smallest_window(np.full(20, 0.5), steps=40).steps == 40


def test_sampled_windows_and_chunks() -> None:
    bias = [0.9, 0.5, 0.05, 0.2, 0.01]
    measured = [1, 2, 4, 8, 16]
    assert smallest_window(bias, 0.1, measured, interpolate=False).steps == 16
    assert smallest_window([*bias, np.nan], 0.1, [*measured, 32], interpolate=False).steps == 16
    assert smallest_window(bias, 0.1, [1, 2, 4, 8, 16], what="chunk").what == "chunk"


@pytest.mark.parametrize("bias", [[], [np.nan], [1.0, np.inf], [np.nan, 0.0]])
def test_no_number_no_window(bias: list[float]) -> None:
    found = smallest_window(bias)
    assert math.isnan(found.steps)
    assert "can be recommended" in found.text


def simulated(
    ratio: float, recordings: int = 50, batch: int = 64, size: int = 40, factor: float = 0.9
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per recording: U-statistics of |E S_d|² and |E g|², and the naive bias, at this signal-to-noise of the minibatch.

    The mean gradient's tail after d lags is factor^d of the mean gradient; each sequence adds noise to every lag.
    """
    rng = np.random.default_rng(0)
    lags = 45
    direction = rng.standard_normal(size)
    direction /= np.linalg.norm(direction)
    steps = factor ** np.arange(lags) * (1 - factor)
    steps[-1] = 1 - steps[:-1].sum()
    tails, gradients, naive = [], [], []
    for _ in range(recordings):
        noise = rng.standard_normal((batch, lags, size)) * math.sqrt(batch / (lags * size)) / ratio
        terms = steps[None, :, None] * direction + noise
        tail = terms[:, ::-1].cumsum(1)[:, ::-1]
        total = tail.sum(0)
        square = (total**2).sum(-1)
        own = (tail**2).sum((0, 2))
        tails.append((square - own) / (batch * (batch - 1)))
        gradients.append(tails[-1][0])
        naive.append(np.sqrt(square / square[0]))
    return np.array(tails), np.array(gradients), np.array(naive)


@pytest.mark.parametrize("ratio", [3.0, 1.0])
def test_the_systematic_bias_sees_through_noise(ratio: float) -> None:
    tails, gradients, naive = simulated(ratio)
    found = systematic_bias(tails, gradients)
    assert found.resolved
    at = 22  # where the truth is 0.9^22 = 9.8 %
    truth = 0.9**at
    error = found.square_error[at]
    assert error < 0.14**2
    assert abs(found.square[at] - truth**2) < 3 * error
    assert np.median(naive[:, at]) > 1.5 * truth
    assert np.median(naive[:, at]) > found.bias[at]


def test_not_resolved_is_an_answer() -> None:
    tails, gradients, _ = simulated(0.1, recordings=20)
    assert not systematic_bias(tails, gradients).resolved
    nothing = systematic_bias(np.full((3, 4), np.nan), np.full(3, np.nan))
    assert (nothing.resolved, nothing.recordings) == (False, 0)
    two = systematic_bias(np.ones((2, 3)), np.ones(2), np.full((2, 3), 0.01))
    assert two.resolved
    assert not systematic_bias(np.ones((2, 3)), np.ones(2)).resolved


def test_windows_that_differ_between_recordings_are_matched_by_their_number(
    tmp_path: Path,
) -> None:
    """Sampled sweeps measure some windows only, and not the same ones each time."""
    chosen = ([0, 1, 4, 30, 40], [0, 2, 8, 22, 40], [0, 1, 4, 22, 40], [0, 3, 24, 40])
    tails, gradients, naive = simulated(3.0)
    with RunWriter(tmp_path / "run") as writer:
        for step, truth in enumerate(tails):
            measured = chosen[step % len(chosen)]
            labels = {"lag": tuple(map(str, measured))}
            made = (
                Measurement.of("window_bias", naive[step][measured], "a", labels),
                Measurement.of("tail_mean_square", truth[measured], "a", labels),
                Measurement.of("gradient_mean_square", gradients[step], "a"),
                Measurement.of("valid_samples", np.ones(45), "a"),
            )
            writer.append(Recording(step, measurements=made))
    run = open_run(tmp_path / "run")
    at = run["window_bias", "a"].positions("lag").tolist()
    assert at == sorted({w for row in chosen for w in row})
    found = run.window(0.1, window="all")
    assert found.source == "systematic"
    assert 22 <= found.steps <= 24
    only = smallest_window([0.01, 0.5, np.nan, 0.05], 0.1, [30, 2, 8, 20], interpolate=False)
    assert (only.steps, only.within) == (20, 30)


def write(path: Path, ratio: float) -> None:
    tails, gradients, naive = simulated(ratio)
    with RunWriter(path) as writer:
        for step in range(len(tails)):
            made = (
                Measurement.of("window_bias", naive[step], "a"),
                Measurement.of("tail_mean_square", tails[step], "a"),
                Measurement.of("gradient_mean_square", gradients[step], "a"),
                Measurement.of("valid_samples", np.ones(45), "a"),
            )
            writer.append(Recording(step, measurements=made))


def test_a_runs_window_is_systematic_where_resolved(tmp_path: Path) -> None:
    write(tmp_path / "clear", 3.0)
    found = open_run(tmp_path / "clear").window(0.1, window="all")
    assert (found.source, found.recordings) == ("systematic", 50)
    assert abs(found.steps - 22) <= 3
    assert "systematic bias under 10%" in found.text
    write(tmp_path / "noisy", 0.1)
    found = open_run(tmp_path / "noisy").window(0.1, "a", window="all")
    assert found.source == "minibatch"
    assert found.note == "the systematic bias is not resolved"
    assert found.text.endswith("; the systematic bias is not resolved")
