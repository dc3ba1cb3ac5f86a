"""Rules for causes that appear late in a fit; used if nothing earlier explains the state."""

from __future__ import annotations

import math

from rnndiag.health.diagnosis.diagnosis import Remedy
from rnndiag.health.diagnosis.layer_evidence import DEAD, LayerEvidence
from rnndiag.health.diagnosis.rule import Found, View, evidence, number, power
from rnndiag.health.diagnosis.start_rules import first_layer, forgetting, start_of_recurrence
from rnndiag.store.text import counted

SHRANK = 0.85
"""Weights have decayed if they end below this share of their initial size."""
SHRANK_BY_HALF = 0.5
LITTLE_LEFT = math.log(1e-3)
"""A layer has no memory of a lag if the credit there is below this."""
OPEN = 0.8
"""Forget gates with a mean below this forget within a few steps."""


def weights_decayed(view: View) -> Found | None:
    """The recurrent weights lost most of their size."""

    def find(view: View, layer: LayerEvidence) -> Found | None:
        if not layer.growth:
            return None
        last = layer.growth[-1]
        if not last.below(SHRANK_BY_HALF if view.learning else SHRANK):
            return None
        decay = view.features.setup.weight_decay
        if not decay > 0:
            return None
        pull, gradient = decay * layer.weight_norm.value, layer.gradient_norm
        beside = ""
        if pull > gradient.value and not view.features.setup.optimizer.endswith("W"):
            beside = (
                f"; decay pulls with {number(pull)} at the weights, and the gradient with "
                f"{number(gradient.value)} (step {gradient.step})"
            )
        return Found(
            f"The recurrent weights of {layer.name} fell to {number(last.value)} of their size by step "
            f"{last.step}{beside}: "
            f"weight decay of {number(decay)} outweighs the gradient.",
            evidence(weight_growth=last, gradient_norm=gradient),
            layer.name,
            remedy=Remedy("weight_decay", 0.0, "Set weight_decay to 0 for the recurrent weights."),
        )

    return first_layer(view, find)


def forgets_too_soon(view: View) -> Found | None:
    """No credit arrives at the far lag, and the forget gates are not open enough."""

    def find(view: View, layer: LayerEvidence) -> Found | None:
        features = view.features
        if not layer.gated or not layer.carry_gate[1].below(OPEN):
            return None
        if not features.far_credit(layer, 1).below(LITTLE_LEFT) or _other_direction_reaches(
            view, layer
        ):
            return None
        found = forgetting(features, layer, 1)
        memory = 1 / max(1 - layer.carry_gate[1].value, 1e-9)
        known = features.needs is not None
        sentence = (
            found.sentence
            if known
            else (
                f"{found.sentence} If the task needs more than {counted(round(memory), 'step')}, "
                "it cannot be learned so."
            )
        )
        return Found(
            sentence, found.evidence, layer.name, "high" if known else "medium", found.remedy
        )

    return first_layer(view, find)


def contracts(view: View) -> Found | None:
    """No credit arrives at the far lag of a recurrence without gates."""

    def find(view: View, layer: LayerEvidence) -> Found | None:
        features, credit = view.features, layer.credit[1]
        far = features.far_credit(layer, 1)
        if not layer.elman or credit is None or not far.below(LITTLE_LEFT):
            return None
        if layer.dead[1].above(DEAD):  # the recurrence does not cause the decay
            return None
        if _other_direction_reaches(view, layer):
            return None
        known = features.needs is not None
        lag = features.needs or credit.last_lag
        rate = credit.per_step.value
        shrinks = (
            "" if math.isnan(rate) else f": the recurrence shrinks it to {number(rate)} a step"
        )
        return Found(
            f"{power(far.value)} of the credit in {layer.name} is left {lag} steps back at step {far.step}{shrinks}."
            + ("" if known else " If the task needs what lies there, it cannot be learned so."),
            evidence(far_credit=far, credit_per_step=credit.per_step),
            layer.name,
            "high" if known else "medium",
            start_of_recurrence(layer),
        )

    return first_layer(view, find)


def _other_direction_reaches(view: View, layer: LayerEvidence) -> bool:
    """Whether the layer of the other direction carries the credit that this one loses."""
    name = layer.name.removesuffix(".reverse")
    other = name if name != layer.name else f"{name}.reverse"
    return any(
        one.name == other and view.features.far_credit(one, 1).value >= LITTLE_LEFT
        for one in view.features.layers
    )
