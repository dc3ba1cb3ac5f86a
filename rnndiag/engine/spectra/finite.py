"""Spectra are asked only of finite numbers: what has overflowed is named, not decomposed."""

from __future__ import annotations

import torch

from rnndiag.engine.layer_run import LayerRun
from rnndiag.errors import NotExact


def require_finite(run: LayerRun) -> None:
    """Raise if a state or a weight of the run is not finite."""
    alive = run.mask().unsqueeze(-1)
    for name, part in zip(run.cell.parts, run.states, strict=True):
        broken = (~part.isfinite() & alive).any(-1).any(-1).nonzero()
        if len(broken):
            raise NotExact(
                f"The state {name} of {run.name} is not finite from step {int(broken[0])} on, "
                "so its Jacobians have no spectrum.",
                "Look at what overflowed before that step: the learning rate, or a loss that diverged.",
            )
    fixed = {
        **run.weights,
        **{f"initial {n}": s for n, s in zip(run.cell.parts, run.initial, strict=True)},
    }
    for name, value in fixed.items():
        if not bool(torch.isfinite(value).all()):
            raise NotExact(
                f"{name} of {run.name} holds numbers that are not finite.",
                "Its Jacobians have no spectrum: go back to a checkpoint before it diverged.",
            )
