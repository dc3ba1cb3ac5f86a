"""Statistics of gates and units: saturation, openness, time constants, dead units."""

from __future__ import annotations

from collections.abc import Iterator

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.spectra.gate_statistics import gate_statistics
from rnndiag.recorder.measures.measure import GroupCost, Measure, Subject, register_measure
from rnndiag.recorder.measures.stored import measurements
from rnndiag.store.measurement import Measurement


def gates(subject: Subject, run: LayerRun) -> Iterator[Measurement]:
    """The statistics over the sampled sequences; none for a cell without named activations."""
    found = gate_statistics(subject.sampled(run))
    if found is not None:
        yield from measurements(found.rows(), found.coordinates(), run.name)


GATES = register_measure(
    Measure(
        "gates",
        GroupCost(steps=1.0, seconds=0.01),
        of_layer=gates,
        needs_finite=True,
    )
)
