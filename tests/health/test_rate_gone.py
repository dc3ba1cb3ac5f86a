"""A learning rate that a schedule lets fall to nothing: when it counts as the cause, and when it does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rnndiag.health.diagnosis.training_facts import _rate_gone

STEPS = np.arange(0, 400, 2)
SCHEDULES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int | None]] = {
    "constant": (lambda t: np.full(len(t), 0.003), None),
    "decays by step": (lambda t: 0.003 * 0.8**t, 22),
    "one drop": (lambda t: np.where(t < 50, 0.01, 1e-5), 50),
    "two drops of ten": (lambda t: 0.01 * 0.1 ** (t // 150), None),
    "cosine": (lambda t: 0.01 * (1 + np.cos(np.pi * t / 400)) / 2, 376),
    "warm-up": (lambda t: 0.01 * np.minimum(1, (t + 1) / 200), None),
    "up again at the end": (lambda t: np.where((t > 50) & (t < 390), 1e-6, 0.01), None),
    "zero": (np.zeros_like, None),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_step_from_which_the_rate_is_gone(name: str) -> None:
    schedule, expected = SCHEDULES[name]
    rates = schedule(STEPS.astype(float))
    found = _rate_gone(STEPS, rates)[1]
    if expected is None:
        assert np.isnan(found.value)
        return
    assert found.step == expected
    assert found.value < 0.01 * rates.max()
    assert (rates[found.step <= STEPS] < 0.01 * rates.max()).all()


def test_unknown_rates_are_passed_over() -> None:
    rates = np.where(STEPS % 4, np.nan, 0.003 * 0.8**STEPS)
    assert _rate_gone(STEPS, rates)[1].step == 24
    assert np.isnan(_rate_gone(STEPS, np.full(len(STEPS), np.nan))[1].value)
