"""What is meant by a quantity, a layer, steps, a rank and a phase; and a clear word where a run has no such thing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from rnndiag.errors import BadArgument, RunUnreadable
from rnndiag.run.measurement import Series
from rnndiag.run.text import meant

if TYPE_CHECKING:
    from rnndiag.run.run import Run

Steps = Iterable[int] | slice | int | None
"""A choice of steps: a slice (both ends count), several, one, or all."""

_LISTED_IN_FULL = 12


def select(
    run: Run,
    quantity: str,
    layer: str | None,
    steps: Steps,
    rank: int | None,
    phase: str | None,
) -> Series:
    """The series of `Run.select`; RunUnreadable, with what there is instead, where there is none.

    Without a phase: the main one, or, for what it does not hold, the next one that does."""
    steps = chosen_steps(steps)
    refuse_unknown(run, rank, phase)
    layers = (layer,) if layer is not None else layers_for(run, quantity, None, None)
    wanted = (phase,) if phase else run.phases
    for one in wanted:
        found = [run.collector.series(quantity, name, steps, rank, one) for name in layers]
        kept = [series for series in found if series is not None]
        if kept:
            return kept[0] if len(kept) == 1 else run.collector.over_layers(kept)
    layers_for(run, quantity, layer, None)  # says what is wrong with the names, if anything
    of = "" if layer is None else f" of layer {layer!r}"
    by = "" if rank is None else f" by rank {rank}"
    at = "" if steps is None else " at these steps"
    raise RunUnreadable(
        f"{run.name} has no readable {quantity!r}{of}{by} in phase {' or '.join(wanted)}{at}.",
        f"It has steps {listed(run.steps_of(wanted[0]))}; `rnndiag verify` says what is damaged.",
    )


def chosen_steps(steps: Steps) -> list[int] | slice | None:
    """The choice in a form that can be used again; one step may come bare."""
    if steps is None:
        return None
    if isinstance(steps, slice):
        if steps.step is not None and steps.step < 1:
            raise BadArgument(
                f"Steps cannot be chosen by a slice with stride {steps.step}.",
                "Let it be 1 or more.",
            )
        return steps
    return [int(steps)] if isinstance(steps, (int, np.integer)) else [int(step) for step in steps]


def refuse_unknown(run: Run, rank: int | None, phase: str | None) -> None:
    """A rank or a phase that the run does not have."""
    if phase is not None and phase not in run.phases:
        raise RunUnreadable(
            f"{run.name} has no phase {phase!r}.",
            f"{meant(phase, run.phases)}It has {', '.join(run.phases) or 'no recordings'}.",
        )
    if rank is not None and rank not in run.ranks:
        raise RunUnreadable(
            f"{run.name} has nothing of rank {rank}.",
            f"It has rank {', '.join(map(str, run.ranks)) or 'none'}.",
        )


def layers_for(
    run: Run, quantity: str, layer: str | None, steps: Iterable[int] | slice | None
) -> tuple[str, ...]:
    """The layers that a choice stands for: the one named, or all that have the quantity (at these steps)."""
    if not len(run):
        raise no_recordings(run)
    keys = run.collector.keys if steps is None else run.collector.keys_at(steps)
    layers = tuple(of for name, of in keys if name == quantity)
    if not layers:
        when = "" if steps is None else " at these steps"
        raise RunUnreadable(
            f"{run.name} has no quantity {quantity!r}{when}.",
            f"{meant(quantity, run.quantities)}It has {', '.join(run.quantities) or 'none'}.",
        )
    if layer is not None and layer not in layers:
        raise RunUnreadable(
            f"{run.name} has no {quantity!r} of layer {layer!r}.",
            f"{meant(layer, layers)}It has it of {', '.join(layers)}.",
        )
    return layers if layer is None else (layer,)


def no_recordings(run: Run) -> RunUnreadable:
    """The error of a run where nothing was recorded."""
    return RunUnreadable(
        f"{run.name} holds no recordings.",
        "The training stopped before the first one, or none of them can be read: see `rnndiag show`.",
    )


def listed(steps: np.ndarray) -> str:
    """Steps in words: all of them, or the first and the last where they are many."""
    if steps.size > _LISTED_IN_FULL:
        return f"{steps[0]} to {steps[-1]} ({steps.size} of them)"
    return ", ".join(map(str, steps.tolist())) or "none"
