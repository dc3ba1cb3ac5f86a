"""The form of a measure: one group of quantities of a backward pass, as one registry entry."""

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
    """The expected cost of a group of measures, and how often it should run."""

    steps: float
    """Cost in plain training steps, used until it has been timed; `seconds` if that is more."""
    every: int = 1
    """Without a budget, the group runs on every `every`-th recording."""
    seconds: float = 0.0
    ends: bool = False
    """Within a budget, measure in the first and last recordings only, as no diagnosis uses it."""


@dataclass(frozen=True)
class Extent:
    """Limits on the costly measures."""

    samples: int | None = 8
    """Number of sequences of the batch; None: all."""
    sweep_steps: float = 6.0
    """Cost limit of a lag sweep in plain training steps, from which its sampling follows."""
    seconds: float = 0.3
    """Time limit for the Jacobian products of one layer, from which their sampling follows."""
    max_memory: float | None = None
    """Most bytes used beyond those freed by the backward pass; None: see `measures.memory`."""
    untimed: bool = False
    """Whether no training step has been timed yet under a budget: optional groups then take about a second."""
    thrifty: bool = False
    """Whether to skip optional parts because the budget is short."""
    seed: int = 0


@dataclass
class Subject:
    """The data of one backward pass, and intermediate results shared by its measures."""

    runs: tuple[LayerRun, ...]
    loops: Loops = field(default_factory=Loops)
    """Loops measured on the graph, and open loops."""
    scale: float = 1.0
    """The loss scale, which measurements on the graph still contain."""
    for_proof: tuple[LayerRun, ...] = ()
    """Further runs that share parameters: pieces of loops that were measured on the graph."""
    dtype: torch.dtype | None = None
    """The precision of the model; None: that of the runs."""
    made: Mapping[str, Adjoints] = field(default_factory=dict)
    """Layer run -> adjoints computed earlier."""
    outside: Mapping[str, str] = field(default_factory=dict)
    """Parameter -> why its gradient does not come from the recurrent calls alone."""
    estimators: Mapping[str, Estimator] = field(default_factory=dict)
    """Run -> the estimator that it was trained with, if not the full gradient."""
    gathered: frozenset[str] = frozenset()
    """Runs whose batch dim joins several calls, so that its entries are not sequences."""
    words: TimeWords = field(default_factory=TimeWords)
    """The user's unit of a time step, if given."""
    extent: Extent = field(default_factory=Extent)
    sampling: dict[str, str] = field(default_factory=dict)
    """Layer -> what the costly measures were computed on, in words."""
    not_measured: dict[str, str] = field(default_factory=dict)
    """Group or layer -> why it was not measured."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Notes of the measures, stored with the recording as JSON."""

    @cached_property
    def analyses(self) -> tuple[Analysis, ...]:
        """Adjoints and contribution norms of every run, computed once."""
        found = (self.made.get(run.name) or adjoints(run) for run in self.runs)
        return tuple((adj, contribution_norms(adj)) for adj in found)

    def made_already(self, run: LayerRun) -> Adjoints | None:
        """The adjoints of a run if another measure computed them without an error, else None."""
        return next((adj for adj in (*self.held, *self.made.values()) if adj.run is run), None)

    @property
    def held(self) -> tuple[Adjoints, ...]:
        """The adjoints that are kept until all measures are done; empty before the first measure has asked for them."""
        analyses: tuple[Analysis, ...] = self.__dict__.get("analyses", ())
        return tuple(adj for adj, _ in analyses)

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
        """The run restricted to evenly spread sequences, as many as allowed; noted in `sampling`."""
        count = self.extent.samples
        if count is None or count >= run.B:
            return run
        picked = torch.linspace(0, run.B - 1, count).round().long()
        self.note_sampled(run.name, f"gates: {count} of {run.B} sequences")
        return run.select(picked)

    def within_memory(
        self, what: str, times: float, runs: tuple[LayerRun, ...]
    ) -> tuple[LayerRun, ...]:
        """The runs restricted to as many evenly spread sequences as fit into memory; noted in `sampling` if not
        all.

        Args:
            what: The measure, for messages.
            times: What it takes of all sequences, over what autograd kept for the layers.
            runs: Layers of one batch.

        Raises:
            NotSupported: Not even one sequence fits.
        """
        batch = runs[0].B
        limit = allowed(self.runs, self.extent.max_memory, self.held)
        count = sequences_that_fit(what, times, runs, limit, batch)
        if count == batch:
            return runs
        for run in runs:
            self.note_sampled(run.name, f"{what}: {count} of {batch} sequences, for want of memory")
        picked = torch.linspace(0, batch - 1, count).round().long()
        return tuple(run.select(picked) for run in runs)

    def note_sampled(self, layer: str, words: str) -> None:
        """Note what a measure was computed on, if that is not everything."""
        before = self.sampling.get(layer)
        self.sampling[layer] = words if before is None else f"{before}; {words}"

    def finite(self, run: LayerRun) -> bool:
        """Whether all inputs, states and direct gradients of a run are finite."""
        parts = (run.inputs, *run.states, *run.direct)
        return all(bool(part.isfinite().all()) for part in parts)


@dataclass(frozen=True)
class Measure:
    """One group: its cost, and the function that computes it for each layer run or for all together."""

    name: str
    cost: GroupCost
    of_layer: Callable[[Subject, LayerRun], Iterable[Measurement]] | None = None
    of_all: Callable[[Subject], Iterable[Measurement]] | None = None
    needs_finite: bool = False
    """Whether runs with non-finite numbers are skipped, with a note."""


MEASURES: dict[str, Measure] = {}


def register_measure(measure: Measure) -> Measure:
    """Add one group; raises if the name is registered already."""
    if measure.name in MEASURES:
        raise ValueError(f"measure {measure.name!r} is registered twice")
    MEASURES[measure.name] = measure
    return measure


def chosen_measures(names: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the groups to measure, in the registry's order; None: all groups."""
    if names is None:
        return tuple(MEASURES)
    unknown = [name for name in names if name not in MEASURES]
    if unknown:
        raise BadArgument(
            f"There is no measure {', '.join(map(repr, unknown))}.",
            f"Choose from: {', '.join(MEASURES)}.",
        )
    return tuple(name for name in MEASURES if name in names)
