"""Finds the chunks before a given one: layer runs that end in its initial state."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.truncation.chains.joined_chunks import continues
from rnndiag.engine.truncation.chains.seam_memory import without_gradients
from rnndiag.recorder.replay.call_memory import CallMemory
from rnndiag.recorder.replay.kept_call import KeptCall, near
from rnndiag.store.layer_names import recurrence

Group = tuple[LayerRun, ...]
"""The runs of one recurrence that are cut together: one layer, or the layers of a stack, lowest first."""


class Chunks:
    """Layer runs of this batch, and kept calls of earlier steps."""

    def __init__(self, call_memory: CallMemory, most: int) -> None:
        self._call_memory, self._most = call_memory, most
        self._runs: dict[str, deque[LayerRun]] = defaultdict(lambda: deque(maxlen=2 * most))
        self.unlike = False
        """Whether a kept call gave other results when rerun."""

    def add(self, runs: Sequence[LayerRun]) -> None:
        """Add the runs of a backward pass, as possible predecessors of later chunks."""
        for run in runs:
            if not run.reverse:
                self._runs[recurrence(run.name)].append(without_gradients(run))

    def forget(self) -> None:
        """Drop the runs at the start of a new batch; kept calls stay."""
        self._runs.clear()

    def before(self, group: Group) -> list[Group]:
        """The chunks before this one, oldest first, as far back as they are kept."""
        found: list[Group] = []
        older: KeptCall | None = None
        while len(found) < self._most and all(map(_cut, group)):
            earlier = None if older else self._among_runs(group)
            if earlier is None:
                older, earlier = self._among_calls(group, older)
            if earlier is None:
                break
            found.insert(0, earlier)
            group = earlier
        return found

    def _among_runs(self, group: Group) -> Group | None:
        found = [
            next(
                (one for one in reversed(self._runs[recurrence(run.name)]) if _before(one, run)),
                None,
            )
            for run in group
        ]
        kept = tuple(run for run in found if run is not None)
        return kept if len(kept) == len(group) else None

    def _among_calls(
        self, group: Group, older: KeptCall | None
    ) -> tuple[KeptCall | None, Group | None]:
        """The last kept call before `older` whose layers end in the group's initial states."""
        for calls in self._call_memory.calls():
            own = list(calls)
            if older is not None:
                own = own[: own.index(older)] if older in own else []
            for call in reversed(own):
                if not _may_end_in(call, group[0]):
                    continue
                runs = call.layer_runs
                self.unlike = self.unlike or not runs
                names = [recurrence(run.name) for run in group]
                if not all(name in runs for name in names):
                    continue
                earlier = tuple(runs[name] for name in names)
                if all(map(continues, earlier, group)):
                    return call, earlier
        return older, None


def _cut(run: LayerRun) -> bool:
    """Whether the run starts from a detached state that is not zero."""
    return not run.tie.startswith("run:") and any(bool(part.any()) for part in run.initial)


def _before(one: LayerRun, run: LayerRun) -> bool:
    return one.inputs is not run.inputs and continues(one, run)


def _may_end_in(call: KeptCall, run: LayerRun) -> bool:
    """Whether some row of the state returned by the call equals the initial state of the run."""
    start = run.initial[0]
    return any(
        row.numel() == start.numel() and near(row.reshape(start.shape), start)
        for row in call.end[0]
    )
