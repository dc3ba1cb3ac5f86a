"""What the results hand to a recording fits the registry: names, dims, labels, and it says the same on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from spectra.hand_made import draw_run

import rnndiag
from rnndiag.engine.layer_run import LayerRun
from rnndiag.store.quantities import FIXED_COORDINATES, QUANTITIES

MADE: dict[str, Callable[[LayerRun], Any]] = {
    "products": lambda run: rnndiag.jacobian_products(run, [1, 2, 4]),
    "radius": rnndiag.spectral_radius,
    "some times": lambda run: rnndiag.spectral_radius(run, times=[0, 5]),
    "lyapunov": lambda run: rnndiag.lyapunov(run, k=3, lags=[1, 3]),
    "gates": rnndiag.gate_statistics,
}
CELLS = ["elman_relu", "lstm", "gru", "lecture_gru"]


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("cell", CELLS)
def test_rows_fit_the_registry(cell: str, made: str) -> None:
    result = MADE[made](draw_run(cell, lengths=[7, 5, 2]))
    labels = {**result.coordinates(), **FIXED_COORDINATES}
    assert result.rows()
    for name, values in result.rows().items():
        quantity = QUANTITIES[name]
        assert values.dim() == len(quantity.dims), name
        assert values.dtype == torch.float64 or values.dim() == 0, name
        for dim, size in zip(quantity.dims, values.shape, strict=True):
            if dim in labels:
                assert len(labels[dim]) == size, (name, dim)


def test_every_stored_quantity_of_these_groups_is_made() -> None:
    made = {
        name for cell in CELLS for make in MADE.values() for name in make(draw_run(cell)).rows()
    }
    stored = {q.name for q in QUANTITIES.values() if q.group in ("jacobians", "lyapunov", "gates")}
    assert made == stored - {"singular_spectrum"}, "that one is of chosen pairs"
    assert QUANTITIES["singular_spectrum"].dims == ("pair", "exponent")


@pytest.mark.gpu
@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("cell", CELLS)
def test_a_gpu_says_the_same(cell: str, made: str) -> None:
    run = draw_run(cell, lengths=[7, 5, 2])
    here, there = MADE[made](run).rows(), MADE[made](run.to(device="cuda")).rows()
    for name, values in here.items():
        assert torch.allclose(there[name].cpu(), values, atol=1e-8, equal_nan=True), name
