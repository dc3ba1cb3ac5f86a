"""Facts on a batch itself, without running the model."""

from __future__ import annotations

from typing import Any

from rnndiag.recorder.preflight.leaves import leaves


def all_finite(batch: Any) -> bool:
    """Whether every number in every floating-point tensor of a batch is finite."""
    return all(
        bool(tensor.isfinite().all()) for _, tensor in leaves(batch) if tensor.is_floating_point()
    )
