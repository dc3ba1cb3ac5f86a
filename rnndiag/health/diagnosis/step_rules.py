"""Rules for causes that lie in the size of the optimizer's steps."""

from __future__ import annotations

import math

from rnndiag.health.diagnosis.diagnosis import Remedy
from rnndiag.health.diagnosis.features import Features
from rnndiag.health.diagnosis.layer_evidence import DEAD, Dated
from rnndiag.health.diagnosis.rule import Found, View, evidence, number

GOOD_STEP = 0.01
"""Relative step |Δθ| / |θ| of the recurrent weights at the start of a fit with which they learn well."""
TOO_FAR = 0.2
"""A larger relative step destroys what the weights have learned."""
RATHER_FAR = 0.05
"""A larger relative step does so if the loss or the units show it."""
GREW = 10.0
"""Weights have grown too far if they grew by more than this factor."""
ROSE = 2.0
"""The loss has risen if it exceeded its start by more than this factor."""
NOWHERE = 0.05
"""Weights have not moved if their relative steps add up to less than this."""
NOT_FAR = 0.25
"""Weights may have moved too little if their relative steps add up to less than this."""
EARLY_SHARE = 0.25
"""A learning rate that is gone after this share of the fit had time to do its work."""
CLIPPED = 0.2
"""Clipping is too strong if it leaves less than this share of the gradient."""
CLIPPED_PATH = 0.15
ADAM_RATE = 0.003
"""Learning rate suggested for Adam: it moves weights of ordinary size by about 1 % per step.

In place of SGD it cures more often than the rate that is right for the recurrent weights (development tasks of the
trial), which may be wrong for the head.
"""


def _clipped(features: Features) -> bool:
    return features.sizes.clip_ratio.below(CLIPPED) and not features.setup.scale_free


def _rate_for_good_steps(features: Features) -> float:
    """The learning rate at which the reference step would have been GOOD_STEP."""
    reference = features.sizes.reference()
    rate = features.sizes.rates.get(reference.step, features.setup.rate)
    if math.isnan(rate) or rate <= 0:
        rate = features.setup.rate
    return float(f"{rate * GOOD_STEP / reference.value:.2g}") if reference.value > 0 else math.nan


def lower_rate(features: Features) -> Remedy | None:
    """Remedy: a lower rate; a tenth of the current one if the formula gives a higher one; Adam in place of SGD."""
    return _new_rate(features, lower=True)


def raise_rate(features: Features) -> Remedy | None:
    """Remedy: a higher rate; ten times the current one if the formula gives a lower one; Adam in place of SGD."""
    return _new_rate(features, lower=False)


def _new_rate(features: Features, lower: bool) -> Remedy | None:
    """The rate at which the recurrent weights move by `GOOD_STEP` a step, or a tenth or ten times the current one."""
    value, reference = _rate_for_good_steps(features), features.sizes.reference()
    if not (math.isfinite(value) and value > 0):
        return None
    why = (
        f": the step of {number(reference.value)} of the recurrent weights at step {reference.step} "
        f"becomes {GOOD_STEP:g}"
    )
    rate, optimizer = features.setup.rate, features.setup.optimizer
    if not math.isnan(rate) and (value >= rate if lower else value <= rate):
        value = float(f"{rate / 10 if lower else 10 * rate:.2g}")
        why = ", a tenth" if lower else ", ten times"
    if optimizer and not features.setup.scale_free:
        return Remedy(
            "optimizer",
            "adam",
            f"Use Adam at {ADAM_RATE:g}: under {optimizer} one rate rarely fits all weights. To stay with it, set the "
            f"learning rate to {number(value)}{why}.",
        )
    return Remedy("learning_rate", value, f"Set the learning rate to {number(value)}{why}.")


def learning_rate_too_low(view: View) -> Found | None:
    """All steps together moved neither the recurrent nor the other weights."""
    features = view.features
    path, other = features.sizes.longest_path, features.sizes.other_path
    if not path < NOWHERE or other >= NOWHERE or _clipped(features):
        return None
    last = features.loss.last_step
    return Found(
        f"All steps to step {last} together moved the recurrent weights by {number(path)} of their size and the "
        "others by "
        f"{number(other)}: too little to learn anything.",
        evidence(recurrent_path=Dated(path, last), other_path=Dated(other, last)),
        remedy=raise_rate(features),
    )


