"""Is the model stuck, learning, or has it learned? By its losses and by swing, never by the size of a gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rnndiag.health.diagnosis.diagnosis import State
from rnndiag.health.diagnosis.features import Features

FEWEST_STEPS = 20
"""With fewer steps nothing can be said."""
IGNORES_INPUT = 0.12
"""Swing below this share of the loss: the model answers as if it did not see its input."""
USES_INPUT = 0.35
"""Swing above this share: it uses what it saw."""
LEARNED = 0.25
"""A final loss below this share of the first one; a model that can be half right without memory stays above."""
AT_FLOOR = 0.1
"""Below this share of the first loss a model that still improves has learned already."""
MOVED = 0.95
"""A final loss above this share of the reference has not moved."""
WORSE = 1.3
LOST_AGAIN = 1.5


@dataclass(frozen=True)
class StateOf:
    """The state by the losses, before causes are looked for."""

    state: State
    at_rest: bool = False
    """The loss has come to rest above zero, and the model uses its input in part."""


def state_of(features: Features) -> StateOf:
    """The first of the rules that holds."""
    loss = features.loss
    if loss.count < FEWEST_STEPS:
        return StateOf("broken" if loss.ends_nonfinite else "cannot_tell")
    if loss.ends_nonfinite:
        return StateOf("broken")
    if _diverged(features):
        return StateOf("diverged")
    swing, low = features.swing.value, loss.end < LEARNED * features.reference_loss
    if math.isnan(swing):
        return _by_loss_alone(features)
    if swing >= USES_INPUT and low:
        return StateOf("learning" if _still_falls(features) else "learned")
    if loss.falling:
        return StateOf("learning")
    if swing < IGNORES_INPUT or loss.end > MOVED * features.reference_loss:
        return StateOf("stuck")
    return StateOf("learned", at_rest=True)


def _still_falls(features: Features) -> bool:
    return features.loss.falling and features.loss.end > AT_FLOOR * features.loss.start


def _diverged(features: Features) -> bool:
    """The loss ends above where it began; or the model had learned something and lost it."""
    loss = features.loss
    rose = loss.end > WORSE * loss.start and loss.end > loss.start + 3 * loss.start_noise
    lost = (
        loss.end > LOST_AGAIN * loss.best
        and loss.end - loss.best > 5 * loss.noise / math.sqrt(loss.window)
        and loss.end > AT_FLOOR * loss.start
    )
    return rose or lost


def _by_loss_alone(features: Features) -> StateOf:
    """Where swing was not recorded, as in runs of earlier versions.

    A loss that fell because the model learned where the padding is cannot be told from one that learned the task.
    """
    loss = features.loss
    if loss.end < LEARNED * features.reference_loss:
        return StateOf("learning" if _still_falls(features) else "learned")
    if loss.falling:
        return StateOf("learning")
    if loss.end > MOVED * features.reference_loss:
        return StateOf("stuck")
    return StateOf("learned", at_rest=True)
