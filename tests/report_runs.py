"""Whole runs made by formulas: every quantity that a report shows, so that what a page says of them is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rnndiag.stats.need import Gain, Group, LagGain, MemoryNeed, Use, need_measurements
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter

LAYERS = ("encoder.l0", "encoder.l1")
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
GATES = ("i", "f", "g", "o")
STATS = ("mean", "q05", "q50", "q95")
CHUNKS = (1, 2, 4, 8, 16)
SCORES = ("full", "window(4)", "chunk(4)", "bernoulli(0.9)")

Edit = Callable[[Measurement, int], Measurement | None]
"""What a test changes: a measurement and its step -> another one, or None to leave it out."""


def decay(layer: str, step: int) -> float:
    """The factor per step back: slower in the second layer, faster as training goes on."""
    return 0.9 - 0.1 * LAYERS.index(layer) - 0.001 * step if layer in LAYERS else 0.8


def layer_content(layer: str, step: int, T: int) -> list[Measurement]:
    """Everything that is stored of one layer. Credit decays by `decay` a step, with a loss at every output."""
    u, s = np.indices((T, T))
    credit = np.where(s <= u, (u - s) * np.log(decay(layer, step)), np.nan)
    return [Measurement.of("credit_matrix", credit, layer), *long_layer_content(layer, step, T)]


def long_layer_content(layer: str, step: int, T: int) -> list[Measurement]:
    """The same without what grows with the square of T."""
    a = decay(layer, step)
    t, lags = np.arange(T), np.arange(T + 1)
    spread = np.array([0.0, -0.4, -0.2, 0.0, 0.2, 0.4])
    norms = np.stack([(k + 1) * a ** (T - 1 - t) for k in range(4)])
    tail = a**lags * (lags < T)
    angle = 2 * np.pi * np.arange(6) / 6
    eigenvalues = np.stack([a * np.stack([np.cos(angle), np.sin(angle)], 1)] * 4)
    four = np.stack([t * 0.0 + a, t * 0.0 + 0.9 * a, t * 0.0 + a, t * 0.0 + 1.1 * a], 1)
    products = np.log(a) * np.arange(1, T)[:, None] + np.array([0.0, -0.3, 0.0, 0.3])
    far = {"lag": tuple(map(str, range(1, T))), "stat": STATS}
    from_zero = {"lag": tuple(map(str, range(T + 1)))}
    score = np.array(
        [
            [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.5],
            [0.3, 0.0, 0.3, 0.9, 0.9, 0.5, 0.2, 0.0, 0.0, 0.4],
            [0.4, 0.0, 0.4, 0.8, 0.8, 1.0, 0.2, 0.0, 0.0, 0.6],
            [0.0, 0.7, 0.7, 1.0, 0.7, 0.6, 0.5, 0.01, 0.02, 0.7],
        ]
    )
    score = np.concatenate([score, 0.1 * score[:, 7:8], 0 * score[:, :1], 0.5 * score[:, 7:8]], 1)
    of, by = Measurement.of, {"parameter": PARAMETERS}
    return [
        of("credit_profile", np.log(a) * t[:, None] + spread * (t > 0)[:, None], layer),
        of("valid_samples", np.full(T, 4), layer),
        of("nonfinite_states", np.zeros(T), layer),
        of("nonfinite_adjoints", np.zeros(T), layer),
        of("contribution_norm", norms, layer, by),
        of("contribution_alignment", np.tile(np.cos(t / 5), (4, 1)), layer, by),
        of("gate_contribution_norm", norms, layer, {"gate": GATES}),
        of("adjoint_part_norm", norms[:2], layer, {"part": ("h", "c")}),
        of("residual", np.full(4, 3e-7), layer, by),
        of("window_bias", tail, layer, from_zero),
        of("window_cosine", np.sqrt(1 - tail**2), layer, from_zero),
        of("tail_mean_square", tail**2, layer, from_zero),
        of("tail_mean_square_error", 0.01 * tail**2, layer, from_zero),
        of("gradient_mean_square", 1.0, layer),
        of("noise", 0.5, layer),
        of("full_gradient_norm", 1.0, layer),
        of("chunk_size", np.array(CHUNKS), layer),
        of("chunk_bias", np.array([a ** (k / 2) for k in CHUNKS]), layer),
        of("product_spectral", products, layer, far),
        of("product_median", 1.5 * products, layer, far),
        of("product_smallest", 2 * products, layer, far),
        of("spectral_radius", np.array([a, 0.8 * a, 0.7 * a, 0.6 * a]), layer, {"block": GATES}),
        of("recurrent_eigenvalues", eigenvalues, layer, {"block": GATES}),
        of("jacobian_radius", four, layer, {"time": tuple(map(str, t)), "stat": STATS}),
        of("lyapunov_exponents", np.log(a) * np.outer(np.arange(1, 6), [1, -0.05, 0]), layer),
        of("kaplan_yorke", 0.0, layer),
        of("gate_high", np.array([0.1, 0.2, 0.3]), layer, {"gate": ("i", "f", "o")}),
        of("estimator_score", score, layer, {"estimator": SCORES}),
        of(
            "state_map",
            np.stack([np.cos(t), np.sin(t)], 1),
            layer,
            {"token": tuple("ab"[k % 2] for k in range(T))},
        ),
        *need_measurements(need_of_layer(layer)),
    ]


def need_of_layer(layer: str) -> MemoryNeed:
    """A need of inputs 4 to 7 steps back, beyond a window of 4."""
    found = LagGain(0.3, 0.2, 0.4, 0.001, 0.001)
    groups = (
        Group(1, 3, 0.001, -0.001, 0.003, 0.4, 0.4, False),
        Group(4, 7, *found, True),
    )
    return MemoryNeed(
        layer=layer,
        loss=0.6,
        groups=groups,
        present=Gain(0.05, 0.02, 0.08),
        present_p=0.01,
        within=LagGain(0.001, -0.001, 0.003, 0.4, 0.4),
        further=found,
        use=(Use(1, 0.1, 0.05, 0.15), Use(2, 0.08, 0.04, 0.12), Use(3, 0.0, 0.0, 0.0)),
        used_memory=3,
        burn_in=5,
        floor=float("nan"),
        beyond=4,
        limit="window",
        max_lag=7,
        sequences=160,
        n_sequences=384,
        rows=4000,
        reach=3.5,
        peak_lag=6.0,
    )


def model_content(step: int) -> list[Measurement]:
    """Everything that is stored of the whole model."""
    of, at = Measurement.of, np.arange(step, step + 10)
    return [
        of("loss", 1.0 / (1 + step)),
        of("total_gradient_norm", 2.0 / (1 + step)),
        of("clip_threshold", 1.0),
        of("learning_rate", 0.01),
        of("history_step", at),
        of("history_loss", 1.0 / (1 + at)),
        of("history_gradient_norm", 2.0 / (1 + at)),
        of("window_in_use", 8.0),
        of("overhead_share", 0.02),
    ]


def write(
    folder: Path,
    steps: Iterable[int] = range(0, 100, 10),
    T: int = 24,
    layers: Iterable[str] = LAYERS,
    edit: Edit | None = None,
    close: bool = True,
    provenance: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    measure: Callable[[str, int, int], list[Measurement]] = layer_content,
) -> Path:
    """Write a run below a folder; its directory."""
    facts = FACTS if provenance is None else provenance
    writer = RunWriter(folder, facts, durable=False, max_bytes=4 << 30)
    for step in steps:
        found = [m for layer in layers for m in measure(layer, step, T)] + model_content(step)
        kept = [m if edit is None else edit(m, step) for m in found]
        recorded = Recording(
            step,
            time=1.7e9 + step,
            verdict="exact",
            measurements=tuple(m for m in kept if m is not None),
            notes=notes or {},
        )
        if not writer.append(recorded):
            raise AssertionError(f"step {step} was not written: {writer.problems}")
    if close:
        writer.close()
    return folder


FACTS = {
    "versions": {"rnndiag": "0.1.0", "torch": "2.13.0"},
    "host": "made",
    "model": {"layers": {name: {"cell": "lstm", "hidden": 6} for name in LAYERS}},
    "trainer": {"precision": "32-true", "clip": 1.0},
    "config": {"every_n_steps": 10},
    "seed": 0,
    "command": ["python", "train.py"],
}
