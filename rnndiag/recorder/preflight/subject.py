"""The input of the checks: model with loss, batch with layout, and the passes made so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rnndiag.recorder.preflight.layout import BatchLayout
from rnndiag.recorder.preflight.observe import Observer, PassResult


@dataclass
class PreflightSubject:
    """Model, loss and batch. Passes over the unchanged batch are cached."""

    observe: Observer
    batch: Any
    layout: BatchLayout
    detach: int | str | None
    """The truncation window declared by the user: a number of steps, or `any`."""
    _seen: dict[tuple[bool, bool], PassResult] = field(default_factory=dict)

    def seen(self, training: bool = False, calls: bool = False) -> PassResult:
        """The pass over the unchanged batch."""
        key = training, calls
        if key not in self._seen:
            self._seen[key] = self.observe(self.batch, training, calls)
        return self._seen[key]
