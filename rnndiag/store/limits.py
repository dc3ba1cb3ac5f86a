"""What a run may hold at most. The writer keeps to it, and the reader believes nothing beyond it."""

from __future__ import annotations

FORMAT = (1, 0)
"""Version of the format: a higher major number is refused, a higher minor one is read."""

MIB = 1 << 20
GIB = 1 << 30

JSON_BYTES = 1 * MIB
INTEGER_DIGITS = 20
RECORDING_BYTES = 1 * GIB
ARRAYS = 65536
DIMS = 8
NAME_BYTES = 4096
PHASE_BYTES = 64

SEGMENT_ROLLS_AT = 256 * MIB
SEGMENT_RECORDINGS = 50_000
SEGMENT_BYTES = SEGMENT_ROLLS_AT + RECORDING_BYTES + MIB
"""No segment of ours is larger; of a larger file nothing is read."""

SEGMENT_MEMBERS = SEGMENT_RECORDINGS + 2
SEARCH_BYTES = 256 * MIB
"""How far a damaged segment is searched for the next recording, in all."""

BUDGET_BYTES = 1 * GIB
"""What one run may take on disk, all ranks together, unless told otherwise."""
