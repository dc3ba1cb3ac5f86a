"""Rules for causes that lie in the scale of the data: targets far from what a fresh model answers."""

from __future__ import annotations

from rnndiag.health.diagnosis.diagnosis import Remedy
from rnndiag.health.diagnosis.features import Features
from rnndiag.health.diagnosis.layer_evidence import DEAD, LayerEvidence
from rnndiag.health.diagnosis.rule import Found, View, evidence, number
from rnndiag.health.diagnosis.start_rules import saturated

FAR = 3.0
"""The targets are far off if the weights must change by this multiple of their size, to first order."""
LARGE_LOSS = 30.0
"""A smaller loss at step 0 speaks against it: a net whose head starts near zero has a small gradient there too. A
cross-entropy over 50,000 classes begins at 11."""


def targets_out_of_scale(view: View) -> Found | None:
    """At step 0 the loss is too large for steps of the size of the weights to remove.

    A sample's loss over its gradient is the distance that the recurrent weights would have to move, to first order. It
    does not change if the loss is scaled. For targets of size 1 it is a fraction of the weights' size; for a squared
    error it grows with the targets.
    """
    features = view.features
    layer = _nearest(features)
    if layer is None or not layer.way_at_start.above(FAR) or not features.loss.first > LARGE_LOSS:
        return None
    # either leaves the gradient small, and is the cause then
    if saturated(view) is not None or layer.dead[0].above(DEAD):
        return None
    way = layer.way_at_start
    return Found(
        f"The loss begins at {number(features.loss.first)}: to remove what it is at step {way.step}, the gradient of a "
        f"typical sequence would have to move the recurrent weights of {layer.name} by {number(way.value)} times their "
        "size. The targets lie far from what the model answers.",
        evidence(way_at_start=way),
        layer.name,
        remedy=Remedy(
            "standardise_targets",
            True,
            "Standardise the targets: subtract their mean, and divide by their standard deviation.",
        ),
    )


def _nearest(features: Features) -> LayerEvidence | None:
    """The layer whose weights would have to move least; a layer far from the loss says little."""
    known = [one for one in features.layers if one.way_at_start.value > 0]
    return min(known, key=lambda one: one.way_at_start.value, default=None)
