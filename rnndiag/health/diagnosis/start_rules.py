"""Rules for causes that exist at step 0: the initialization of the layer, and its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable

from rnndiag.health.diagnosis.diagnosis import Remedy
from rnndiag.health.diagnosis.features import GROWS, Features
from rnndiag.health.diagnosis.layer_evidence import DEAD, LARGEST_LOG, LayerEvidence
from rnndiag.health.diagnosis.rule import Found, View, evidence, number, percent, power

GATES_AT_ENDS = 0.5
"""Saturated if at least this share of input, output and reset gate values is near 0 or 1."""
UNITS = 0.25
"""Saturated if at least this share of tanh units has a derivative below 0.05."""
FLAT = 0.2
"""Saturated if the mean derivative of tanh over all units and steps is below this."""
SHUT = 0.1
"""Shut if the mean forget gate is below this: a memory of 1.1 steps."""
CONTRACTS = 0.4
"""Contracting if the credit's factor per step is below this: at 0.4, 10^-3 of it is left after 8 steps."""
LARGE_INPUTS = 1.5
"""Saturation is attributed to the inputs if their standard deviation or their mean exceeds this."""


def first_layer(view: View, find: Callable[[View, LayerEvidence], Found | None]) -> Found | None:
    """The finding for the first layer that has one."""
    return next(
        (found for layer in view.features.layers if (found := find(view, layer)) is not None), None
    )


def saturated(view: View) -> Found | None:
    """Gates or units are saturated."""
    return first_layer(view, _saturated)


def _saturated(view: View, layer: LayerEvidence) -> Found | None:
    which = 1 if view.learning else 0
    if layer.gated:
        share = layer.gates_at_ends[which]
        if not (share.above(GATES_AT_ENDS) and layer.gates_at_ends[0].above(GATES_AT_ENDS)):
            return None
        observed = f"{percent(share.value)} of the values of the other gates of {layer.name} stand at 0 or 1"
        numbers = evidence(gates_at_ends=share)
    else:
        if layer.cell == "elman_relu":
            return None
        share, flat = layer.saturated[which], layer.derivative[which]
        started = layer.saturated[0].above(UNITS) or layer.derivative[0].below(FLAT)
        if not started or not (share.above(UNITS) or flat.below(FLAT)):
            return None
        observed = (
            f"The derivative of the units of {layer.name} is {number(flat.value)} in the mean, and "
            f"{percent(share.value)} of them are saturated"
        )
        numbers = evidence(saturated_units=share, activation_derivative=flat)
    why, remedy = _by_inputs(layer) or ("", start_of_recurrence(layer))
    return Found(
        f"{observed} (step {numbers[0].step}){why}. Little gradient passes there.",
        (*numbers, *evidence(input_spread=layer.input_spread, input_mean=layer.input_mean)),
        layer.name,
        remedy=remedy,
    )


def _by_inputs(layer: LayerEvidence) -> tuple[str, Remedy] | None:
    """The inputs as the reason for saturation, and the remedy; None if they are of ordinary size."""
    spread, mean = layer.input_spread, layer.input_mean
    if mean.above(LARGE_INPUTS) and not mean.below(spread.value):
        return (
            f": its inputs have a mean of {number(mean.value)} and a standard deviation of {number(spread.value)}",
            Remedy(
                "standardise_inputs",
                True,
                f"Standardise the inputs: subtract their mean ({number(mean.value)} in size), and divide by their "
                f"standard deviation ({number(spread.value)}).",
            ),
        )
    if not spread.above(LARGE_INPUTS):
        return None
    return (
        f": its inputs have a standard deviation of {number(spread.value)}",
        Remedy(
            "input_scale",
            float(f"{1 / spread.value:.2g}"),
            "Standardise the inputs: subtract their mean, and divide by their standard deviation "
            f"({number(spread.value)}).",
        ),
    )


def dead_units(view: View) -> Found | None:
    """Relu units that were dead at step 0."""

    def find(view: View, layer: LayerEvidence) -> Found | None:
        if not layer.dead[0].above(DEAD) or (view.learning and not layer.dead[1].above(DEAD)):
            return None
        return _dead(layer, 0)

    return first_layer(view, find)


def units_died(view: View) -> Found | None:
    """Relu units are dead at the end."""

    def find(view: View, layer: LayerEvidence) -> Found | None:
        return _dead(layer, 1) if layer.dead[1].above(DEAD) else None

    return first_layer(view, find)


def _dead(layer: LayerEvidence, which: int) -> Found:
    share = layer.dead[which]
    return Found(
        f"{percent(share.value)} of the relu units of {layer.name} are zero at every step of every sequence (step "
        f"{share.step}): no gradient passes through them.",
        evidence(dead_units=share),
        layer.name,
        remedy=Remedy("bias", 0.0, "Start the layer with biases of 0."),
    )


