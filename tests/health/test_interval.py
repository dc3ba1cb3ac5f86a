"""Student's t and the prediction interval against scipy, against published numbers, and against their own promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from rnndiag.health.interval import beta_regularized, prediction_interval, t_cdf, t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 200])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.995, 0.99999])
def test_quantile_is_scipys(probability: float, freedom: int) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(
        stats.t.ppf(probability, freedom),
        rel=1e-8,  # scipy 1.11's own error is 3e-9
    )


def test_distribution_functions_are_scipys() -> None:
    for a, b, x in [
        (0.5, 0.5, 0.3),
        (2.0, 0.5, 0.99),
        (50.0, 0.5, 0.5),
        (1.0, 1.0, 0.0),
        (1.0, 1.0, 1.0),
    ]:
        assert beta_regularized(a, b, x) == pytest.approx(
            special.betainc(a, b, x), rel=1e-12, abs=1e-300
        )
    for t in (-3.0, -0.1, 0.0, 0.1, 3.0, 50.0):
        assert t_cdf(t, 4) == pytest.approx(stats.t.cdf(t, 4), rel=1e-10)


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
