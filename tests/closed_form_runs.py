"""Content of runs in closed form: a credit profile a^d has its reach, decay and window bias on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rnndiag.health.finding import Finding
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter

T, LAGS = 60, 60
PARAMETERS = ("weight_ih", "weight_hh")


def profile(decay: float, lags: int = LAGS) -> np.ndarray:
    """ln of a^d with all quantiles alike: (lag, profile_stat)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(np.arange(lags) == 0, 0.0, np.arange(lags) * np.log(decay))
    return np.repeat(logs[:, None], 6, axis=1)


def measurements(layer: str, decay: float, **changes: Any) -> list[Measurement]:
    """What a recording of one layer holds, with `changes` to single quantities."""
    stats = np.ones((T, 4))
    values: dict[str, Any] = {
        "credit_profile": profile(decay),
        "adjoint_norm": stats,
        "valid_samples": np.full(T, 8.0),
        "nonfinite_states": np.zeros(T),
        "nonfinite_adjoints": np.zeros(T),
        "gradient_norm": np.array([1.0, 1.0]),
        "residual": np.array([4e-7, 2e-7]),
        "spectral_radius": np.array([decay]),
        "lyapunov_exponents": np.array([[np.log(decay), 0.0, 0.0]]),
        "window_bias": decay ** np.arange(LAGS),
        "saturated_units": np.array(0.0),
    }
    values.update(changes)
    labels: dict[str, Mapping[str, Sequence[str]]] = {
        "gradient_norm": {"parameter": PARAMETERS},
        "residual": {"parameter": PARAMETERS},
        "spectral_radius": {"block": ("h", "i", "f", "o")[: np.size(values["spectral_radius"])]},
        "gate_mean": {"gate": ("i", "f", "g", "o")},
        "gate_contribution_norm": {"gate": ("i", "f", "g", "o")},
    }
    return [
        Measurement.of(name, value, layer=layer, coordinates=labels.get(name))
        for name, value in values.items()
        if value is not None
    ]


def of_model(**changes: Any) -> list[Measurement]:
    """What a recording of the whole model holds."""
    values: dict[str, Any] = {
        "loss": np.array(1.0),
        "total_gradient_norm": np.array(1.0),
        "window_in_use": np.array(float(T)),
        "overhead_share": np.array(0.02),
    }
    values.update(changes)
    return [Measurement.of(name, value) for name, value in values.items() if value is not None]


PROVENANCE = {
    "versions": {"rnndiag": "0.1.0", "torch": "2.13.0", "numpy": "2.0.0"},
    "git": {"commit": "4f1c9e2aa0", "dirty": False},
    "model": {"layers": {"rnn.l0": {"cell": "tanh", "hidden": 48, "T": T}}, "parameters": 100},
    "trainer": {"precision": "32-true"},
}


def record(writer: RunWriter, step: int, decay: float = 0.95, **facts: Any) -> bool:
    """Append an exact recording of one layer; False if it was not stored."""
    found = (*measurements("rnn.l0", decay), *of_model())
    return writer.append(Recording(step, verdict="exact", measurements=found, **facts))


def finding_of(findings: list[Finding], check: str, layer: str | None = None) -> Finding:
    """The only finding of this check."""
    found = [one for one in findings if one.check == check and layer in (None, one.layer)]
    assert len(found) == 1, [(one.check, one.layer, one.status, one.message) for one in findings]
    return found[0]
