"""What the user's own window leaves out of the gradient."""

from __future__ import annotations

import numpy as np

from rnndiag.health.numbers import LayerNumbers, NotRecorded, Stack
from rnndiag.health.rule import Series, rule
from rnndiag.run.reach import decay as decay_of_profile

_RESOLVED = 2.0
"""So many standard errors above zero the mean gradient must stand for its bias to count as resolved."""


@rule(
    "truncation_error",
    meaning="relative bias of the gradient through the window in use",
    statement="the window in use leaves out {percent} of the gradient",
    too_low="",
    too_high="Carry the graph through more steps: the report shows the smallest window for 10 %.",
    family="profile",
    rank=20,
    percent=True,
    floor=0.5,
    typical=lambda numbers: (None, 0.10),
    words=("", "WINDOW TOO SHORT"),
)
def truncation_error(numbers: LayerNumbers) -> Series:
    """The relative bias at the window in use: of the mean gradient where that is resolved, else of each minibatch."""
    in_use = numbers.of_model("window_in_use")
    window = {
        int(step): float(value)
        for step, value in zip(in_use.steps, in_use.values.reshape(-1), strict=True)
    }
    try:
        return _across_seams(numbers, window)
    except NotRecorded:
        pass
    bias = numbers.get("window_bias")
    keep = np.array([int(step) in window for step in bias.steps], dtype=bool)
    if not keep.any():
        raise NotRecorded("no recording holds both the window in use and the window's bias")
    steps, values = bias.steps[keep], bias.values[keep]
    at = np.array([window[int(step)] for step in steps])
    measured = np.array([at_window(row, tau) for row, tau in zip(values, at, strict=True)])
    pooled = systematic(numbers, int(np.median(at)))
    if pooled is not None:
        return Series(
            steps,
            np.full(len(steps), pooled),
            "systematic: the bias of the mean gradient, pooled over the judged recordings",
        )
    return Series(steps, measured, "on single minibatches: the systematic part is not resolved")


def at_window(bias: np.ndarray, window: float) -> float:
    """The bias (lag,) of a window of `window` steps: the last measured one where the lags end before it."""
    known = np.flatnonzero(~np.isnan(bias))
    if not len(known) or not window >= 1:
        return float("nan")
    return float(bias[min(int(window), int(known[-1]))])


def systematic(numbers: LayerNumbers, window: int) -> float | None:
    """|E S_τ| / |E g| pooled over recordings; None where the mean gradient does not stand above its noise."""
    try:
        tail, whole = numbers.get("tail_mean_square"), numbers.get("gradient_mean_square")
    except NotRecorded:
        return None
    steps = np.intersect1d(tail.steps, whole.steps)
    squares = _rows(tail, steps)
    if squares.shape[1] == 0 or len(steps) < 2:
        return None
    at_tau = squares[:, min(window, squares.shape[1] - 1)]
    total = _rows(whole, steps)[:, 0]
    known = np.isfinite(at_tau) & np.isfinite(total)
    if known.sum() < 2:
        return None
    mean, error = total[known].mean(), total[known].std(ddof=1) / np.sqrt(known.sum())
    if not mean > _RESOLVED * error:
        return None
    return float(np.sqrt(max(at_tau[known].mean(), 0.0) / mean))


def _rows(stack: Stack, steps: np.ndarray) -> np.ndarray:
    return stack.values[np.isin(stack.steps, steps)].reshape(len(steps), -1)


def _across_seams(numbers: LayerNumbers, window: dict[int, float]) -> Series:
    """Where training cuts the state: the share of credit that lies beyond the cut, by the profile across the seam."""
    seam = numbers.get("seam_credit")
    shares = []
    for step, row in zip(seam.steps, seam.values.reshape(len(seam.steps), -1), strict=True):
        credit = np.exp(row[~np.isnan(row)])
        tau = window.get(int(step), np.nan)
        if not len(credit) or not tau >= 1:
            shares.append(np.nan)
            continue
        beyond = credit[int(tau) :].sum() + _extrapolated(row, len(credit), tau)
        shares.append(beyond / (credit[: int(tau)].sum() + beyond))
    return Series(
        seam.steps,
        np.array(shares),
        "the share of credit beyond the cut, from the profile across the seam",
    )


def _extrapolated(profile_log: np.ndarray, measured: int, window: float) -> float:
    """Credit beyond the measured lags on the tail's decay, where the measured lags end at the window."""
    factor = decay_of_profile(profile_log)
    if measured > window or not factor.reached or not 0 < factor < 1:
        return 0.0
    return float(np.exp(profile_log[measured - 1]) * factor / (1 - factor))
