"""Rules for causes that lie in the structure of the program, in its data, or in failed proofs."""

from __future__ import annotations

import math

from rnndiag.health.diagnosis.diagnosis import Remedy
from rnndiag.health.diagnosis.features import GROWS, Features
from rnndiag.health.diagnosis.layer_evidence import DEAD, Dated
from rnndiag.health.diagnosis.rule import Found, View, evidence, number
from rnndiag.health.diagnosis.start_rules import explosion, start_of_recurrence
from rnndiag.health.diagnosis.step_rules import lower_rate, wild
from rnndiag.health.sentence_case import sentence_case

FEWEST_SPIKES = 2


def not_trusted(view: View) -> Found | None:
    """A proof failed in a recording that the state rests on, though every number in it is finite."""
    features = view.features
    last = features.recordings[-3:]
    failed = [step for step in last if step in features.untrusted]
    if not failed:
        return None
    return Found(
        f"The proof of {len(failed)} of the last {len(last)} recordings failed (step "
        f"{', '.join(map(str, failed))}), so their numbers are not those of your training. Compiled or patched layers "
        "are the usual reason; the report names the layer.",
    )


def _by_preflight(view: View, check: str, remedy: Remedy) -> Found | None:
    fault = view.features.structure.get(check)
    if fault is None:
        return None
    message, layer = fault
    sentence = f"{sentence_case(message, layer)}.".replace("..", ".")
    return Found(sentence, layer=layer, remedy=remedy)


def time_and_batch_swapped(view: View) -> Found | None:
    """The recurrence runs along the samples instead of time."""
    remedy = Remedy("batch_first", True, "Set batch_first=True, or transpose the input.")
    return _by_preflight(view, "time and batch swapped", remedy)


def state_not_carried(view: View) -> Found | None:
    """The layer is called in pieces, each from a zero state."""
    remedy = Remedy("carry_state", True, "Pass the state that a call returns into the next call.")
    return _by_preflight(view, "state not carried", remedy)


def reads_padding(view: View) -> Found | None:
    """The loss reads states beyond the end of the sequences."""
    remedy = Remedy(
        "read_last_valid_step", True, "Take each sequence's last real step, pack, or mask the loss."
    )
    return _by_preflight(view, "padding counts", remedy)


_FREEZE = {
    "requires_grad": (
        "The recurrent weights of {layer} have requires_grad=False: they are as they began.",
        "Set requires_grad=True for them.",
    ),
    "add_to_optimizer": (
        "No optimizer holds the recurrent weights of {layer}: they are as they began.",
        "Give them to the optimizer.",
    ),
}


def frozen_or_unused(view: View) -> Found | None:
    """All recurrences keep their weights; if only one of several does, it is named only for a model that has not
    learned."""
    features = view.features
    still = dict(features.setup.frozen)
    for layer in features.setup.layers:
        if layer not in still and _never_moved(features, layer):
            still[layer] = "use_in_loss"
    whole = bool(still) and set(features.setup.layers) <= set(still)
    if not still or (view.situation == "learned" and not whole):
        return None
    layer, knob = next(iter(still.items()))
    if knob == "use_in_loss":
        moved = features.sizes.other[-1]
        return Found(
            f"|Δθ| of the recurrent weights of {layer} is 0 in all {len(features.recordings)} recordings, while "
            "the other "
            f"weights moved (by {number(moved.value)} of their size at step {moved.step}): the loss does not reach it.",
            evidence(other_update_ratio=moved),
            layer,
            remedy=Remedy(
                "use_in_loss", True, "Let the loss depend on its output, without a detach between."
            ),
        )
    sentence, remedy = _FREEZE[knob]
    return Found(sentence.format(layer=layer), (), layer, remedy=Remedy(knob, True, remedy))


def _never_moved(features: Features, layer: str) -> bool:
    """Whether |Δθ| / |θ| is 0 at all recordings, while the other weights moved and the units are alive."""
    ratios = features.sizes.recurrent.get(layer, ())
    if not ratios or any(one.value != 0 for one in ratios):
        return False
    if not features.sizes.other_path > 0:
        return False
    own = next((one for one in features.layers if one.name == layer), None)
    return own is None or not any(one.above(DEAD) for one in own.dead)


def nonfinite_data(view: View) -> Found | None:
    """At the first step with a non-finite number, the batch itself is not finite."""
    fault = view.features.fault
    if fault is None or fault.data_finite:
        return None
    return Found(
        f"The batch of step {fault.step} holds nan or inf, and the loss or gradient is not finite from there.",
        evidence(first_nonfinite_step=Dated(float(fault.step), fault.step)),
        remedy=Remedy(
            "skip_nonfinite_batches", True, "Drop batches that hold nan or inf, or repair the data."
        ),
    )


def nonfinite_by_rate(view: View) -> Found | None:
    """Steps were too large, then numbers became non-finite."""
    features = view.features
    if features.fault is None or (found := wild(view)) is None:
        return None
    return _then_not_finite(found, features.fault.step, lower_rate(features))


def nonfinite_by_growth(view: View) -> Found | None:
    """The gradient grew with every step back at step 0, then numbers became non-finite."""
    features = view.features
    if features.fault is None:
        return None
    for layer in features.layers:
        far = features.far_credit(layer, 0)
        if far.above(GROWS) and not math.isinf(far.value):
            found = explosion(view, layer)
            if found is not None:
                return _then_not_finite(found, features.fault.step, start_of_recurrence(layer))
    return None


def _then_not_finite(found: Found, step: int, remedy: Remedy | None) -> Found:
    sentence = f"{found.sentence} The loss or gradient is not finite from step {step}."
    return Found(sentence, found.evidence, found.layer, remedy=remedy)


def spikes(view: View) -> Found | None:
    """Single gradients were many times the usual size, in a model that had learned and lost it."""
    jumps = view.features.jumps
    if len(jumps) < FEWEST_SPIKES:
        return None
    largest = max(jumps, key=lambda one: one.ratio)
    value = float(f"{2 * largest.usual:.2g}")
    return Found(
        f"The gradient norm jumped {len(jumps)} times, the furthest at step {largest.step}: "
        f"{number(largest.ratio)} times its usual {number(largest.usual)}, and what was learned was lost.",
        evidence(gradient_jump=Dated(largest.ratio, largest.step)),
        largest.layer,
        "medium",
        Remedy(
            "gradient_clip_val",
            value,
            f"Clip the gradient norm at {number(value)}, twice its usual size.",
        ),
    )


def nonfinite(view: View) -> Found | None:
    """A number is not finite, and no other rule explains it."""
    fault = view.features.fault
    if fault is None:
        return None
    return Found(
        f"The loss or gradient is not finite from step {fault.step}, with finite data and steps of normal size. "
        f"{fault.sentence}".strip(),
        evidence(first_nonfinite_step=Dated(float(fault.step), fault.step)),
        confidence="medium",
        remedy=_FEEDS if fault.place == "inputs" else _CLIP,
    )


_FEEDS = Remedy(
    "skip_nonfinite_batches",
    True,
    "Look for a log or a division before that layer, or drop batches for which it gives nan or inf.",
)
_CLIP = Remedy(
    "gradient_clip_val",
    1.0,
    "Clip the gradient norm at 1, and look where the first number breaks in the report.",
)
