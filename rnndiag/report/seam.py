"""The recorded seam of chunked training: credit across the seam and the share that the cut removes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rnndiag.report.context import Context
from rnndiag.stats.advice import at_hand, percent, seam_name
from rnndiag.stats.over_recordings import median_over_recordings


@dataclass(frozen=True)
class SeamFound:
    """The seam of one recurrence from the newest recording that measured it; shares are medians."""

    name: str
    credit: np.ndarray
    """ln of the credit profile across the seam, (lags,)."""
    own: float
    """Number of steps of a chunk."""
    kept: float
    share: float
    """Share of the credit of a chunk's losses that lies before the seam."""
    bias: float
    cosine: float

    @property
    def sentence(self) -> str:
        """What the cut at the seam removes, in one sentence."""
        return (
            f"Training cuts the state every {self.own:.0f} steps: that throws away {percent(self.share)} of the credit "
            f"of a chunk's losses and changes their gradient by {percent(self.bias)} (cosine {self.cosine:.3f}), as "
            f"far as the {self.kept:.0f} steps kept before the cut tell."
        )


def seam_of(context: Context, layer: str) -> SeamFound | None:
    """The seam of a layer, or of the stack that it is part of; None if none was measured."""
    name = seam_name(context.run, layer) if layer else None
    credit = None if name is None else context.last("seam_credit", name)
    if name is None or credit is None:
        return None

    def typical(quantity: str) -> np.ndarray:
        found = at_hand(context.run, quantity, name, context.run.judged())
        return np.full((), np.nan) if found is None else median_over_recordings(found.values)

    own, kept = np.broadcast_to(typical("seam_steps"), 2)
    share, bias, cosine = (float(typical(f"seam_{key}")) for key in ("share", "bias", "cosine"))
    return SeamFound(name, np.asarray(credit.values, float), own, kept, share, bias, cosine)
