"""Norms of direct gradients, adjoints, states and contributions per time step, with their proofs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rnndiag.engine.adjoints import Adjoints
from rnndiag.engine.contributions import out_of_range
from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.measures.measure import (
    Analysis,
    GroupCost,
    Measure,
    Subject,
    register_measure,
)
from rnndiag.recorder.measures.pooling import Array, array, masked_mean, stats
from rnndiag.recorder.measures.sequences import sequences
from rnndiag.store.measurement import Measurement


def contributions(subject: Subject) -> Iterator[Measurement]:
    """All quantities of the group, for every layer run."""
    for run, analysis in zip(subject.runs, subject.analyses, strict=True):
        yield from _over_time(run, analysis[0])
        yield from _of_parameters(run, analysis)
        yield from _proofs(subject, run)
    yield from sequences(subject)


def _over_time(run: LayerRun, adj: Adjoints) -> Iterator[Measurement]:
    """Norms and counts of non-finite entries of states, adjoints and direct gradients, by step."""
    mask = run.mask()
    state, delta = run.state_vector(), adj.state
    direct = torch.cat(run.direct, -1)
    sizes = {
        "direct_gradient_norm": _norm(direct),
        "adjoint_norm": _norm(delta),
        "state_norm": _norm(state),
    }
    for name, size in sizes.items():
        yield Measurement.of(name, stats(size, mask), run.name)
    parts = torch.stack([masked_mean(_norm(part), mask) for part in adj.parts])
    yield Measurement.of("adjoint_part_norm", array(parts), run.name, {"part": run.cell.parts})
    yield Measurement.of("valid_samples", array(mask.sum(1)), run.name)
    for name, values, size in (
        ("nonfinite_states", state, sizes["state_norm"]),
        ("nonfinite_adjoints", delta, sizes["adjoint_norm"]),
    ):
        yield Measurement.of(name, _not_finite(values, size, mask), run.name)


def _not_finite(values: Tensor, size: Tensor, mask: Tensor) -> Array:
    """(T,) number of non-finite entries per step. If all norms are finite, so are all entries."""
    if bool(size[mask].isfinite().all()):
        return np.zeros(len(size), np.int32)
    return array((~values.isfinite() & mask[..., None]).sum((1, 2)))


def _norm(values: Tensor) -> Tensor:
    """Norms (T, B, S) -> (T, B); in float64 if squares under- or overflow, as those of 1e-25 do in float32."""
    wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
    norm: Tensor = torch.linalg.vector_norm(wide, dim=-1)
    lost = out_of_range(norm)
    if bool(lost.any()):
        norm = norm.double()
        norm[lost] = torch.linalg.vector_norm(wide[lost], dim=-1, dtype=torch.float64)
    return norm


def _of_parameters(run: LayerRun, analysis: Analysis) -> Iterator[Measurement]:
    """Norms of the contributions and of the gradient, by parameter."""
    norms = analysis[1]
    keys = {"parameter": tuple(norms)}
    if not norms:
        return
    for name, field in (
        ("contribution_norm", "norm"),
        ("contribution_sample_norm", "sample_norm"),
        ("contribution_alignment", "alignment"),
    ):
        values = torch.stack([getattr(found, field) for found in norms.values()])
        yield Measurement.of(name, array(values), run.name, keys)
    gates = norms["weight_hh"].gate_norm if "weight_hh" in norms else None
    if gates is not None and len(run.cell.blocks) == len(gates):
        yield Measurement.of(
            "gate_contribution_norm", array(gates), run.name, {"gate": run.cell.blocks}
        )
    if run.gradients:
        sizes = [float(gradient.double().norm()) for gradient in run.gradients.values()]
        yield Measurement.of(
            "gradient_norm", np.asarray(sizes), run.name, {"parameter": tuple(run.gradients)}
        )


def _proofs(subject: Subject, run: LayerRun) -> Iterator[Measurement]:
    proof = subject.proof
    names = {key: run.parameters.get(key, f"{run.name}.{key}") for key in run.weights}
    for quantity, table in (
        ("residual", proof.residual),
        ("residual_of_gradient", proof.residual_of_gradient),
    ):
        found = {key: table[name] for key, name in names.items() if name in table}
        if found:
            values = np.asarray(list(found.values()))
            yield Measurement.of(quantity, values, run.name, {"parameter": tuple(found)})
    layer = proof.layers[run.name]
    yield Measurement.of("recursion_residual", np.asarray(layer.recursion), run.name)
    yield Measurement.of("forward_error", np.asarray(layer.forward), run.name)


CONTRIBUTIONS = register_measure(
    Measure("contributions", GroupCost(steps=1.5), of_all=contributions)
)
