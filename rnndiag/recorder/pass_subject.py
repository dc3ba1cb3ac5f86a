"""Converts backward passes into subjects of measures, for callback, recorder, black box and probe alike."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.capture import BackwardPass, runs_beside_loops
from rnndiag.recorder.capture.gathered import gathered
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.measures import Extent, Subject, chosen_measures, take
from rnndiag.recorder.output.pending_recording import BACKWARDS, Pending, renamed
from rnndiag.store.recording import Recording


def subject_of(
    pending: Pending, seen: BackwardPass, extent: Extent, known: Collection[str] = ()
) -> Subject | None:
    """What to measure of a backward pass; facts known without measuring are added to the recording.

    Args:
        pending: The recording. Its passes through each layer are counted; those beyond `BACKWARDS` are not measured.
        seen: The backward pass.
        extent: Limits on the costly measures.
        known: Layers and loops that another recording of the batch has already.

    Returns:
        The subject; None where nothing is left to measure.
    """
    if reasons := {**seen.cut, **seen.missed, **seen.unseen}:
        pending.facts.setdefault("not_measured", {}).update(reasons)
    if (samples := seen.samples).said:
        key = "samples" if samples.independent else "noise"
        pending.facts.setdefault("not_measured", {})[key] = samples.said
    if seen.resets:
        pending.facts.setdefault("resets", {}).update(seen.resets)
    cut = seen.cut
    kept, pieces = runs_beside_loops(seen)
    together, sampled = gathered(kept, cut)
    # one-step runs whose state was passed on in an unknown way: they would seem to have no lags
    together = tuple(
        replace(run, open=cut[name], loop=name)
        if (name := run.name.partition("#")[0]) in cut
        else run
        for run in together
    )
    loops = replace(seen.loops, open={**seen.loops.open, **cut})
    loops = loops.without({*known} & {*_names(seen)})
    runs = _named(pending, together, known)
    if not runs and not loops.tells:
        return None
    used = {
        run.name: one
        for run in runs
        if (one := seen.estimators.get(run.name.partition("@")[0])) is not None
    }
    lengths = (
        *(min(run.T, getattr(used.get(run.name), "back", run.T)) for run in runs),
        *(found.T for found in loops.measured),
    )
    pending.window = max((pending.window, *lengths))
    if used:
        labels = {name: one.label for name, one in used.items()}
        pending.facts["trained_with"] = {**pending.facts.get("trained_with", {}), **labels}
    return Subject(
        runs,
        loops=loops,
        scale=seen.scale,
        for_proof=pieces,
        made={name: adj for name, adj in seen.adjoints.items() if name not in sampled},
        estimators=used,
        gathered=frozenset(sampled),
        sampling=sampled,
        dtype=seen.dtype,
        extent=extent,
    )


def names_of(pending: Pending, seen: BackwardPass) -> set[str]:
    """Names of the layers recorded so far, and of the loops of this pass."""
    return {*pending.layers, *_names(seen)}


def _names(seen: BackwardPass) -> set[str]:
    return {found.name for found in seen.loops.measured} | set(seen.loops.open)


def _named(
    pending: Pending, runs: Sequence[LayerRun], known: Collection[str]
) -> tuple[LayerRun, ...]:
    """Runs that are not recorded yet, at most BACKWARDS per layer; the second one of a layer is named `rnn.l0@2`."""
    kept = []
    for run in runs:
        if run.name in known:
            continue
        number = pending.layers[run.name] = pending.layers.get(run.name, 0) + 1
        if number <= BACKWARDS:
            kept.append(renamed(run, number))
    return tuple(kept)


def record_passes(
    passes: Sequence[BackwardPass],
    measures: Sequence[str] | None = None,
    step: int = 0,
    extent: Extent | None = None,
) -> Recording:
    """The recording of these passes in the form that the callback stores. Errors are raised.

    Args:
        passes: Backward passes of one step.
        measures: Groups to measure; None: all.
        step: The training step that the recording is labelled with.
        extent: How much the costly measures may look at.
    """
    faults = Faults(strict=True)
    groups = chosen_measures(measures)
    pending = Pending(step, groups)
    for seen in passes:
        subject = subject_of(pending, seen, extent or Extent())
        if subject is not None:
            pending.taken.append(take(subject, groups, faults))
    return pending.recording(0, (), [])
