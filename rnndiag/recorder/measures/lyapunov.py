"""Lyapunov exponents of the trained dynamics along its own data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.spectra.lyapunov import lyapunov as exponents
from rnndiag.recorder.measures.measure import GroupCost, Measure, Subject, register_measure
from rnndiag.recorder.measures.stored import measurements
from rnndiag.store.measurement import Measurement

FULL = 32
"""States up to this size get all exponents with their proof; larger ones the ten largest."""
SOME = 10
SEQUENCES = 4
SHORTEST = 4
"""Exponents over fewer steps are not computed: they would mean nothing."""


def lyapunov(subject: Subject, run: LayerRun) -> Iterator[Measurement]:
    """Lyapunov exponents over a few sequences."""
    longest = run.T if run.lengths is None else int(run.lengths.max())
    if longest < SHORTEST:
        subject.not_measured[f"lyapunov of {run.name}"] = (
            f"exponents need {SHORTEST} time steps or more, and there are {longest}"
        )
        return
    count = min(run.B, SEQUENCES, subject.extent.samples or run.B)
    part = run.select(np.linspace(0, run.B - 1, count).round().astype(int).tolist())
    k = run.S if run.S <= FULL else min(SOME, run.S)
    found = exponents(part, k)
    subject.note_sampled(
        run.name,
        f"Lyapunov exponents: the {k} largest of {run.S}, over {count} of {run.B} sequences, "
        f"without the first {found.warmup} steps",
    )
    yield from measurements(found.rows(), found.coordinates(), run.name)


LYAPUNOV = register_measure(
    Measure(
        "lyapunov",
        GroupCost(steps=10.0, every=10, seconds=0.1, ends=True),
        of_layer=lyapunov,
        needs_finite=True,
    )
)
