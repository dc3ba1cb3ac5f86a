"""Screen N1 of one backward pass: which past inputs would lower the loss?

A score test on recorded data: the direct gradients e against functions of past inputs, given the present
(`rnndiag.recorder.need.screen`). Nothing is fitted and the model is not run. U and its standard deviation are stored by
lag and kind; `rnndiag.stats.need.screen` pools them over recordings. It selects lags for `memory_need` to test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from rnndiag.engine.layer_run import LayerRun
from rnndiag.errors import NotSupported
from rnndiag.recorder.measures.measure import GroupCost, Measure, Subject, register_measure
from rnndiag.recorder.need.features import BAG, BILINEAR, LINEAR, Basis, Block, Rows
from rnndiag.recorder.need.layer_output import LayerPass
from rnndiag.recorder.need.output_loss import Sample
from rnndiag.recorder.need.screen import Screen
from rnndiag.store.measurement import Measurement
from rnndiag.store.quantities import NEED_SCREEN_KINDS

EVERY_LAG = 8
"""Every lag up to this one is screened; beyond, two per octave, and sums over whole octaves."""
FEWEST_SEQUENCES, FEWEST_ROWS = 4, 32
MOST_SEQUENCES, MOST_ROWS = 64, 512
"""Most sequences and rows screened in one recording."""


def need_screen(subject: Subject) -> Iterator[Measurement]:
    """U and its deviation by kind and lag: per layer; for a stack from its lowest input to its highest output."""
    if subject.extent.thrifty:
        subject.not_measured["need_screen"] = "left out, as the budget is short"
        return
    for source, run in _joined(subject):
        why = _unfit(subject, source, run)
        sample = None if why else _sample(source, run, subject.extent.seed)
        if sample is not None and int(sample.active.sum()) < FEWEST_ROWS:
            why = f"the loss reads fewer than {FEWEST_ROWS} of its outputs"
        if why or sample is None:
            subject.not_measured[f"need_screen of {run.name}"] = why
            continue
        lags = screened_lags(run.T)
        try:
            values = _scores(sample, lags)
        except NotSupported as limit:
            subject.not_measured[f"need_screen of {run.name}"] = limit.what
            continue
        labels = {"screen_lag": tuple(map(str, lags))}
        yield Measurement.of("need_screen", values, run.name, labels)


def _joined(subject: Subject) -> list[tuple[LayerRun, LayerRun]]:
    """Pairs of the runs with the inputs and the outputs of each recurrence; pieces that carry a state are joined."""
    ends = {stack[-1].name: stack[0] for stack in subject.stacks}
    inner = {run.name for stack in subject.stacks for run in stack[:-1]}
    chains: dict[str, list[tuple[LayerRun, LayerRun]]] = {}
    for run in subject.runs:
        if run.name in inner:
            continue
        before = run.tie.partition(":")[2]
        chain = chains.pop(before, [])
        if chain and (_sizes(chain[0][1]) != _sizes(run) or run.lengths is not None):
            chains[before], chain = chain, []
        chains[run.name] = [*chain, (ends.get(run.name, run), run)]
    return [
        (_end_to_end([a for a, _ in chain]), _end_to_end([b for _, b in chain]))
        for chain in chains.values()
    ]


def _sizes(run: LayerRun) -> tuple[int, ...]:
    """B, and the sizes of inputs and state parts: runs that differ in them (encoder and decoder) are not joined."""
    return (run.B, run.inputs.shape[-1], *(part.shape[-1] for part in run.states))


def _end_to_end(pieces: Sequence[LayerRun]) -> LayerRun:
    """Consecutive pieces as one run under the name of the first."""
    if len(pieces) == 1:
        return pieces[0]
    return replace(
        pieces[0],
        inputs=torch.cat([piece.inputs for piece in pieces]),
        states=tuple(map(torch.cat, zip(*(piece.states for piece in pieces), strict=True))),
        direct=tuple(map(torch.cat, zip(*(piece.direct for piece in pieces), strict=True))),
        open=next((piece.open for piece in pieces if piece.open), ""),
    )


def screened_lags(steps: int) -> list[int]:
    """Every lag up to 8, then 12, 16, 24, 32, ... below the number of steps."""
    lags = list(range(1, EVERY_LAG + 1))
    while lags[-1] < steps:
        lags += [lags[-1] * 3 // 2, lags[-1] * 2]
    return [lag for lag in lags if lag < steps]


def _unfit(subject: Subject, source: LayerRun, run: LayerRun) -> str:
    """Why a layer cannot be screened; empty if it can."""
    if run.open:
        return f"open: {run.open}"
    if run.reverse:
        return "it runs backwards in time"
    if run.name in subject.gathered:
        return "calls of one step each are taken together"
    if run.B < FEWEST_SEQUENCES or run.T < 2:
        return f"it needs {FEWEST_SEQUENCES} sequences of 2 steps"
    if not source.inputs.is_floating_point():
        return "its inputs are whole numbers"
    if not (subject.finite(run) and bool(source.inputs.isfinite().all())):
        return "its inputs, states or gradients are not finite"
    return ""


def _sample(source: LayerRun, run: LayerRun, seed: int) -> Sample:
    """The recorded pass as `memory_need` represents it: batch first, a random subset of outputs if there are many."""
    if run.B > MOST_SEQUENCES:
        picked = torch.linspace(0, run.B - 1, MOST_SEQUENCES).round().long()
        source, run = source.select(picked), run.select(picked)
    gradient = torch.cat(run.direct, -1).transpose(0, 1)
    mask = run.mask().transpose(0, 1)
    active = (gradient.abs().sum(-1) > 0) & mask
    count = int(active.sum())
    if count > MOST_ROWS:
        draw = torch.rand(count, generator=torch.Generator().manual_seed(seed))
        kept = torch.zeros(count, dtype=torch.bool)
        kept[draw.argsort()[:MOST_ROWS]] = True
        active = active.masked_scatter(active.clone(), kept.to(active.device))
    states = run.state_vector().transpose(0, 1)
    seen = LayerPass(source.inputs.transpose(0, 1), states, states, (), mask.sum(1), ())
    return Sample(0, None, seen, gradient, 0.0, active, torch.arange(run.B, device=run.device))


def _scores(sample: Sample, lags: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """(kind, lag, 2): U and its deviation; NaN where not screened or determined by the present."""
    rows = Rows(Basis.of([sample]), [sample])
    screen = Screen(rows, sample.gradient[sample.active], single=True)
    found = np.full((len(NEED_SCREEN_KINDS), len(lags), 2), np.nan)
    for kind, row in zip((LINEAR, BILINEAR, BAG), found, strict=True):
        for lag, cell in zip(lags, row, strict=True):
            octave = lag > 1 and lag & (lag - 1) == 0
            if kind == BAG and not octave:
                continue
            score = screen.score(Block(kind, lag, 2 * lag - 1 if kind == BAG else lag))
            if score is not None and score.deviation > 0:
                cell[:] = score.explained, score.deviation
    return found


NEED_SCREEN = register_measure(
    Measure("need_screen", GroupCost(steps=1.0, every=4, seconds=0.03), of_all=need_screen)
)
