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
METRIC_GAINED = 0.5
"""A monitored accuracy that went this share of the way to 1 contradicts a loss that stands still."""
UNMOVED = 0.05
"""A final loss that lies less than this share of the reference below it has not moved..."""
FALLS = 0.02
"""... and one that still falls has come down by this share at least: it may only be back where it began."""
WORSE = 0.3
"""A final loss that lies above the first one by this share of it has risen, if that is more than noise..."""
FAR_WORSE = 2.0
"""... and above this share in any case: the noise at the start may be the rise itself."""
LOST_AGAIN = 0.5


@dataclass(frozen=True)
class StateOf:
    """The state by the losses, before causes are looked for."""

    state: State
    at_rest: bool = False
    """The loss has come to rest above zero, and the model uses its input in part."""


def state_of(features: Features) -> StateOf:
    """The first of the rules that holds."""
    loss = features.loss
    if loss.steps < FEWEST_STEPS:
        return StateOf("broken" if loss.ends_nonfinite else "cannot_tell")
    if loss.ends_nonfinite:
        return StateOf("broken")
    if _diverged(features):
        return StateOf("diverged")
    swing, low = features.swing.value, _low(features)
    if math.isnan(swing):
        # As in runs of earlier versions: a loss that fell because the model learned a constant, or where the padding
        # is, cannot be told from one that learned the task.
        swing = IGNORES_INPUT
    if swing >= USES_INPUT and low:
        still_falls = loss.falling and loss.end > AT_FLOOR * loss.start
        return StateOf("learning" if still_falls else "learned")
    if loss.falling and _came_down(features, FALLS):
        return StateOf("learning")
    still = swing < IGNORES_INPUT or not _came_down(features, UNMOVED)
    if still and not features.metric_gain > METRIC_GAINED:
        return StateOf("stuck")
    return StateOf("learned", at_rest=True)


def _low(features: Features) -> bool:
    """Whether little of the loss is left; never of a loss that began below zero, where nothing is the floor."""
    return features.reference_loss > 0 and features.loss.end < LEARNED * features.reference_loss


def _came_down(features: Features, share: float) -> bool:
    """Whether the loss ended below the reference by more than this share of it."""
    reference = features.reference_loss
    return features.loss.end < reference - share * abs(reference)


def _diverged(features: Features) -> bool:
    """The loss ends above where it began; or the model had learned something and lost it."""
    loss = features.loss
    rise, size = loss.end - loss.start, abs(loss.start)
    rose = rise > FAR_WORSE * size or (rise > WORSE * size and rise > 3 * loss.start_noise)
    lost = (
        loss.end - loss.best > LOST_AGAIN * abs(loss.best)
        and loss.end - loss.best > 5 * loss.noise / math.sqrt(loss.window)
        and loss.end > AT_FLOOR * loss.start
    )
    return rose or lost
