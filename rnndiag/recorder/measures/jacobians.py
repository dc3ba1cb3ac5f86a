"""Products of Jacobians over lag, spectra of the recurrent weights, spectral radius of the Jacobian over time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.spectra.products import jacobian_products, singular_spectrum
from rnndiag.engine.spectra.radius import spectral_radius
from rnndiag.recorder.measures.measure import GroupCost, Measure, Subject, register_measure
from rnndiag.recorder.measures.pooling import array
from rnndiag.recorder.measures.stored import measurements
from rnndiag.store.measurement import Measurement

PRODUCT_NS = 5.0
"""Time of one step of one product, in nanoseconds per S³ on one CPU thread."""
OVERHEAD_S = 2e-3
"""Constant part of the time, in seconds."""
TIMES = 8
"""Number of evenly spread steps at which ρ(J_t) is computed."""


def jacobians(subject: Subject, run: LayerRun) -> Iterator[Measurement]:
    """Norms and singular values of products, on as many sequences, anchors and lags as the time limit allows."""
    longest = run.T if run.lengths is None else int(run.lengths.max())
    step = max(PRODUCT_NS * 1e-9 * run.S**3, 1e-9)
    rows = subject.extent.seconds / step
    reach = int(min(longest, max(4, rows, 1), subject.extent.seconds / OVERHEAD_S))
    at_once = max(1, int(rows / max(1, reach)))
    samples = min(run.B, at_once, subject.extent.samples or run.B)
    anchors = min(4, max(1, at_once // samples))
    part = run.select(np.linspace(0, run.B - 1, samples).round().astype(int).tolist())
    lags = _lags(reach)
    starts = sorted({round(x) for x in np.linspace(0, max(0, longest - reach), anchors)})
    products = jacobian_products(part, lags, starts)
    subject.note_sampled(
        run.name,
        f"Jacobian products: {samples} of {run.B} sequences, {len(starts)} start states, lags to {reach} of {run.T}",
    )
    rows_found = products.rows()
    rows_found.pop("finite_time_exponents")
    yield from measurements(rows_found, products.coordinates(), run.name)
    pairs = [(starts[0] + lags[-1], starts[0])]
    spectrum = array(singular_spectrum(part.select([0]), pairs)[:, 0])
    names = {"pair": tuple(f"{t},{k}" for t, k in pairs)}
    yield Measurement.of("singular_spectrum", spectrum, run.name, names)
    times = sorted({round(x) for x in np.linspace(0, longest - 1, min(TIMES, longest))})
    radius = spectral_radius(part.select([0, 1] if samples > 1 else [0]), times)
    yield from measurements(radius.rows(), radius.coordinates(), run.name)


def _lags(longest: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... and the longest."""
    powers = [2**k for k in range(longest.bit_length())]
    return sorted({k for p in powers for k in (p, 3 * p // 2) if 1 <= k <= longest} | {longest})


JACOBIANS = register_measure(
    Measure(
        "jacobians",
        GroupCost(steps=10.0, every=5, seconds=0.5, ends=True),
        of_layer=jacobians,
        needs_finite=True,
    )
)
