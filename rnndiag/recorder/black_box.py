"""The black box: a step whose loss or gradient is not finite, or whose norm jumps, is recorded and explained.

What arms it: the hooks of the capture are on at every step. They keep references and no copies, so they cost
microseconds a step, and the step's inputs and outputs stay alive until the step has been judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.first_fault import first_fault, largest_contribution
from rnndiag.recorder.history import History, StepFacts

MOST = 16
"""So many accidents of a fit are recorded."""
QUIET = 20
"""After an accident, so many steps pass before the next one is recorded."""


@dataclass(frozen=True)
class Alarm:
    """What was noticed."""

    kind: str
    """loss | gradient (not finite) | jump."""
    step: int
    norm: float
    usual_norm: float
    loss: float

    @property
    def sentence(self) -> str:
        """What is so."""
        if self.kind == "jump":
            return (
                f"The gradient norm jumped to {self.norm:.3g} at step {self.step}, "
                f"{self.norm / self.usual_norm:.0f} times its running median of {self.usual_norm:.3g}."
            )
        what = "loss" if self.kind == "loss" else "gradient norm"
        value = self.loss if self.kind == "loss" else self.norm
        return f"The {what} is {value} at step {self.step}."


@dataclass
class BlackBox:
    """Judges every step."""

    jump: float
    count: int = 0
    _last: int | None = None

    def alarm(self, history: History, facts: StepFacts) -> Alarm | None:
        """An alarm for this step, unless the last one was only just now."""
        found = history.judge(facts, self.jump)
        if found is None:
            return None
        recent = self._last is not None and facts.step - self._last < QUIET
        self._last = facts.step
        if recent or self.count >= MOST:
            return None
        self.count += 1
        return Alarm(found[0], facts.step, float(facts.norm), found[1], float(facts.loss))

    def story(self, alarm: Alarm, runs: Sequence[LayerRun]) -> dict[str, Any]:
        """What happened and where it began, as the recording's note `black_box`."""
        where = largest_contribution(runs) if alarm.kind == "jump" else first_fault(runs)
        sentence = " ".join(filter(None, (alarm.sentence, where.sentence if where else _UNSEEN)))
        place = {} if where is None else where.as_json()
        return {
            "kind": alarm.kind,
            "step": alarm.step,
            "norm": alarm.norm,
            "usual_norm": alarm.usual_norm,
            "loss": alarm.loss,
            **place,
            "sentence": sentence,
        }


_UNSEEN = "Nothing of it is to be seen in the recurrent layers: it is in another part of the model."
