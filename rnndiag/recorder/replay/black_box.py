"""The black box: records and explains steps with a non-finite loss or gradient, or a jump of the gradient norm.

It needs one light hook per call of a fused recurrent layer and one per returned tensor (see `light_hooks`). They keep
references and no copies and cost some tens of microseconds a step (`python benchmarks/overhead.py --hooks`). The step's
inputs and output gradients stay alive until the step has been judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rnndiag.recorder.capture import BackwardPass
from rnndiag.recorder.facts.history import History, Scalar, StepFacts, number
from rnndiag.recorder.facts.training_loop import TrainingLoop
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.replay.first_fault import first_fault, largest_contribution
from rnndiag.recorder.replay.kept_call import replay
from rnndiag.recorder.replay.light_hooks import LightHooks
from rnndiag.recorder.schedule.overhead import Overhead
from rnndiag.recorder.settings import Settings

GROUPS = ("contributions", "gates")
"""Groups of measures that are taken at an accident."""
MOST = 16
"""Most accidents recorded per fit."""
LEAST_DISTANCE = 20
"""Steps after an accident in which no further one is recorded, except a first NaN after a jump."""


@dataclass(frozen=True)
class Alarm:
    """A detected accident."""

    kind: str
    """loss | gradient (not finite) | jump."""
    step: int
    norm: float
    usual_norm: float
    loss: float

    @property
    def sentence(self) -> str:
        """The accident in one sentence."""
        if self.kind == "jump":
            return (
                f"The gradient norm jumped to {self.norm:.3g} at step {self.step}, "
                f"{self.norm / self.usual_norm:.0f} times its running median of {self.usual_norm:.3g}."
            )
        what = "loss" if self.kind == "loss" else "gradient norm"
        value = self.loss if self.kind == "loss" else self.norm
        return f"The {what} is {value} at step {self.step}."


class BlackBox:
    """Checks every step for accidents, and keeps the data needed to explain one. Inactive unless enabled."""

    def __init__(
        self,
        settings: Settings,
        loop: TrainingLoop,
        groups: Sequence[str],
        faults: Faults,
        overhead: Overhead,
    ) -> None:
        self._on, self._jump = settings.black_box, settings.jump
        self._loop = loop
        self._light_hooks = LightHooks(faults, overhead)
        self._faults = faults
        self._epoch = -1
        self._last: dict[bool, int] = {}
        """Whether numbers were finite -> the last step of such an accident."""
        self.count = 0
        self._next: dict[str, Any] | None = None
        self.groups = tuple(name for name in GROUPS if name in groups)
        """Groups of measures that are taken at an accident."""
        self.left_out = dict.fromkeys(set(groups) - set(self.groups), _ACCIDENT)

    def arm(self) -> None:
        """Start keeping data of the coming passes. Modules are searched once an epoch."""
        if not self._on:
            return
        if (epoch := self._loop.epoch) != self._epoch:
            self._epoch = epoch
            self._light_hooks.attach(self._loop.model)
        self._light_hooks.put_on()
        self._light_hooks.armed = True

    def disarm(self) -> None:
        """Drop the tensors kept for the step just judged."""
        if self._light_hooks.armed:
            self._light_hooks.armed = False
            self._light_hooks.forget()

    def take_off(self) -> None:
        """Remove the hooks until the next step that is checked."""
        self._light_hooks.take_off()

    def release(self) -> None:
        """Remove the hooks permanently."""
        self._light_hooks.release()

    def alarm(self, history: History, facts: StepFacts) -> Alarm | None:
        """An alarm if this step is an accident that should be recorded, else None."""
        if not self._on:
            return None
        found = history.judge(facts, self._jump)
        if found is None:
            return None
        if not self._records(facts.step, finite=found[0] == "jump"):
            return None
        return Alarm(found[0], facts.step, number(facts.norm), found[1], number(facts.loss))

    def loss_alarm(self, step: int, loss: Scalar | None, norm: Scalar | None) -> None:
        """Handle a non-finite loss with a finite gradient: the weights have changed already, so the next step is
        recorded."""
        if not self._on or loss is None or math.isfinite(loss) or not math.isfinite(number(norm)):
            return
        if not self._records(step, finite=False):
            return
        alarm = Alarm("loss", step, number(norm), math.nan, number(loss))
        self._next = _as_note(alarm, f"{alarm.sentence} Its gradient is finite. {_NEXT}")

    def _records(self, step: int, finite: bool) -> bool:
        """Whether to record an accident of this step: always the first non-finite one, never a jump shortly after."""
        first = not finite and False not in self._last
        before = self._last.values() if finite else [self._last.get(False, -LEAST_DISTANCE)]
        too_close = any(step - last < LEAST_DISTANCE for last in before)
        self._last[finite] = step
        records = first or (not too_close and self.count < MOST)
        self.count += records
        return records

    @property
    def waits(self) -> bool:
        """Whether the coming step is to be recorded."""
        return self._next is not None

    def wants_next(self) -> dict[str, Any] | None:
        """The note on an accident for which the coming step is recorded; returned once."""
        note, self._next = self._next, None
        return note

    def kept_passes(self) -> list[BackwardPass]:
        """The step's calls rerun, and proved by the true gradients if a single backward pass made those."""
        scaling = self._loop.scaling
        true = {}
        if scaling.accumulate == 1 and not self._loop.manual:
            named = self._loop.model.named_parameters()
            true = {name: p.grad for name, p in named if p.grad is not None}
        return replay(self._light_hooks.calls, true, self._faults, scaling.factor)

    def note_of(self, alarm: Alarm, passes: Sequence[BackwardPass]) -> dict[str, Any]:
        """What happened and where it began, for the recording's note `black_box`."""
        runs = [run for seen in passes for run in seen.layer_runs]
        where = largest_contribution(runs) if alarm.kind == "jump" else first_fault(runs)
        unseen = _UNSEEN if runs else f"{_NOT_KEPT} {_NEXT}"
        place = {} if where is None else where.as_json()
        sentence = f"{alarm.sentence} {where.sentence if where else unseen}"
        note = place | _as_note(alarm, sentence)
        if not runs:
            self._next = note
        return note


def _as_note(alarm: Alarm, sentence: str) -> dict[str, Any]:
    return {**asdict(alarm), "sentence": sentence}


_UNSEEN = "Nothing of it is to be seen in the recurrent layers that are kept: it is in another part of the model."
_NOT_KEPT = "Its recurrent layers are loops over time, which are not kept between recordings."
_NEXT = "The next step is recorded."
_ACCIDENT = "this step was recorded for its accident"
