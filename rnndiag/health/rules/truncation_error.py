"""Rule: the gradient bias caused by the truncation window in use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rnndiag.health.numbers import DoesNotApply, LayerNumbers, NotRecorded
from rnndiag.health.rule import RuleSeries, rule
from rnndiag.stats.advice import advice, at_hand, seam_name, seam_systematic, window_systematic
from rnndiag.stats.between_windows import at_window
from rnndiag.stats.reach import decay as decay_of_profile


@rule(
    "truncation_error",
    meaning="relative bias of the gradient through the window in use",
    statement="the window in use leaves out {percent} of the gradient",
    too_high="Carry the graph through more steps.",
    floor=0.5,
    family="profile",
    rank=20,
    percent=True,
    typical=lambda numbers: (None, 0.10),
    words=("", "WINDOW TOO SHORT"),
)
def truncation_error(numbers: LayerNumbers) -> RuleSeries:
    """The relative bias at the window in use.

    If training detaches the state, it is the contribution of the steps before the cut, measured across the seam, or the
    credit beyond it, extrapolated by its decay. Otherwise it is the bias at the window in use: of the mean gradient if
    resolved, else of each minibatch.
    """
    found = _across_seams(numbers) or _beyond_the_cut(numbers) or _within_the_call(numbers)
    if np.isnan(found.values).all():
        raise DoesNotApply("no gradient reaches it, so there is nothing to be off from")
    advised = advice(numbers.whole.run, numbers.layer)
    return found if advised is None else replace(found, advice=advised.sentence)


def _within_the_call(numbers: LayerNumbers) -> RuleSeries:
    bias = numbers.get("window_bias")
    window = windows_in_use(numbers)
    keep = np.array([int(step) in window for step in bias.steps], dtype=bool)
    if not keep.any():
        raise NotRecorded("no recording holds both the window in use and the window's bias")
    steps, at = bias.steps[keep], np.array([window[int(step)] for step in bias.steps[keep]])
    run, judged = numbers.whole.run, numbers.whole.steps.tolist()
    pooled = window_systematic(run, numbers.layer, float(np.median(at)), judged)
    if pooled is not None:
        note = "systematic: the bias of the mean gradient, pooled over the judged recordings"
        return RuleSeries(steps, np.full(len(steps), pooled), note)
    rows = zip(bias.values[keep], at, strict=True)
    measured = [at_window(row, bias.positions("lag"), tau) for row, tau in rows]
    return RuleSeries(
        steps, np.array(measured), "on single minibatches: the systematic part is not resolved"
    )


def windows_in_use(numbers: LayerNumbers) -> dict[int, float]:
    """Training step -> number of steps that its backward pass covers, as recorded, else T of the layer."""
    try:
        found = numbers.of_model("window_in_use")
    except NotRecorded:
        bias = numbers.get("window_bias")
        known = zip(bias.steps.tolist(), numbers.lags(bias.steps), strict=True)
        return {step: float(lags) for step, lags in known if lags is not None}
    return dict(zip(found.steps.tolist(), found.values.reshape(-1).tolist(), strict=True))


def _across_seams(numbers: LayerNumbers) -> RuleSeries | None:
    """Measured cost of the cut: of the judged recordings that measured it, else of the last recording that did."""
    run = numbers.whole.run
    name = seam_name(run, numbers.layer)
    found = None if name is None else at_hand(run, "seam_bias", name, numbers.whole.steps)
    if name is None or found is None or _no_gradient_arrives(numbers):
        return None
    pooled = seam_systematic(run, name, found.steps.tolist())
    steps = found.steps.astype(np.int64)
    where = f"measured across the seam of {name}"
    if pooled is not None:
        note = f"{where}, systematic: the bias of the mean gradient, pooled over recordings"
        return RuleSeries(steps, np.full(len(steps), pooled), note)
    note = f"{where}, on single minibatches: the systematic part is not resolved"
    return RuleSeries(steps, found.values.astype(np.float64).reshape(-1), note)


def _no_gradient_arrives(numbers: LayerNumbers) -> bool:
    """Whether this is one of several chunks and no gradient reaches it."""
    try:
        return bool(np.isnan(numbers.get("credit_profile").values).all())
    except NotRecorded:
        return False


def _beyond_the_cut(numbers: LayerNumbers) -> RuleSeries | None:
    """If the state is detached before the credit has decayed: the share of credit beyond, by the measured decay."""
    if numbers.cause != "detach":
        return None
    profile = numbers.get("credit_profile").pick("profile_stat", "profile")
    shares = [_share_beyond(row, int(np.sum(~np.isnan(row)))) for row in profile.values]
    note = "extrapolated: the state is cut there, and the credit beyond is taken to decay as it does before"
    return RuleSeries(profile.steps, np.array(shares), note)


def _share_beyond(profile_log: np.ndarray, window: int) -> float:
    """Σ_{d >= window} profile(d) over the sum of all lags; unmeasured lags follow the decay of the tail."""
    known = profile_log[~np.isnan(profile_log)]
    if len(known) == 0 or not np.isfinite(known).any():
        return float("nan")
    credit = np.exp(known - known.max())
    factor = decay_of_profile(known)
    beyond = float(credit[window:].sum())
    if factor.reached and factor >= 1:
        return 1.0
    if factor.reached and factor > 0:
        beyond += float(credit[-1]) * float(factor) / (1.0 - float(factor))
    return beyond / (float(credit[:window].sum()) + beyond)
