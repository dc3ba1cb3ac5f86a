"""What is meant by a quantity, a layer, steps, a rank and a phase; and a clear word where a run has no such thing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from rnndiag.errors import RunUnreadable
from rnndiag.run.measurement import Series

if TYPE_CHECKING:
    from rnndiag.run.run import Run

_LISTED_IN_FULL = 12


def select(
    run: Run,
    quantity: str,
    layer: str | None,
    steps: Iterable[int] | slice | None,
    rank: int | None,
    phase: str | None,
) -> Series:
    """The series of `Run.select`; RunUnreadable, with what there is instead, where there is none.

    Without a phase: the main one, or, for what it does not hold, the next one that does."""
    steps = steps if steps is None or isinstance(steps, slice) else list(steps)
    layers = (layer,) if layer is not None else layers_for(run, quantity, None, None)
    wanted = (phase,) if phase else run.phases
    for one in wanted:
        found = [run.collector.series(quantity, name, steps, rank, one) for name in layers]
        kept = [series for series in found if series is not None]
        if kept:
            return kept[0] if len(kept) == 1 else run.collector.over_layers(kept)
    layers_for(run, quantity, layer, None)
    of = f"{layer or 'any layer'}, {'any rank' if rank is None else f'rank {rank}'}"
    raise RunUnreadable(
        f"{run.name} has no readable {quantity!r} of {of}, phase {' or '.join(wanted)} at these steps.",
        f"It has ranks {run.ranks}, phases {run.phases}, steps {listed(run.steps)}.",
    )


def layers_for(
    run: Run, quantity: str, layer: str | None, steps: Iterable[int] | slice | None
) -> tuple[str, ...]:
    """The layers that a choice stands for: the one named, or all that have the quantity (at these steps)."""
    keys = run.collector.keys if steps is None else run.collector.keys_at(steps)
    layers = tuple(of for name, of in keys if name == quantity)
    if not layers:
        when = "" if steps is None else " at these steps"
        raise RunUnreadable(
            f"{run.name} has no quantity {quantity!r}{when}.",
            f"It has {', '.join(run.quantities) or 'none'}.",
        )
    if layer is not None and layer not in layers:
        raise RunUnreadable(
            f"{run.name} has no {quantity!r} of layer {layer!r}.",
            f"It has it of {', '.join(layers)}.",
        )
    return layers if layer is None else (layer,)


def listed(steps: np.ndarray) -> str:
    """Steps in words: all of them, or the first and the last where they are many."""
    if steps.size > _LISTED_IN_FULL:
        return f"{steps[0]} to {steps[-1]} ({steps.size} of them)"
    return ", ".join(map(str, steps.tolist())) or "none"
