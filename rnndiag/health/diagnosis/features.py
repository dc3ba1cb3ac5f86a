"""The features that a diagnosis uses, read once from a run or a recording."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rnndiag.health.diagnosis.layer_evidence import (
    NOTHING,
    Dated,
    LayerEvidence,
    dated_at,
    layer_evidence,
)
from rnndiag.health.diagnosis.loss_curve import LossCurve, loss_curve
from rnndiag.health.diagnosis.recorded import Recorded
from rnndiag.health.diagnosis.training_facts import (
    FirstFault,
    Jump,
    Setup,
    StepSizes,
    first_fault,
    jumps,
    setup_of,
    step_sizes,
    structural_findings,
    trust,
)
from rnndiag.stats.need.memory_need import MemoryNeed
from rnndiag.stats.time_words import TimeWords
from rnndiag.store.layer_names import recurrence
from rnndiag.store.text import mapping

LATE = 0.6
"""The state is judged from recordings after this share of the fit."""
GROWS = math.log(10.0)
"""States explode if credit at the last lag over that at lag 0 exceeds this."""
EARLY_STEPS = 16
"""Number of first steps whose size can show a learning rate that is too high."""


@dataclass(frozen=True)
class Features:
    """Features of one run. Missing numbers are NaN, for which every comparison in a rule is false."""

    loss: LossCurve
    setup: Setup
    sizes: StepSizes
    layers: tuple[LayerEvidence, ...]
    stacks: Mapping[str, tuple[str, ...]]
    stack_credit: Mapping[str, LayerEvidence]
    """Stack name -> credit measured over all its layers together."""
    fault: FirstFault | None
    jumps: tuple[Jump, ...]
    structure: Mapping[str, tuple[str, str]]
    untrusted: tuple[int, ...]
    recordings: tuple[int, ...]
    """Training steps of the recordings."""
    chance: float | None
    needs: int | None
    needs_measured: tuple[MemoryNeed, ...]
    window_in_use: Dated
    metric: tuple[Dated, ...]

    @property
    def reference_loss(self) -> float:
        """The loss of a model that has learned nothing: of the first steps, or of a constant answer if given.

        A net whose states explode at step 0 begins far above a constant's loss and falls to it in a few steps without
        learning: the loss after that fall counts.
        """
        known = [self.loss.start, self.loss.first, self.chance or math.inf]
        if any(self.far_credit(layer, 0).above(GROWS) for layer in self.layers):
            known.append(self.loss.early)
        return (
            min(value for value in known if not math.isnan(value)) if self.loss.count else math.nan
        )

    @property
    def explodes_throughout(self) -> bool:
        """Whether credit grows more than tenfold in the first and in the last recording.

        The loss of such a net falls from a height that says nothing, and swing, which is first order, is large.
        """
        return any(
            self.far_credit(layer, 0).above(GROWS) and self.far_credit(layer, 1).above(GROWS)
            for layer in self.layers
        )

    @property
    def metric_gain(self) -> float:
        """Progress of a monitored share, such as an accuracy, towards 1, as a share of the way; NaN for other metrics.

        A monitored loss adds nothing to the recorded loss.
        """
        known = [one.value for one in self.metric if math.isfinite(one.value)]
        if (
            self.setup.monitored_mode != "max"
            or not known
            or not 0 <= min(known) <= max(known) <= 1
        ):
            return math.nan
        return (known[-1] - known[0]) / (1 - known[0]) if known[0] < 1 else math.nan

    @cached_property
    def swing(self) -> Dated:
        """Swing of the top layers relative to the final loss: median of the last three recordings, late ones only."""
        tops = self._tops
        steps = sorted({step for layer in tops for step in layer.swing})
        late = [step for step in steps if step >= LATE * self.loss.last_step][-3:]
        values = [max(layer.swing.get(step, math.nan) for layer in tops) for step in late]
        known = [value for value in values if math.isfinite(value)]
        if not known:
            return NOTHING
        scale = max(abs(self.loss.end), 1e-9)
        return Dated(float(np.median(known)) / scale, late[-1])

    @property
    def _tops(self) -> tuple[LayerEvidence, ...]:
        """Layers whose output is not the input of another layer of the same stack or module."""
        below: set[str] = set()
        by_module: dict[str, list[tuple[int, str]]] = {}
        for layer in self.layers:
            found = re.fullmatch(r"(.*)\.l(\d+)(?:\.reverse)?", layer.name)
            if found:
                by_module.setdefault(found[1], []).append((int(found[2]), layer.name))
        for own in by_module.values():
            highest = max(number for number, _ in own)
            below |= {name for number, name in own if number < highest}
        for names in self.stacks.values():
            below |= set(names[:-1])
        return tuple(layer for layer in self.layers if layer.name not in below) or self.layers

    @cached_property
    def largest_step(self) -> tuple[Dated, str]:
        """The largest |Δθ| / |θ| up to the first recording after the loss was at its best, and its layer.

        The first steps alone would not do: under a warm-up they are tiny.
        """
        best = self.loss.best_step
        after = min((step for step in self.recordings if step >= best), default=best)
        return self.sizes.largest(max(EARLY_STEPS, after))

    @cached_property
    def largest_growth(self) -> Dated:
        """The largest |θ| / |θ_0| of any layer at any recording."""
        found = [g for layer in self.layers for g in layer.growth if math.isfinite(g.value)]
        return max(found, key=lambda one: one.value, default=NOTHING)

    def far_credit(self, layer: LayerEvidence, which: int) -> Dated:
        """ln of the credit at the lag of interest: `needs` if given, else the last lag.

        For a layer of a stack the credit of the whole stack is used: a lower layer may forget what an upper one keeps.
        """
        whole = next(
            (one for name, one in self.stack_credit.items() if layer.name in self.stacks[name]),
            layer,
        )
        credit = whole.credit[which] or layer.credit[which]
        if credit is None:
            return NOTHING
        return credit.far if self.needs is None else credit.at(self.needs)

    @property
    def goal(self) -> int:
        """Number of steps that a memory should span: `needs` if given, else the longest sequence."""
        return self.needs or max((layer.length for layer in self.layers), default=0)


def _losses(recorded: Recorded) -> tuple[np.ndarray, np.ndarray]:
    """Training steps and losses; empty if the training step returned no loss, as under manual optimization."""
    steps, losses = recorded.history("history_loss")
    _, norms = recorded.history("history_gradient_norm")
    if losses.size and np.isnan(losses).all() and np.isfinite(norms).all():
        return steps[:0], losses[:0]
    return steps, losses


def _curve(recorded: Recorded) -> LossCurve:
    """The loss curve. The history may miss the steps after its last loss, so the number of steps comes from the fit."""
    steps, losses = _losses(recorded)
    curve = loss_curve(steps, losses)
    made = recorded.steps_made - int(steps[0]) if len(steps) else 0
    return replace(curve, steps=max(curve.steps, made))


def features_of(
    recorded: Recorded, chance: float | None = None, needs: int | str | None = None
) -> Features:
    """Extract all features; `chance` and `needs` override the values stored in the run."""
    config = mapping(recorded.provenance, "config")
    curve = _curve(recorded)
    setup = setup_of(recorded)
    cells = {
        recurrence(str(name)): str(mapping(facts).get("cell", ""))
        for name, facts in mapping(recorded.provenance, "model", "layers").items()
    }
    of_stack = {layer: name for name, layers in recorded.stacks.items() for layer in layers}
    layers = tuple(
        layer_evidence(recorded, name, cells.get(name, ""), of_stack.get(name))
        for name in recorded.layers
    )
    return Features(
        loss=curve,
        setup=setup,
        sizes=step_sizes(recorded, {layer.name: layer.update for layer in layers}),
        layers=layers,
        stacks=recorded.stacks,
        stack_credit={
            name: layer_evidence(recorded, name, "", None)
            for name in recorded.stacks
            if name in recorded.names
        },
        fault=first_fault(recorded, curve.first_nonfinite, setup),
        jumps=jumps(recorded),
        structure=structural_findings(recorded),
        untrusted=trust(recorded),
        recordings=tuple(one.step for one in recorded.outlines),
        chance=_number(config.get("chance") if chance is None else chance),
        needs=steps_needed(
            config.get("needs") if needs is None else needs,
            TimeWords.of_provenance(recorded.provenance),
        ),
        needs_measured=recorded.needs,
        window_in_use=dated_at(recorded.rows("window_in_use"), -1),
        metric=tuple(Dated(r.number, r.step) for r in recorded.rows("monitored_metric")),
    )


def steps_needed(needs: object, words: TimeWords) -> int | None:
    """Convert `needs` to a whole number of recurrence steps.

    It is a number of steps, or text with a duration in the run's time unit such as "6 h". None if it is neither.
    """
    if isinstance(needs, str):
        found = re.fullmatch(r"\s*([\d.]+)\s*(.*?)\s*", needs)
        if found is None:
            return None
        value, unit = float(found[1]), found[2]
        if words.unit is not None and unit == words.unit[0]:
            return math.ceil(value / (words.unit[1] * words.stride))
        return math.ceil(value) if unit in ("", "steps", "step") else None
    return math.ceil(needs) if isinstance(needs, int | float) and needs >= 1 else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
