"""Keeps a run within its size limit: first lag x lag matrices are stored less often, then recordings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rnndiag.store.limits import BUDGET_BYTES
from rnndiag.store.quantities import QUANTITIES
from rnndiag.store.recording import Recording

MATRIX_EVERY = 10
MATRIX_SHARE = 1 / 16
"""Matrices are stored with every recording until they have used this share of the budget, then with every 10th."""

DOUBLINGS = (1 / 2, 3 / 4, 7 / 8)
"""Shares of the budget at which the interval between recordings doubles."""

LAG_DIMS = frozenset({"output", "source", "lag"})


def is_matrix(name: str, dims: tuple[str, ...]) -> bool:
    """Whether a quantity has lags along two dims, so that its size grows with their square."""
    known = QUANTITIES.get(name)
    return sum(dim in LAG_DIMS for dim in (known.dims if known else dims)) > 1


@dataclass
class SizeBudget:
    """Counts the bytes used by one writer, and decides what is still stored."""

    max_bytes: float = BUDGET_BYTES
    used: int = 0
    matrix_bytes: int = 0
    recordings: int = 0
    first_step: int | None = None
    last_step: int | None = None
    base_interval: int | None = None
    _told_factor: int = 1
    _told_matrices: bool = False

    @property
    def factor(self) -> int:
        """Current factor on the intervals between recordings: 1, 2, 4 or 8."""
        factor: int = 2 ** sum(self.used >= share * self.max_bytes for share in DOUBLINGS)
        return factor

    def wants(self, step: int) -> bool:
        """Whether a recording at this step is due under the stretched interval."""
        if self.factor == 1 or self.last_step is None or self.base_interval is None:
            return True
        gap = step - self.last_step
        return gap <= 0 or gap >= self.factor * self.base_interval

    def fits(self, size: int) -> bool:
        """Whether `size` more bytes fit into the budget."""
        return self.used + size <= self.max_bytes

    def thinned(self, recording: Recording) -> Recording:
        """The recording without its matrices if they are not due now, with a note that says so."""
        matrices = [m for m in recording.measurements if is_matrix(m.name, m.dims)]
        if not matrices or self.recordings % MATRIX_EVERY == 0:
            return recording
        if self.matrix_bytes < MATRIX_SHARE * self.max_bytes:
            return recording
        reason = f"size budget: on every {MATRIX_EVERY}th recording"
        not_measured = dict(recording.notes.get("not_measured") or {})
        not_measured.update({m.name: reason for m in matrices})
        kept = tuple(m for m in recording.measurements if m not in matrices)
        notes = {**recording.notes, "not_measured": not_measured}
        return replace(recording, measurements=kept, notes=notes)

    def stored(self, recording: Recording, size: int) -> list[str]:
        """Count a stored recording; returns messages for the log when a threshold was passed."""
        if self.factor == 1 and self.last_step is not None and recording.step > self.last_step:
            gap = recording.step - self.last_step
            self.base_interval = min(gap, self.base_interval or gap)
        self.last_step = recording.step
        self.recordings += 1
        self.used += size
        self.matrix_bytes += sum(
            m.values.nbytes for m in recording.measurements if is_matrix(m.name, m.dims)
        )
        said = []
        budget = f"{self.max_bytes / 2**20:.0f} MiB"
        if self.matrix_bytes >= MATRIX_SHARE * self.max_bytes and not self._told_matrices:
            self._told_matrices = True
            said.append(
                f"lag x lag matrices took {MATRIX_SHARE:.0%} of the size budget of {budget}: "
                f"from now on they are stored with every {MATRIX_EVERY}th recording"
            )
        if self.factor > self._told_factor:
            self._told_factor = self.factor
            said.append(
                f"{self.used / self.max_bytes:.0%} of the size budget of {budget} is used: "
                f"intervals between recordings are now {self.factor} times as long"
            )
        return said
