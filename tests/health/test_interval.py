"""The prediction interval against the distribution of Student's t, published numbers and its own false-alarm rate."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rnndiag.health.change import prediction_interval


@pytest.mark.parametrize("n", [2, 3, 5, 10, 200])
@pytest.mark.parametrize("false_alarm", [0.2, 0.05, 0.01, 1e-5])
def test_interval_has_the_quantile_of_students_t(n: int, false_alarm: float) -> None:
    values = np.arange(n, dtype=float)
    half = prediction_interval(values.tolist(), 1, false_alarm)
    inside = stats.t.cdf(half / (values.std(ddof=1) * np.sqrt(1 + 1 / n)), n - 1)
    assert 2 * (1 - inside) == pytest.approx(false_alarm, rel=1e-6)


@pytest.mark.parametrize(
    ("baseline", "candidates", "widths"), [(3, 1, 11.46), (5, 1, 5.04), (5, 3, 3.36)]
)
def test_interval_at_one_percent_is_the_published_one(
    baseline: int, candidates: int, widths: float
) -> None:
    values = np.arange(baseline, dtype=float)
    half = prediction_interval(values.tolist(), candidates, 0.01)
    assert half / values.std(ddof=1) == pytest.approx(widths, abs=0.005)


@pytest.mark.parametrize(("baseline", "candidates"), [(3, 1), (5, 1), (5, 3)])
def test_interval_holds_its_false_alarm_rate_and_three_sigma_does_not(
    baseline: int, candidates: int
) -> None:
    rng = np.random.default_rng(0)
    draws, alarms, naive = 4000, 0, 0
    for _ in range(draws):
        old, new = rng.normal(size=baseline), rng.normal(size=candidates)
        away = abs(new.mean() - old.mean())
        alarms += away > prediction_interval(old.tolist(), candidates, 0.01)
        naive += away > 3 * old.std(ddof=1)
    error = 4 * np.sqrt(0.01 * 0.99 / draws)
    assert abs(alarms / draws - 0.01) < error
    if candidates == 1:
        assert naive / draws > 0.03


def test_one_value_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two"):
        prediction_interval([1.0], 1, 0.01)
