"""Three transitions between one state and the next: one layer, an MLP, an MLP with a skip connection round it.

Every layer between two states is one more factor for the gradient at each step back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_modules.experiments.fit import Fitted, fit
from lightning_modules.experiments.long_gap import reach_at
from lightning_modules.markdown import table

LENGTH = 20
TASK = {"name": "temporal_order", "length": LENGTH}
DATA = {"batches": 600, "batch_size": 32}
HIDDEN = 32
LEARNING_RATE = 0.002

TRANSITIONS: dict[str, Mapping[str, Any]] = {
    "one layer of tanh": {"cell": "elman_tanh"},
    "MLP": {"wiring": "mlp_transition"},
    "MLP and skip connection": {"wiring": "skip_transition"},
}


def train(directory: Path) -> dict[str, Fitted]:
    """Every transition on the same task, from the same seed."""
    shared = {"task": TASK, "hidden": HIDDEN, "learning_rate": LEARNING_RATE}
    return {
        name: fit({**shared, **options}, DATA, directory / f"transition-{number}")
        for number, (name, options) in enumerate(TRANSITIONS.items())
    }


def report(fitted: Mapping[str, Fitted]) -> str:
    """The table."""
    head = ("transition", "reach at the start", "reach at the end", "loss", "")
    return table(
        head,
        (
            (
                name,
                f"{reach_at(one, 0):.1f}",
                f"{reach_at(one, -1):.1f}",
                f"{one.loss:.4f}",
                "learnt" if one.learnt else "not learnt",
            )
            for name, one in fitted.items()
        ),
    )
