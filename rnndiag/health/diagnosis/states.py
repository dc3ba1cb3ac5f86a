"""Whether the model is stuck, learning or has learned, by its losses and by swing; never by the size of a gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rnndiag.health.diagnosis.diagnosis import State
from rnndiag.health.diagnosis.features import Features

FEWEST_STEPS = 20
"""With fewer steps the state is `cannot_tell`."""
IGNORES_INPUT = 0.12
"""With a swing below this share of the loss, the model's answer is taken to be independent of its input."""
USES_INPUT = 0.35
"""With a swing above this share of the loss, the model uses its input."""
LEARNED = 0.25
"""A final loss below this share of the first is low; a model that can be half right without memory stays above."""
AT_FLOOR = 0.1
"""A model whose final loss is below this share of the first has learned, even if it still improves."""
METRIC_GAINED = 0.5
"""A monitored accuracy that went this share of the way to 1 contradicts a loss that does not fall."""
UNMOVED = 0.05
"""A final loss less than this share below the reference has not moved..."""
FALLS = 0.02
"""... and a falling one must be at least this share below it: else it may only be back where it began."""
WORSE = 0.3
"""A final loss this share above the first has risen, if that is more than noise..."""
FAR_WORSE = 2.0
"""... and if it is this share above, in any case: the noise at the start may be the rise itself."""
LOST_AGAIN = 0.5


@dataclass(frozen=True)
class StateOf:
    """The state judged by the losses and by swing alone; the rules for causes may refine it."""

    state: State
    at_rest: bool = False
    """Whether the loss has come to rest above zero while the model uses its input in part."""


def state_of(features: Features) -> StateOf:
    """The state by the first criterion that applies."""
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
    if swing >= USES_INPUT and low and not features.explodes_throughout:
        still_falls = loss.falling and loss.end > AT_FLOOR * loss.start
        return StateOf("learning" if still_falls else "learned")
    if loss.falling and _fell_by(features, FALLS):
        return StateOf("learning")
    still = swing < IGNORES_INPUT or not _fell_by(features, UNMOVED)
    if still and not features.metric_gain > METRIC_GAINED:
        return StateOf("stuck")
    return StateOf("learned", at_rest=True)


def _low(features: Features) -> bool:
    """Whether the final loss is low; False for a loss that started below zero, which has no floor at zero."""
    return features.reference_loss > 0 and features.loss.end < LEARNED * features.reference_loss


def _fell_by(features: Features, share: float) -> bool:
    """Whether the final loss is below the reference by more than this share of it."""
    reference = features.reference_loss
    return features.loss.end < reference - share * abs(reference)


def _diverged(features: Features) -> bool:
    """Whether the loss ends above its start, or the model had learned something and lost it."""
    loss = features.loss
    rise, size = loss.end - loss.start, abs(loss.start)
    rose = rise > FAR_WORSE * size or (rise > WORSE * size and rise > 3 * loss.start_noise)
    lost = (
        loss.end - loss.best > LOST_AGAIN * abs(loss.best)
        and loss.end - loss.best > 5 * loss.noise / math.sqrt(loss.window)
        and loss.end > AT_FLOOR * loss.start
    )
    return rose or lost
