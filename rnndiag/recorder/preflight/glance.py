"""Structural checks on one recorded step, without running the model.

The callback does this at its first recording. It must not run the user's training step again, so checks that need a
changed batch are left to `rnndiag.preflight`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from rnndiag.engine.layer_run import LayerRun
from rnndiag.errors import BadArgument
from rnndiag.recorder.measures.take import untouched
from rnndiag.recorder.preflight.finding import finding
from rnndiag.recorder.preflight.gradient import DETACHED, stops
from rnndiag.recorder.preflight.layout import BatchLayout, confirmed_by_loader, layout_of
from rnndiag.recorder.preflight.padding import COUNTED, reads_padding
from rnndiag.recorder.preflight.samples import swapped
from rnndiag.recorder.preflight.state import NOT_CARRIED, calls_of

if TYPE_CHECKING:
    from rnndiag.health.finding import Finding

NOTE = "preflight"
"""Key under which the findings are stored in the notes of a recording."""


def glance(
    runs: Iterable[LayerRun], batch: Any, batch_size: int | None = None
) -> list[dict[str, Any]]:
    """Findings of the layer runs of one step as JSON; empty if there are none.

    `batch_size` is the loader's: it distinguishes time and batch if the batch itself does not.
    """
    seen = {run.name: run for run in runs}
    try:
        layout = layout_of(batch, None, None)
        layout = confirmed_by_loader(layout, batch_size)
    except BadArgument:
        layout = None
    with untouched(next(iter(seen.values())).device if seen else torch.device("cpu")):
        found = [one for run in seen.values() if (one := _of_run(run, layout)) is not None]
    if layout is not None:
        found += _not_carried(seen, layout)
    return [one.as_json() for one in found]


def _of_run(run: LayerRun, layout: BatchLayout | None) -> Finding | None:
    """The first structural fault that one recorded layer run shows, or None."""
    if layout is not None and not layout.assumed and layout.samples != layout.steps:
        if layout.samples == run.T and layout.steps == run.B:
            return swapped(run, layout)
        padding = layout.padding()
        fits = layout.steps == run.T and layout.samples == run.B and run.lengths is None
        if padding is not None and fits and not run.reverse and reads_padding(run, padding.T):
            return finding(
                COUNTED,
                "warn",
                f"the loss reads states of {run.name} at steps beyond the lengths ({layout.lengths_from})",
                "Pack the sequences, take the last real step in place of the last one, or mask the loss.",
                run.name,
            )
    if run.T > 1 and stops(run):
        return finding(
            DETACHED,
            "fail",
            f"no gradient passes from one step of {run.name} to the step before",
            "Remove detach(), .data or torch.no_grad() from the state's path.",
            run.name,
        )
    return None


def _not_carried(seen: dict[str, LayerRun], layout: BatchLayout) -> list[Finding]:
    """Layers that are called in pieces along the time axis and start each piece from zero."""
    found = []
    for layer, runs in calls_of(seen).items():
        whole = sum(run.T for run in runs) == layout.steps and layout.samples == runs[0].B
        if len(runs) > 2 and whole and all(run.tie == "zero" for run in runs):
            found.append(
                finding(
                    NOT_CARRIED,
                    "warn",
                    f"{layer} is called {len(runs)} times along the sequence and starts each time from zero",
                    "Pass the state that a call returns into the next call.",
                    layer,
                )
            )
    return found