def exploding(view: View) -> Found | None:
    """Credit grows more than tenfold from lag 0 to the last lag, in any layer."""
    return first_layer(view, explosion)


def explosion(view: View, layer: LayerEvidence) -> Found | None:
    """Credit grows more than tenfold from lag 0 to the last lag, in one layer."""
    features = view.features
    credit = layer.credit[1 if view.learning else 0]
    first = layer.credit[0]
    if first is None or credit is None or not first.far.above(GROWS) or not credit.far.above(GROWS):
        return None
    norm = features.sizes.first_norm
    also = (
        f"; the gradient norm was {number(norm.value)} at step {norm.step}"
        if norm.step == credit.step
        else ""
    )
    return Found(
        f"At step {credit.step} the credit in {layer.name} grows "
        f"{number(math.exp(min(credit.far.value, LARGEST_LOG)))}-fold over "
        f"{credit.last_lag} lags ({number(credit.per_step.value)} a step){also}.",
        evidence(far_credit=credit.far, credit_per_step=credit.per_step),
        layer.name,
        remedy=start_of_recurrence(layer),
    )


def start_of_recurrence(layer: LayerEvidence) -> Remedy:
    """The remedy: initialize W_hh so that it neither amplifies nor damps."""
    if layer.cell == "elman_relu":
        return Remedy(
            "recurrent_weight",
            "identity",
            f"Start W_hh of {layer.name} as the identity, with zero biases.",
        )
    return Remedy(
        "recurrent_weight",
        "orthogonal",
        f"Start W_hh of {layer.name} orthogonal (spectral radius 1).",
    )


def forget_gates_shut(view: View) -> Found | None:
    """Forget or update gates are shut at step 0."""

    def find(view: View, layer: LayerEvidence) -> Found | None:
        gate = layer.carry_gate
        if not gate[0].below(SHUT) or (view.learning and not gate[1].below(SHUT)):
            return None
        return forgetting(view.features, layer, 1 if view.learning else 0)

    return first_layer(view, find)


def forgetting(features: Features, layer: LayerEvidence, which: int) -> Found:
    """The sentence on a layer's forget gates at its first (`which` = 0) or last (1) recording."""
    gate, far = layer.carry_gate[which], features.far_credit(layer, which)
    name = "forget" if layer.cell != "gru" else "update"
    memory = 1 / max(1 - gate.value, 1e-9)
    left = ""
    if not math.isnan(far.value):
        lag = features.needs or max((c.last_lag for c in layer.credit if c is not None), default=0)
        left = f", and {power(far.value)} of the credit is left {lag} steps back"
    return Found(
        f"The {name} gates of {layer.name} are {number(gate.value)} in the mean at step {gate.step}: a memory of "
        f"{memory:.1f} steps{left}.",
        evidence(**{f"{name}_gate": gate}, far_credit=far),
        layer.name,
        remedy=open_gates(layer, features.goal),
    )


def open_gates(layer: LayerEvidence, steps: int) -> Remedy:
    """The remedy: a forget bias that leaves 1/e of the credit after `steps` steps, f = 1 - 1/steps."""
    bias = math.log(max(steps - 1, 2))
    if layer.cell == "gru":
        value = round(0.8 * bias, 1)
        return Remedy(
            "update_bias",
            value,
            f"Start the bias of z at 0.8 ln({steps} - 1) = {value}, its other half at 0.",
        )
    value = round(bias, 1)
    return Remedy(
        "forget_bias",
        value,
        f"Start the forget bias at ln({steps} - 1) = {value} (the other of the two at 0): a memory of {steps} steps.",
    )


def contracting_recurrence(view: View) -> Found | None:
    """Credit of a recurrence without gates shrinks below 10^-3 within 8 steps."""

    def find(view: View, layer: LayerEvidence) -> Found | None:
        first, last = layer.credit
        if not layer.elman or first is None or not first.per_step.below(CONTRACTS):
            return None
        if view.learning and not (last is not None and last.per_step.below(CONTRACTS)):
            return None
        shown = last if view.learning and last is not None else first
        return Found(
            f"The credit in {layer.name} shrinks to {number(shown.per_step.value)} a step at step {shown.step}: "
            f"10^-3 of it is left {math.log(1e-3) / math.log(max(shown.per_step.value, 1e-9)):.0f} steps back.",
            evidence(credit_per_step=shown.per_step),
            layer.name,
            remedy=start_of_recurrence(layer),
        )

    return first_layer(view, find)
