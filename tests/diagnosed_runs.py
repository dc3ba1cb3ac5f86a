"""Runs with made-up numbers: a stuck LSTM with nothing wrong, and changes to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rnndiag
from rnndiag.health.diagnosis import Diagnosis
from rnndiag.run.run import Run, open_run
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter

T, STEPS = 30, 400
RECORDED = (0, 100, 200, 300, 399)
SHUT = np.stack([np.full(T, 0.5), np.full(T, 0.02), np.full(T, 0.5)])
HALF = np.full((3, T), 0.5)
"""Means of the gates of an LSTM, (gate, step): the second one shut, and all half open."""


def profile(per_step: float, lags: int = T) -> np.ndarray:
    """Credit that changes by this factor a lag, (lag, profile_stat)."""
    return np.repeat((np.arange(lags) * np.log(per_step))[:, None], 6, axis=1)


def stuck_losses(level: float = 1.386, steps: int = STEPS) -> np.ndarray:
    """Noise around a constant."""
    return level + 0.02 * np.random.default_rng(0).standard_normal(steps)


def falling_losses(
    start: float, end: float, settled: float = 0.3, steps: int = STEPS
) -> np.ndarray:
    """From start to end, reached after this share of the steps."""
    way = np.minimum(np.arange(steps) / (settled * steps), 1.0)
    noise = 1 + 0.02 * np.random.default_rng(0).standard_normal(steps)
    return (start + (end - start) * way) * noise


def layer(**changes: Any) -> dict[str, Any]:
    """Quantities of an LSTM whose gates are open; a list holds the first and all later recordings' values.

    None: not recorded.
    """
    values: dict[str, Any] = {
        "credit_profile": profile(0.97),
        "valid_samples": np.full(T, 8.0),
        "gate_mean": np.stack([np.full(T, 0.5), np.full(T, 0.96), np.full(T, 0.5)]),
        "gate_low": np.zeros(3),
        "gate_high": np.zeros(3),
        "update_ratio": 0.01,
        "weight_growth": 1.0,
        "weight_norm": 5.0,
        "swing": 0.01,
        "input_spread": 1.0,
        "gradient_norm": np.array([0.1, 0.1]),
        **changes,
    }
    return {name: value for name, value in values.items() if value is not None}


def elman(**changes: Any) -> dict[str, Any]:
    """The same of a tanh layer."""
    gates: dict[str, Any] = dict.fromkeys(("gate_mean", "gate_low", "gate_high"))
    units = {"saturated_units": 0.0, "activation_derivative": np.full((T, 4), 0.8)}
    return layer(**{**gates, **units, **changes})


def relu(**changes: Any) -> dict[str, Any]:
    """The same of a relu layer."""
    gates: dict[str, Any] = dict.fromkeys(("gate_mean", "gate_low", "gate_high"))
    return layer(**{**gates, "dead_units": 0.1, **changes})


LABELS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "gate_mean": {"gate": ("i", "f", "o")},
    "gate_low": {"gate": ("i", "f", "o")},
    "gate_high": {"gate": ("i", "f", "o")},
    "gradient_norm": {"parameter": ("weight_ih", "weight_hh")},
}


def write(
    path: Path,
    layers: Mapping[str, Mapping[str, Any]],
    losses: np.ndarray | None = None,
    cell: str = "lstm",
    optimizer: str = "Adam",
    rate: float = 5e-3,
    weight_decay: float = 0.0,
    clip: float | None = None,
    model: Mapping[str, float] | None = None,
    recurrent: Mapping[str, Mapping[str, Any]] | None = None,
    config: Mapping[str, Any] | None = None,
    notes: Mapping[int, Mapping[str, Any]] | None = None,
    verdict: str = "exact",
    trainer: Mapping[str, Any] | None = None,
) -> Run:
    """A run of these layers."""
    losses = stuck_losses() if losses is None else losses
    facts = {"trainable": 4, "in_optimizer": 4, "optimizer": 0}
    facts |= {"lr": rate, "weight_decay": weight_decay}
    names = list(layers)
    provenance = {
        "model": {"layers": {name: {"cell": cell, "T": T, "B": 8} for name in names}},
        "trainer": {"clip": clip, **(trainer or {})},
        "config": dict(config or {}),
        "training": {
            "optimizers": [{"kind": optimizer, "lr": rate, "weight_decay": weight_decay}],
            "recurrent": recurrent or {name.partition("#")[0]: facts for name in names},
        },
    }
    whole = {
        "other_update_ratio": 0.01,
        "total_gradient_norm": 0.5,
        "stepped_gradient_norm": 0.5,
        "learning_rate": rate,
        "window_in_use": float(T),
        **(model or {}),
    }
    recorded = [step for step in RECORDED if step < len(losses)]
    with RunWriter(path, provenance) as writer:
        before = 0
        for number, step in enumerate(recorded):
            end = len(losses) if step == recorded[-1] else step + 1
            at = np.arange(before, end)
            before = end
            measured = [
                Measurement.of("history_step", at.astype(float)),
                Measurement.of("history_loss", losses[at], keep_dtype=True),
            ]
            for name, values in (("model", whole), *layers.items()):
                for quantity, value in values.items():
                    chosen = value[min(number, 1)] if isinstance(value, list) else value
                    if chosen is None:
                        continue
                    measured.append(
                        Measurement.of(
                            quantity, np.asarray(chosen, float), name, LABELS.get(quantity)
                        )
                    )
            writer.append(
                Recording(
                    step=step,
                    verdict=verdict,  # type: ignore[arg-type]
                    measurements=tuple(measured),
                    notes=dict((notes or {}).get(step, {})),
                )
            )
    return open_run(path)


def diagnosed(path: Path, own: dict[str, Any], **options: Any) -> Diagnosis:
    return rnndiag.diagnose(write(path / "run", {"rnn.l0": own}, **options))
