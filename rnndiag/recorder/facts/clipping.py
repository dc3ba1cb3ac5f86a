"""Summarises gradient clipping per epoch: how often, from what norms, and in one word what it amounts to."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rnndiag.recorder.facts.history import StepFacts, number

LIMITER_SHARE = 0.2
"""Clipping that changes more than this share of the steps determines their size and is no safety net."""


@dataclass
class ClippingSummary:
    """Norms before clipping and clipped steps of the running epoch, and the summaries of finished epochs."""

    epoch: int = 0
    _norms: array[float] = field(default_factory=lambda: array("d"))
    _clipped: int = 0
    _threshold: float | None = None
    _finished: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, Any] | None = None

    def add(self, facts: StepFacts) -> None:
        """Add one optimizer step whose scalars have been fetched."""
        self._norms.append(number(facts.norm))
        if facts.clip_at is None and facts.stepped is None:
            return
        self._clipped += facts.clipped
        at = facts.threshold
        self._threshold = at if at is not None else self._threshold

    def end_epoch(self, epoch: int) -> None:
        """Close the epoch's summary."""
        if len(self._norms):
            self.last = self._summary(epoch)
            self._finished.append(self.last)
        self._norms, self._clipped = array("d"), 0

    def drain(self) -> list[dict[str, Any]]:
        """The summaries of epochs finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def _summary(self, epoch: int) -> dict[str, Any]:
        norms = np.asarray(self._norms)
        finite = norms[np.isfinite(norms)]
        middle, p90, p99 = np.percentile(finite, [50, 90, 99]) if finite.size else [np.nan] * 3
        share = self._clipped / len(norms)
        return {
            "epoch": epoch,
            "steps": len(norms),
            "not_finite": int(norms.size - finite.size),
            "threshold": self._threshold,
            "share": share,
            "median": float(middle),
            "p90": float(p90),
            "p99": float(p99),
            "word": word(share) if self._threshold is not None else "not clipped",
        }


def word(share: float) -> str:
    """One word for clipping that changes this share of the steps."""
    return "step limiter" if share > LIMITER_SHARE else "safety net"
