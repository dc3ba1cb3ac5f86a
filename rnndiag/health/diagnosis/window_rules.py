"""Rules for causes that lie in where the gradient, or the sequence, is cut."""

from __future__ import annotations

import math

from rnndiag.health.diagnosis.diagnosis import Remedy
from rnndiag.health.diagnosis.layer_evidence import Dated, LayerEvidence
from rnndiag.health.diagnosis.rule import Found, View, evidence, percent
from rnndiag.health.diagnosis.start_rules import first_layer
from rnndiag.health.sentence_case import sentence_case

BEHIND = 0.2
"""The window is too short if at least this share of the credit lies beyond the cut."""
LONGER = 5
"""Suggested factor on the chunk length if the state is carried between batches."""


def sequence_too_short(view: View) -> Found | None:
    """The sequence is shorter than the number of steps that the task is said to need."""
    features = view.features
    longest = max((layer.length for layer in features.layers), default=0)
    if features.needs is None or not 0 < longest <= features.needs:
        return None
    value = features.needs + 1
    layer = features.layers[0].name
    return Found(
        f"The sequences have {longest} steps, and the task needs {features.needs} steps back (needs=): what it "
        "needs is "
        "never in them.",
        evidence(sequence_length=Dated(float(longest), features.recordings[0])),
        layer,
        remedy=Remedy("window", value, f"Give sequences of at least {value} steps."),
    )


def gradient_too_short(view: View) -> Found | None:
    """The gradient is cut before the number of steps that the task is said to need."""
    features = view.features
    window, needs = features.window_in_use, features.needs
    if needs is None or not window.value <= needs:
        return None
    layer = features.layers[0].name if features.layers else ""
    return Found(
        f"The gradient passes through {window.value:.0f} steps (step {window.step}), and the task needs {needs} steps "
        "back (needs=).",
        evidence(window_in_use=window),
        layer,
        remedy=Remedy(
            "window", needs + 1, f"Carry the gradient through at least {needs + 1} steps."
        ),
    )


def window_too_short(view: View) -> Found | None:
    """A considerable share of the credit lies beyond the cut."""
    return first_layer(view, _cut)


def _cut(view: View, layer: LayerEvidence) -> Found | None:
    share = layer.seam_share
    if not share.above(BEHIND):
        return None
    # several calls a training step: the cut is within the sequence
    within = layer.length > layer.chunk
    value = layer.length if within else LONGER * layer.chunk
    remedy = (
        f"Remove the detach, so that the gradient passes through all {value} steps."
        if within
        else f"Lengthen the chunks to {value} steps."
    )
    return Found(
        f"The state of {layer.name} is cut every {layer.chunk} steps, and {percent(share.value)} of the credit "
        "that reaches a "
        f"cut lies behind it (last recordings, to step {share.step}).",
        evidence(seam_share=share),
        layer.name,
        remedy=Remedy("window", value, remedy),
    )


def one_step_alone(view: View) -> Found | None:
    """Every layer runs one step from a zero state: a recurrence that has nothing to remember."""
    layers = view.features.layers
    if not layers or any(one.length != 1 or not math.isnan(one.seam_share.value) for one in layers):
        return None
    layer = layers[0].name
    return Found(
        f"{layer} runs 1 step in a training step, and no state reaches it from steps before: it has no memory.",
        evidence(sequence_length=Dated(1.0, view.features.recordings[0])),
        layer,
        "medium",
        Remedy(
            "carry_state",
            True,
            "Pass the state that a call returns into the next call, or give it whole sequences.",
        ),
    )


def detached_every_step(view: View) -> Found | None:
    """No gradient passes from any step to the one before."""
    fault = view.features.structure.get("stray detach")
    if fault is None:
        return None
    message, layer = fault
    length = max((one.length for one in view.features.layers), default=0)
    return Found(
        f"{sentence_case(message, layer)}.",
        layer=layer,
        remedy=Remedy(
            "window", length, "Remove detach(), .data or torch.no_grad() from the state's path."
        ),
    )
