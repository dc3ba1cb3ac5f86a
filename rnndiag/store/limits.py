"""Size limits of the format. The writer keeps to them, and the reader rejects anything larger."""

from __future__ import annotations

FORMAT = (1, 0)
"""Version of the format: a higher major number is refused, a higher minor one is read."""

MIB = 1 << 20
GIB = 1 << 30

JSON_BYTES = 4 * MIB
INTEGER_DIGITS = 20
RECORDING_BYTES = 1 * GIB
ARRAYS = 65536
DIMS = 8
NAME_BYTES = 4096
PHASE_BYTES = 64

SEGMENT_ROLLS_AT = 256 * MIB
SEGMENT_RECORDINGS = 50_000
SEGMENT_BYTES = SEGMENT_ROLLS_AT + RECORDING_BYTES + MIB
"""Largest segment that the writer makes; the reader reads nothing of a larger file."""

SEGMENT_MEMBERS = SEGMENT_RECORDINGS + 2
SEARCH_BYTES = 256 * MIB
"""Most bytes of a damaged segment that are searched for further recordings."""

BUDGET_BYTES = 1 * GIB
"""Default size limit of a run on disk, all ranks together."""
