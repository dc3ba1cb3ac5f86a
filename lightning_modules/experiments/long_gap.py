"""Which nets learn a long gap, and the recorded reach that explains which.

The task: a sentence whose last word was decided `distance` steps before it, one loss at the end. A gradient that is
gone after a few steps cannot carry the news back to where it is needed, however long one trains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rnndiag
from lightning_modules.experiments.fit import Fitted, fit
from lightning_modules.markdown import table

DISTANCE = 30
TASK = {"name": "banana", "distance": DISTANCE}
DATA = {"batches": 800, "batch_size": 32}
HIDDEN = 32

SYSTEMS: dict[str, Mapping[str, Any]] = {
    "tanh RNN": {"cell": "elman_tanh", "learning_rate": 0.003},
    "IRNN (relu, identity start)": {"cell": "irnn", "learning_rate": 0.001},
    "LSTM, torch's start": {"cell": "lstm", "learning_rate": 0.005},
    "LSTM, forget bias 3": {
        "cell": "lstm",
        "learning_rate": 0.005,
        "initialisation": {"forget_bias": 3.0},
    },
    "GRU, torch's start": {"cell": "gru", "learning_rate": 0.005},
    "GRU, bias of z 3": {
        "cell": "gru",
        "learning_rate": 0.005,
        "initialisation": {"forget_bias": 3.0},
    },
}


def train(directory: Path) -> dict[str, Fitted]:
    """Every system on the same task, from the same seed."""
    fitted = {}
    for number, (name, options) in enumerate(SYSTEMS.items()):
        model = {"task": TASK, "hidden": HIDDEN, **options}
        fitted[name] = fit(model, DATA, directory / f"gap-{number}-{options['cell']}")
    return fitted


def crossing(fitted: Fitted, place: int) -> float:
    """log10 of the credit at the fruit relative to that at the end, at recording number `place`."""
    profile = fitted.run["credit_profile", fitted.run.layers[0]].sel(profile_stat="profile")
    return float(profile.values[place][DISTANCE]) / math.log(10)


def reach_at(fitted: Fitted, place: int) -> float:
    """Steps within which 90 % of the credit lies, at recording number `place`."""
    profile = fitted.run["credit_profile", fitted.run.layers[0]].sel(profile_stat="profile")
    return float(rnndiag.reach(profile.values[place]))


def report(fitted: Mapping[str, Fitted]) -> str:
    """The table."""
    head = ("net", "reach at the start", "credit across the gap", "reach at the end", "loss", "")
    rows = []
    for name, one in fitted.items():
        rows.append(
            (
                name,
                f"{reach_at(one, 0):.1f}",
                f"10^{crossing(one, 0):.1f}",
                f"{reach_at(one, -1):.1f}",
                f"{one.loss:.4f}",
                "learnt" if one.learnt else "not learnt",
            )
        )
    return table(head, rows)
