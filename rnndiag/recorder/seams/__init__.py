"""Across the seam: keeps the chunks before a recorded one, and says what the cut between them throws away."""

from rnndiag.recorder.seams.keeper import Keeper
from rnndiag.recorder.seams.seams import Seams

__all__ = ["Keeper", "Seams"]
