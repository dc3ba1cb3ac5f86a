"""What a batch itself shows, without any pass through the model."""

from __future__ import annotations

from typing import Any

from rnndiag.recorder.preflight.leaves import leaves


def all_finite(batch: Any) -> bool:
    """Whether every number of every floating tensor in a batch is finite: data that are not spoil any model."""
    return all(
        bool(tensor.isfinite().all()) for _, tensor in leaves(batch) if tensor.is_floating_point()
    )
