"""Windows that some recordings measured and others did not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rnndiag.run.run import Run, open_run
from rnndiag.stats.between_windows import at_window, over_windows, shared_squares
from rnndiag.store.measurement import Measurement, Series
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter


def run_of(path: Path, *recordings: tuple[list[int], list[float]]) -> Run:
    with RunWriter(path / "run") as writer:
        for step, (windows, bias) in enumerate(recordings):
            labels = {"lag": tuple(map(str, windows))}
            made = (
                Measurement.of("window_bias", np.array(bias), "a", labels),
                Measurement.of("valid_samples", np.ones(200), "a"),
            )
            writer.append(Recording(step, measurements=made))
    return open_run(path / "run")


def series_of(values: list[list[float]], windows: list[int]) -> Series:
    labels = {"lag": tuple(map(str, windows))}
    rows = np.array(values)
    return Series(
        "window_bias",
        rows,
        ("step", "lag"),
        layer="a",
        coordinates=labels,
        steps=np.arange(len(rows)),
    )


def test_between_two_windows_of_a_recording_a_geometric_bias_is_hit() -> None:
    windows = [0, 1, 5, 8, 13, 40]
    truth = 0.9 ** np.array(windows, float)
    given = truth.copy()
    given[[1, 3]] = np.nan
    found = over_windows(series_of([given.tolist(), truth.tolist()], windows))
    assert found[0] == pytest.approx(truth)
    assert np.array_equal(found[1], truth)


def test_values_that_are_not_positive_lie_on_a_straight_line() -> None:
    found = over_windows(series_of([[4.0, np.nan, -2.0]], [0, 2, 6]))
    assert found[0].tolist() == pytest.approx([4.0, 2.0, -2.0])


def test_behind_the_last_window_nothing_is_known_unless_it_was_next_to_nothing() -> None:
    windows = [0, 5, 25, 60]
    found = over_windows(
        series_of([[1.0, 0.4, np.nan, np.nan], [1.0, 9e-4, np.nan, np.nan]], windows)
    )
    assert np.isnan(found[0, 2:]).all()
    assert found[1, 2:].tolist() == [9e-4, 9e-4]
    nothing = over_windows(series_of([[np.nan] * 4], windows))
    assert np.isnan(nothing).all()


def test_an_exact_zero_changes_only_the_stretch_before_it() -> None:
    windows = [0, 5, 25, 60, 200]
    found = over_windows(series_of([[1.0, np.nan, 0.9**25, np.nan, 0.0]], windows))
    assert found[0, 1] == pytest.approx(0.9**5)
    assert found[0, 3] == pytest.approx(0.9**25 * 140 / 175)


@pytest.mark.parametrize(("window", "value"), [(5, 0.5), (7, 0.25), (9, 0.125), (60, 0.125)])
def test_one_window_between_others(window: float, value: float) -> None:
    values, windows = np.array([1.0, np.nan, 0.5, 0.125]), np.array([0.0, 3.0, 5.0, 9.0])
    assert at_window(values, windows, window) == pytest.approx(value)


def test_one_window_where_nothing_is_known() -> None:
    assert math.isnan(at_window(np.array([1.0, 0.5]), np.array([0.0, 5.0]), 0.5))
    assert math.isnan(at_window(np.array([np.nan]), np.array([5.0]), 7))
    assert math.isnan(at_window(np.array([0.5]), np.array([5.0]), 3))


def of_steps(values: list[list[float]], windows: list[int], steps: list[int]) -> Series:
    return replace(series_of(values, windows), steps=np.array(steps))


def one_number(values: list[float], steps: list[int]) -> Series:
    return Series(
        "gradient_mean_square", np.array(values), ("step",), layer="a", steps=np.array(steps)
    )


def test_squares_count_where_half_of_the_usable_recordings_measured_them() -> None:
    windows, nan = [0, 5, 25, 60], np.nan
    rows = [
        [1.0, -0.1, nan, nan],
        [nan, nan, nan, nan],  # one sequence only: no squares at all
        [1.0, 0.2, nan, 0.1],
        [1.0, nan, 0.3, nan],
        [1.0, nan, 1e-7, nan],
        [9.0, 9.0, 9.0, 9.0],  # its gradient is missing
    ]
    steps = [0, 1, 2, 3, 4, 5]
    tail, whole = of_steps(rows, windows, steps), one_number([1.0] * 5, steps[:5])
    found = shared_squares(tail, whole, tail)
    assert found is not None
    assert found.whole.tolist() == [1.0] * 4
    assert found.tail[:, 0].tolist() == [1.0] * 4
    assert found.tail[:2, 1].tolist() == [-0.1, 0.2]
    assert np.isnan(found.tail[2:, 1]).all()
    assert found.tail[2:, 2].tolist() == [0.3, 1e-7]
    assert found.tail[[1, 3], 3].tolist() == [0.1, 1e-7]
    assert found.dropped == 0
    assert found.error is not None
    assert found.error[1, 3] == 0.1
    fewer = of_steps(rows[:3], windows, steps[:3])
    less = shared_squares(tail, whole, fewer)
    assert less is not None
    assert less.error is None


def test_a_window_that_few_recordings_measured_is_left_out_and_told() -> None:
    rows = [[1.0, 0.5, np.nan]] * 3 + [[1.0, 0.5, 0.1]]
    found = shared_squares(series_of(rows, [0, 5, 25]), one_number([1.0] * 4, [0, 1, 2, 3]), None)
    assert found is not None
    assert found.dropped == 25
    assert np.isnan(found.tail[:, 2]).all()


def test_the_window_is_not_that_of_the_one_recording_that_looked_further(tmp_path: Path) -> None:
    short = ([0, 5, 13, 25], [1.0, 0.2, 0.01, 0.0005])
    long = ([0, 5, 13, 25, 49, 97], [1.0, 0.9, 0.8, 0.7, 0.5, 0.3])
    run = run_of(tmp_path, short, short, short, short, long)
    found = run.window(0.1, window="all")
    assert (found.steps, found.between) == (7, (5, 13))
