"""`Context`: the input of every figure: the run, its findings, its layers in order, and a baseline run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from rnndiag.errors import RunUnreadable
from rnndiag.health.config import Config
from rnndiag.health.diagnosis.features import steps_needed
from rnndiag.health.diagnosis.finding import CHECK
from rnndiag.health.finding import Finding
from rnndiag.health.outcome import Verdict, leading, verdict
from rnndiag.stats.advice import Advice, advice
from rnndiag.stats.headline import run_reach
from rnndiag.stats.over_recordings import lengths_of, nonfinite_counts
from rnndiag.stats.reach import Decay, Reach, decay, reach
from rnndiag.stats.time_words import TimeWords
from rnndiag.store.measurement import Measurement, Series
from rnndiag.store.quantities import QUANTITIES, fits_registry
from rnndiag.store.reader import StoredRun
from rnndiag.store.stored import entry_name
from rnndiag.store.text import mapping

LN10 = math.log(10.0)
PATIENCE = 50
"""Number of recordings with only nan after which the search for one with numbers stops."""


@dataclass(frozen=True)
class Context:
    """One run with its findings, and the reductions that several figures need; each is computed once."""

    run: StoredRun
    findings: Sequence[Finding] = ()
    baseline: StoredRun | None = None
    config: Config = field(default_factory=Config)
    chosen: str = ""
    """The layer to show, if requested."""
    _seen: dict[tuple[str, str], Series | None] = field(default_factory=dict, compare=False)
    _reaches: dict[str, tuple[np.ndarray, list[Reach], list[Decay]]] = field(
        default_factory=dict, compare=False
    )

    _advices: dict[str, Advice | None] = field(default_factory=dict, compare=False)

    @cached_property
    def verdict(self) -> Verdict:
        """The heading."""
        return verdict(self.findings, self.run)

    def series(self, quantity: str, layer: str) -> Series | None:
        """One quantity of one layer over all recordings; None if it was not recorded."""
        key = quantity, layer
        if key not in self._seen:
            self._seen[key] = self.at(quantity, layer, None)
        return self._seen[key]

    def at(self, quantity: str, layer: str, steps: Sequence[int] | None) -> Series | None:
        """One quantity at chosen steps, for quantities that are too large to read as a whole; None: at all of them."""
        if (quantity, layer) not in self.run:
            return None
        try:
            found = self.run.find(quantity, layer, steps)
        except RunUnreadable:
            return None
        if found is None or not found.steps.size:
            return None
        return found if fits_registry(quantity, found.dims[1:], found.coordinates) else None

    def steps_of(self, quantity: str, layer: str) -> list[int]:
        """The steps at which a quantity was stored, in the first phase that has it. Reads no arrays."""
        name = entry_name(quantity, layer)
        for phase in self.run.phases:
            steps = [
                group[0].step
                for group in self.run.groups
                if group[0].phase == phase
                and any(name in self.run.collector.directory(place) for place in group)
            ]
            if steps:
                return steps
        return []

    def last(self, quantity: str, layer: str) -> Measurement | None:
        """The newest readable recording of one quantity, without padding; preferably one that is not all nan."""
        return self.newest(quantity, layer)[0]

    def step_of_last(self, quantity: str, layer: str) -> int | None:
        """The training step of `last`."""
        found, passed = self.newest(quantity, layer)
        steps = [step for step in self.steps_of(quantity, layer) if step not in passed]
        return int(steps[-1]) if found is not None and len(steps) else None

    def when(self, quantity: str, layer: str) -> str:
        """The recordings of a headline number as text: the judged ones with the number, else the last one, marked
        as old."""
        held, judged = self.steps_of(quantity, layer), set(self.run.judged().tolist())
        known = [step for step in held if step in judged]
        return span(known) if known else old(held[-1]) if held else ""

    def when_last(self, quantity: str, layer: str) -> str:
        """The step of `last` as text, marked if it is older than the judged recordings."""
        step = self.step_of_last(quantity, layer)
        if step is None:
            return ""
        return span([step]) if step in self.run.judged() else old(step)

    def newest(self, quantity: str, layer: str) -> tuple[Measurement | None, list[int]]:
        """As `last`, with the later steps that were skipped because all their values are nan."""
        passed: list[int] = []
        first: Measurement | None = None
        for step in reversed(self.steps_of(quantity, layer)):
            found = self.at(quantity, layer, [step])
            if found is None:
                continue
            newest = found.valid(found.steps.size - 1)
            if not np.isnan(newest.values).all():
                return newest, passed
            first = first or newest
            passed.append(step)
            if len(passed) == PATIENCE:
                break
        return first, passed

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """All layers, the shortest reach first; layers without a reach come last."""
        reaches = {layer: self.reach(layer) for layer in self.run.layers}

        def order(layer: str) -> tuple[bool, float]:
            found = reaches[layer]
            return found is None or math.isnan(found), math.inf if found is None else float(found)

        return tuple(sorted(reaches, key=order))

    @property
    def lead(self) -> str:
        """The layer of single-layer figures: that of the verdict, else the one with the shortest reach."""
        if self.chosen:
            return self.chosen
        beside = leading([one for one in self.findings if one.check != CHECK])
        for found in (self.verdict.finding, beside):  # a diagnosis may be of the whole model
            if found is not None and found.layer in self.run.layers:
                return found.layer
        return self.layers[0] if self.layers else ""

    def reach(self, layer: str) -> Reach | None:
        """Reach of one layer over the judged recordings; None if no credit was recorded."""
        if ("credit_profile", layer) not in self.run:
            return None
        try:
            return run_reach(self.run, layer=layer)
        except (RunUnreadable, ValueError):
            return None

    @cached_property
    def stacks(self) -> dict[str, tuple[str, ...]]:
        """Stack name -> its layers, for the stacks that have a credit profile of their own."""
        return {
            name: layers
            for name, layers in self.run.stacks.items()
            if ("credit_profile", name) in self.run
        }

    def advice(self, layer: str) -> Advice | None:
        """The recommended window of a layer, or of the stack that it is part of; None if no windows were measured."""
        if layer not in self._advices:
            try:
                self._advices[layer] = advice(self.run, layer)
            except RunUnreadable:
                self._advices[layer] = None
        return self._advices[layer]

    @property
    def needed_lag(self) -> int | None:
        """The lag that the task needs (`needs` in the configuration or the run); None: not given."""
        stated = mapping(self.run.provenance, "config").get("needs")
        return steps_needed(
            stated if self.config.needs is None else self.config.needs,
            TimeWords.of_provenance(self.run.provenance),
        )

    def time_steps(self, layer: str) -> int | None:
        """T: the longest sequence recorded for a layer, or for the layers of a stack."""
        one = self.stacks.get(layer, (layer,))[0]
        lengths = lengths_of(self.run, one, self.run.judged())
        known = [length for length in lengths if length is not None]
        return max(known, default=None)

    def profiles(self, layer: str) -> Series | None:
        """The credit profile of all recordings: natural logarithm, over lag and profile_stat."""
        return self.series("credit_profile", layer)

    def reaches(self, layer: str) -> tuple[np.ndarray, list[Reach], list[Decay]]:
        """The recorded steps, and the reach and decay at each."""
        if layer not in self._reaches:
            self._reaches[layer] = self._all_reaches(layer)
        return self._reaches[layer]

    def _all_reaches(self, layer: str) -> tuple[np.ndarray, list[Reach], list[Decay]]:
        series = self.profiles(layer)
        if series is None:
            return np.zeros(0), [], []
        values = series.sel(profile_stat="profile").values
        lengths = lengths_of(self.run, layer, series.steps)
        reached = [reach(row, 0.9, length) for row, length in zip(values, lengths, strict=True)]
        return series.steps, reached, [decay(row) for row in values]

    def not_finite(self, layer: str) -> set[int]:
        """Steps at which a state or an adjoint of a layer was not finite."""
        return {step for step, count in nonfinite_counts(self.run, layer).items() if count}

    def not_measured(self, *keys: str) -> str:
        """Why something was not measured, from the newest recording that gives a reason; empty if none does."""
        for outline in reversed(self.run.outlines):
            told = mapping(outline.notes, "not_measured")
            for key in keys:
                if key in told:
                    return str(told[key])
        return ""

    def nothing(self, quantity: str, layer: str = "") -> str:
        """The sentence shown instead of a figure whose numbers were not recorded."""
        if not len(self.run.steps):
            return "No recordings: training stopped before the first recording step."
        known = QUANTITIES.get(quantity)
        keys = [quantity, layer, known.group if known else ""]
        why = self.not_measured(*[key for key in keys if key])
        if why:
            return f"Not measured: {why.rstrip('.')}."
        return f"Not recorded in this run: {known.meaning if known else quantity}"


def span(steps: Sequence[int]) -> str:
    """step 499, or steps 320 to 499."""
    if min(steps) == max(steps):
        return f"step {steps[0]}"
    return f"steps {min(steps)} to {max(steps)}"


def old(step: int) -> str:
    """The mark for a number that is older than the judged recordings."""
    return f"step {step}, old"


def finite(values: np.ndarray) -> np.ndarray:
    """The finite entries as a flat array."""
    known: np.ndarray = values[np.isfinite(values)]
    return known
