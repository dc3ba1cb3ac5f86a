"""Windows that some recordings measured and others did not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rnndiag.run.between_windows import over_windows, shared_windows
from rnndiag.run.measurement import Measurement, Series
from rnndiag.run.recording import Recording
from rnndiag.run.run import Run, open_run
from rnndiag.run.writer import RunWriter


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


def test_squares_count_where_half_of_the_recordings_measured_them() -> None:
    windows = [0, 5, 25, 60]
    nan = np.nan
    rows = [
        [1.0, -0.1, nan, nan],
        [1.0, 0.2, nan, 0.1],
        [1.0, nan, 0.3, nan],
        [1.0, nan, 1e-4, nan],
    ]
    found = shared_windows(series_of(rows, windows))
    assert found[:, 0].tolist() == [1.0] * 4
    assert found[:2, 1].tolist() == [-0.1, 0.2]
    assert np.isnan(found[2:, 1]).all()
    assert found[2:, 2].tolist() == [0.3, 1e-4]
    assert found[[1, 3], 3].tolist() == [0.1, 1e-4]


def test_the_window_is_not_that_of_the_one_recording_that_looked_further(tmp_path: Path) -> None:
    short = ([0, 5, 13, 25], [1.0, 0.2, 0.01, 0.0005])
    long = ([0, 5, 13, 25, 49, 97], [1.0, 0.9, 0.8, 0.7, 0.5, 0.3])
    run = run_of(tmp_path, short, short, short, short, long)
    found = run.window(0.1, window="all")
    assert (found.steps, found.between) == (7, (5, 13))