def rate_gone(view: View) -> Found | None:
    """A schedule let the learning rate fall to next to nothing in the first quarter of the fit."""
    features = view.features
    gone, highest, last = (
        features.sizes.rate_gone,
        features.sizes.highest_rate,
        features.loss.last_step,
    )
    if math.isnan(gone.value) or gone.step > EARLY_SHARE * last:
        return None
    return Found(
        f"The learning rate fell from {number(highest.value)} (step {highest.step}) to {number(gone.value)} by step "
        f"{gone.step} of {last}: the weights have stood still since.",
        evidence(highest_rate=highest, learning_rate=gone),
        remedy=Remedy(
            "learning_rate_schedule",
            "constant",
            "Keep the learning rate constant, or stretch its schedule over the fit: one that is meant to step once an "
            "epoch may step once a batch.",
        ),
    )


def clipped_away(view: View) -> Found | None:
    """Clipping leaves little of each gradient, and the optimizer's steps scale with what is left."""
    features = view.features
    ratio, path = features.sizes.clip_ratio, features.sizes.longest_path
    if not _clipped(features) or not (path < CLIPPED_PATH or ratio.below(CLIPPED / 2)):
        return None
    norm = features.sizes.first_norm
    value = float(f"{2 * norm.value:.2g}")
    at = f" at {number(features.setup.clip)}" if features.setup.clip else ""
    return Found(
        f"Clipping{at} leaves 1/{1 / max(ratio.value, 1e-12):.0f} of the gradient (median of the recordings to step "
        f"{ratio.step}), and {features.setup.optimizer} steps by what is left: {number(path)} of the weights' "
        "size in all. "
        "Adam divides a constant factor out.",
        evidence(clip_ratio=ratio, recurrent_path=Dated(path, features.loss.last_step)),
        remedy=Remedy(
            "gradient_clip_val",
            value,
            f"Clip at {number(value)}, twice the gradient norm of step {norm.step}, or use Adam.",
        ),
    )


def wild(view: View) -> Found | None:
    """Steps are so large that they destroy the weights; also used by the rules on non-finite numbers."""
    features = view.features
    (step, layer), growth, loss = features.largest_step, features.largest_growth, features.loss
    died = next(
        (one for one in features.layers if one.dead[1].above(DEAD) and not one.dead[0].above(DEAD)),
        None,
    )
    shown = (
        loss.rise > ROSE or died is not None or view.situation == "diverged" or loss.ends_nonfinite
    )
    if step.above(TOO_FAR) or (step.above(RATHER_FAR) and shown):
        effect = "far more than the 1 % that lets weights learn"
        if died is not None:
            effect = f"and {died.dead[1].value:.0%} of the units of {died.name} are dead at step {died.dead[1].step}"
        elif loss.rise > ROSE:
            effect = f"and the loss rose to {number(loss.rise)} times its start"
        return Found(
            f"The optimizer changed the recurrent weights by {number(step.value)} of their size at step "
            f"{step.step}, {effect}.",
            evidence(update_ratio=step),
            layer,
        )
    if growth.above(GREW):
        return Found(
            f"The recurrent weights grew {number(growth.value)}-fold by step {growth.step}.",
            evidence(weight_growth=growth),
        )
    return None


def learning_rate_too_high(view: View) -> Found | None:
    """Steps are so large that they destroy the weights."""
    found = wild(view)
    if found is None:
        return None
    return Found(found.sentence, found.evidence, found.layer, remedy=lower_rate(view.features))


def perhaps_too_high(view: View) -> Found | None:
    """No other rule fired, and the largest step was large."""
    step, layer = view.features.largest_step
    if not step.above(TOO_FAR / 2):
        return None
    return Found(
        f"Nothing else explains it, and the optimizer changed the recurrent weights by {number(step.value)} of "
        "their size at "
        f"step {step.step}.",
        evidence(update_ratio=step),
        layer,
        "low",
        lower_rate(view.features),
    )


def perhaps_too_low(view: View) -> Found | None:
    """No other rule fired, and the weights moved little."""
    features = view.features
    path, other = features.sizes.longest_path, features.sizes.other_path
    if not (path < NOT_FAR and other < NOT_FAR):
        return None
    last = features.loss.last_step
    return Found(
        f"Nothing else explains it, and all steps to step {last} together moved the recurrent weights by "
        f"{number(path)} of "
        "their size only.",
        evidence(recurrent_path=Dated(path, last), other_path=Dated(other, last)),
        "",
        "low",
        raise_rate(features),
    )
