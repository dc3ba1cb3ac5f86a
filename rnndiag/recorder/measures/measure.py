"""A measure: one group of quantities, taken from the layer runs of one backward pass, as one entry of a registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from rnndiag.engine.adjoints import Adjoints, adjoints
from rnndiag.engine.contributions import ContributionNorms, contribution_norms
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.proof import Proof, prove
from rnndiag.engine.truncation.chains.stack import recurrences
from rnndiag.engine.truncation.estimators.estimator import Estimator
from rnndiag.errors import BadArgument
from rnndiag.recorder.capture.loops import Loops
from rnndiag.recorder.measures.memory import allowed, sequences_that_fit
from rnndiag.stats.time_words import TimeWords
from rnndiag.store.measurement import Measurement

Analysis = tuple[Adjoints, Mapping[str, ContributionNorms]]


@dataclass(frozen=True)
class GroupCost:
    """What is known of a group of measures before it has run: its price and how often it should run."""

    steps: float
    """Its cost in plain training steps, until it has been timed; `seconds` if those are more."""
    every: int = 1
    """It runs on every so-many-th recording where there is no budget to keep."""
    seconds: float = 0.0
    ends: bool = False
    """Within a budget it is measured in the first and in the last recording only, as no diagnosis rests on it."""


@dataclass(frozen=True)
class Extent:
    """How much the costly measures may look at."""

    samples: int | None = 8
    """Sequences of the batch; None: all."""
    sweep_steps: float = 6.0
    """Price of a lag sweep in plain training steps, which its sampling is chosen by."""
    seconds: float = 0.3
    """About how long the Jacobian products of one layer may take; their sampling is chosen by it."""
    max_memory: float | None = None
    """Bytes that they may take beyond what the backward pass has freed; None: see `measures.memory`."""
    thrifty: bool = False
    """Leave out what can be done without, as the budget is short."""
    seed: int = 0


@dataclass
class Subject:
    """What one backward pass left behind, and what the measures share of it."""

    runs: tuple[LayerRun, ...]
    loops: Loops = field(default_factory=Loops)
    """What was measured on the graph, and what is open."""
    scale: float = 1.0
    """The loss scale, which is still in what was measured on the graph."""
    for_proof: tuple[LayerRun, ...] = ()
    """Further runs that share parameters: pieces of loops that were measured on the graph."""
    dtype: torch.dtype | None = None
    """The precision that the model ran in; None: that of the runs."""
    made: Mapping[str, Adjoints] = field(default_factory=dict)
    """Adjoints that exist already, by layer run."""
    outside: Mapping[str, str] = field(default_factory=dict)
    """Parameter -> why its gradient does not come from the recurrent calls alone."""
    estimators: Mapping[str, Estimator] = field(default_factory=dict)
    """Run -> the estimator that it was trained with, where that was not the full gradient."""
    gathered: frozenset[str] = frozenset()
    """Runs whose batch holds several calls, so that its entries are no sequences."""
    words: TimeWords = field(default_factory=TimeWords)
    """What a time step is, where a person said so."""
    extent: Extent = field(default_factory=Extent)
    sampling: dict[str, str] = field(default_factory=dict)
    """Layer -> what the costly measures looked at, in words."""
    not_measured: dict[str, str] = field(default_factory=dict)
    """Group or layer -> why it is not measured."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Notes of the measures, stored with the recording as JSON."""

    @cached_property
    def analyses(self) -> tuple[Analysis, ...]:
        """Adjoints and contribution norms of every run, made once."""
        found = (self.made.get(run.name) or adjoints(run) for run in self.runs)
        return tuple((adj, contribution_norms(adj)) for adj in found)

    def made_already(self, run: LayerRun) -> Adjoints | None:
        """The adjoints of a run where some other measure has needed them; None: not yet, or not without a fault."""
        analyses: tuple[Analysis, ...] = self.__dict__.get("analyses", ())
        known = (*(adj for adj, _ in analyses), *self.made.values())
        return next((adj for adj in known if adj.run is run), None)

    @cached_property
    def proof(self) -> Proof:
        """The three proofs over all runs."""
        more = [(adj, contribution_norms(adj)) for adj in map(adjoints, self.for_proof)]
        return prove(
            (*self.runs, *self.for_proof),
            (*self.analyses, *more),
            dtype=self.dtype,
            outside=self.outside,
            seed=self.extent.seed,
        )

    @cached_property
    def stacks(self) -> tuple[tuple[LayerRun, ...], ...]:
        """Runs that are the layers of one one-directional stack, lowest first."""
        return tuple(found for found in recurrences(self.runs) if len(found) > 1)

    def sampled(self, run: LayerRun) -> LayerRun:
        """The run of evenly spread sequences, as many as the costly measures may look at; said in `sampling`."""
        count = self.extent.samples
        if count is None or count >= run.B:
            return run
        picked = torch.linspace(0, run.B - 1, count).round().long()
        self.say_sampled(run.name, f"gates: {count} of {run.B} sequences")
        return run.select(picked)

    def within_memory(
        self, what: str, times: float, runs: tuple[LayerRun, ...]
    ) -> tuple[LayerRun, ...]:
        """The runs of as many evenly spread sequences as fit into memory; fewer than all are said in `sampling`.

        Args:
            what: The measure, for messages.
            times: What it takes of all sequences, over what autograd kept for the layers.
            runs: Layers of one batch.

        Raises:
            NotSupported: Not even one sequence fits.
        """
        batch = runs[0].B
        limit = allowed(self.runs, self.extent.max_memory)
        count = sequences_that_fit(what, times, runs, limit, batch)
        if count == batch:
            return runs
        for run in runs:
            self.say_sampled(run.name, f"{what}: {count} of {batch} sequences, for want of memory")
        picked = torch.linspace(0, batch - 1, count).round().long()
        return tuple(run.select(picked) for run in runs)

    def say_sampled(self, layer: str, words: str) -> None:
        """Note what a measure looked at, where that is not everything."""
        before = self.sampling.get(layer)
        self.sampling[layer] = words if before is None else f"{before}; {words}"

    def finite(self, run: LayerRun) -> bool:
        """Whether all inputs, states and direct gradients of a run are finite."""
        parts = (run.inputs, *run.states, *run.direct)
        return all(bool(part.isfinite().all()) for part in parts)


@dataclass(frozen=True)
class Measure:
    """One group: its price and how it is taken, of each layer run apart or of all together."""

    name: str
    cost: GroupCost
    of_layer: Callable[[Subject, LayerRun], Iterable[Measurement]] | None = None
    of_all: Callable[[Subject], Iterable[Measurement]] | None = None
    needs_finite: bool = False
    """Runs with numbers that are not finite are left out, and said to be."""


MEASURES: dict[str, Measure] = {}


def register_measure(measure: Measure) -> Measure:
    """Add one group; a second one of the same name is a mistake of the programmer."""
    if measure.name in MEASURES:
        raise ValueError(f"measure {measure.name!r} is registered twice")
    MEASURES[measure.name] = measure
    return measure


def chosen_measures(names: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the groups to take, in the registry's order; None: all."""
    if names is None:
        return tuple(MEASURES)
    unknown = [name for name in names if name not in MEASURES]
    if unknown:
        raise BadArgument(
            f"There is no measure {', '.join(map(repr, unknown))}.",
            f"Choose from: {', '.join(MEASURES)}.",
        )
    return tuple(name for name in MEASURES if name in names)
