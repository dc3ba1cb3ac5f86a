"""The loop of truncated BPTT: chunks of k1 steps, a carried and detached state, one update per chunk or batch.

Losses of a chunk reach the last k2 steps (the window). With k2 = k1 that is the chunk itself. With k2 > k1 the steps
before the chunk are rerun from a kept state, with current weights and the random draws of their first run. With k2 < k1
the first steps of the chunk are run without a graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from rnndiag.errors import BadArgument, require_whole
from rnndiag.train.auto import Auto
from rnndiag.train.nested import batch_dim_of, detached, map_tensors, tensors_of, where_rows
from rnndiag.train.random_state import RandomState
from rnndiag.train.splitting import TimeBatch
from rnndiag.train.window_looks import WindowLooks

TBPTTStep = Callable[[Any, Any], tuple[Any, Any]]
"""(chunk, state) -> (loss, new state); loss: a tensor, a dict with "loss", or a tuple with one loss per optimizer."""
Update = Literal["chunk", "batch"]


class Updates(Protocol):
    """The update operations of a loop."""

    def zero_grad(self) -> None:
        """Clear the gradients."""

    def backward(self, losses: tuple[Tensor, ...]) -> None:
        """Add the gradient of one chunk's losses."""

    def step(self) -> None:
        """Make one optimizer step."""

    def accumulating(self) -> AbstractContextManager[Any]:
        """Context for backward passes that are not followed by an optimizer step."""


@dataclass(frozen=True)
class BatchResult:
    """Result of training on one batch."""

    loss: Tensor
    """Mean of the chunks' losses, weighted by their steps; detached."""
    state: Any
    """The state after the last step, detached."""
    chunks: int
    updates: int
    """Number of optimizer steps."""


@dataclass(frozen=True)
class _Kept:
    """A chunk that was trained on, kept to be rerun at the start of a longer window."""

    batch: TimeBatch
    start: int
    stop: int
    before: Any
    draws: RandomState
    reset: Tensor | None
    """(B,) bool: sequences that began with this chunk."""


class ChunkLoop:
    """Truncated BPTT over batches. Keeps what longer windows need from one batch to the next.

    Args:
        step: (chunk, state) -> (loss, state). State None at the start of a sequence.
        updates: Backward passes and optimizer steps.
        k1: Steps of a chunk, one update each. None: the whole batch.
        window: k2, how many steps the losses of a chunk reach back. None: k1.
        update: One optimizer step per "chunk", or per "batch" with the losses averaged over its chunks.
        accumulate: Number of chunks (batches) per optimizer step; their losses are averaged.
        time_dim: Dimension of time in the tensors of a batch.
    """

    def __init__(
        self,
        step: TBPTTStep,
        updates: Updates,
        k1: int | None,
        window: int | None = None,
        *,
        update: Update = "chunk",
        accumulate: int = 1,
        time_dim: int = 1,
    ) -> None:
        whole: dict[str, Any] = {"k1": k1, "window": window, "accumulate": accumulate}
        for name, value in whole.items():
            if value is not None:
                require_whole(name, value, _SETS_ITSELF if value == "auto" else "")
        if update not in ("chunk", "batch"):
            raise BadArgument(f"update is {update!r}.", "Give 'chunk' or 'batch'.")
        self.step, self.updates = step, updates
        self.k1, self.window = k1, window
        self.update, self.accumulate, self.time_dim = update, accumulate, time_dim
        self.replaying = False
        """True while steps before a chunk are run again."""
        self.waiting = 0
        """Number of chunks (batches) since the last optimizer step."""
        self.resume: tuple[int, Any] | None = None
        """Within a batch: the number of chunks done at the last optimizer step, and the state after them."""
        self.keep = 0
        """Number of steps to keep for a window that may grow."""
        self.looks: WindowLooks | None = None
        """Takes the looks for a window chosen during training; see `follow`."""
        self.steps = 0
        """Number of optimizer steps so far."""
        self._kept: deque[_Kept] = deque()

    def forget(self) -> None:
        """Drop kept chunks at the start of a new stream."""
        self._kept.clear()

    def follow(
        self, auto: Auto, model: nn.Module, settle: Callable[[int], int] = lambda window: window
    ) -> None:
        """Let a controller set the window.

        Args:
            auto: The controller; chunks are kept for its `horizon` of steps.
            model: The module that `step` runs; its recurrent layers are watched in looks.
            settle: Maps the window after a look to the one to use, such as that of rank 0.
        """
        self.looks = WindowLooks(auto, model, settle)
        self.keep, self.window = auto.horizon, auto.window

    def kept(self) -> list[dict[str, Any]]:
        """The kept chunks as plain tensors, for a checkpoint."""
        return [
            {
                "batch": one.batch.piece(one.start, one.stop),
                "before": one.before,
                "draws": [one.draws.cpu, one.draws.gpu],
                "reset": one.reset,
            }
            for one in self._kept
        ]

    def restore(self, kept: list[dict[str, Any]]) -> None:
        """Restore the chunks that `kept` returned."""
        self._kept.clear()
        for one in kept:
            cut = TimeBatch(one["batch"], self.time_dim)
            device = _device(cut)
            cpu, gpu = (None if part is None else part.cpu() for part in one["draws"])
            draws = RandomState(cpu, gpu, device)  # type: ignore[arg-type]
            self._kept.append(_Kept(cut, 0, cut.T, one["before"], draws, one["reset"]))

    def bounds(self, T: int) -> list[tuple[int, int]]:
        """(start, stop) of every chunk of a batch of T steps."""
        k1 = self.k1 or T
        return [(start, min(start + k1, T)) for start in range(0, T, k1)]

    def run(
        self,
        batch: Any,
        state: Any = None,
        *,
        reset: Tensor | None = None,
        first: int = 0,
        flush: bool = False,
    ) -> BatchResult:
        """Train on a batch.

        Args:
            batch: See `TimeBatch`.
            state: State before its first step.
            reset: (B,) bool, sequences that begin with this batch; `state` already holds their initial state.
            first: Number of the chunk to begin with.
            flush: Make an optimizer step after the last chunk even if fewer than `accumulate` are waiting.
        """
        cut = TimeBatch(batch, self.time_dim)
        if state is None:
            self.forget()
        state = cut.sort(state)
        if self.waiting == 0 or self.update == "batch":
            self.resume = (first, state)
        bounds = self.bounds(cut.T)
        total, weight, updates = None, 0, 0
        for number, (start, stop) in enumerate(bounds):
            if number < first:
                continue
            ends = number + 1 == len(bounds)
            if self.looks is not None and self.looks.due(self.steps, number, len(bounds)):
                self._take_look(cut, start, stop, state)
            losses, state = self._forward(cut, start, stop, state, reset if number == 0 else None)
            state = detached(state)
            counted = self.update == "chunk" or ends
            steps_now = counted and (self.waiting + 1 >= self.accumulate or (flush and ends))
            if self.waiting == 0 and (self.update == "chunk" or number == first):
                self.updates.zero_grad()
            share = self.accumulate * (1 if self.update == "chunk" else len(bounds))
            if losses:
                _require_gradient(losses)
                with nullcontext() if steps_now else self.updates.accumulating():
                    scaled = losses if share == 1 else tuple(one / share for one in losses)
                    self.updates.backward(scaled)
                value = losses[0].detach() * (stop - start)
                total = value if total is None else total + value
                weight += stop - start
            self.waiting += counted
            if steps_now:
                self.waiting = 0
                updates += 1
                self.updates.step()
                self.steps += 1
                self.resume = (number + 1, state)
        self.resume = None
        mean = torch.zeros(()) if total is None else total / weight
        return BatchResult(mean, cut.unsort(state), len(bounds) - first, updates)

    def _forward(
        self, cut: TimeBatch, start: int, stop: int, state: Any, reset: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Any]:
        """Losses of a chunk with a graph over the last `window` steps, and the state after it."""
        window = stop - start if self.window is None else self.window
        reach = window - (stop - start)
        keep = max(self.keep, window)
        if self.k1 is None or keep <= self.k1:
            return self._windowed(cut, start, stop, state, reach)
        now = _Kept(cut, start, stop, state, RandomState.now(_device(cut)), reset)
        if self._kept and reach > 0:
            with self._replay():
                state = self._again(reach, now)
            # Rerunning earlier steps drew random numbers; the chunk itself draws as without that.
            now.draws.restore()
        losses, after = self._windowed(cut, start, stop, state, reach)
        self._kept.append(now)
        held = sum(one.stop - one.start for one in self._kept)
        # The next chunk has at least one step, so its window needs at most keep - 1 before it.
        while held - (self._kept[0].stop - self._kept[0].start) >= keep - 1:
            first = self._kept.popleft()
            held -= first.stop - first.start
        return losses, after

    def _take_look(self, cut: TimeBatch, start: int, stop: int, state: Any) -> None:
        """Measure what the window leaves out: run the chunk's losses with a graph over the whole horizon."""
        looks = self.looks
        assert looks is not None
        horizon = looks.auto.horizon
        reach = horizon - (stop - start)
        held = sum(one.stop - one.start for one in self._kept)
        whole = (
            held >= reach or state is None or (bool(self._kept) and self._kept[0].before is None)
        )
        if not whole:
            return  # the stream has not been followed that far yet
        rows = looks.rows(cut)
        now = _Kept(cut, start, stop, state, RandomState.now(_device(cut)), None)

        def loss() -> Tensor:
            before = self._again(min(reach, held), now, rows) if held and reach > 0 else state
            if not (held and reach > 0):
                before = _rows_of(state, rows, cut.B)
            losses, _ = self._call(cut, start, stop, before, rows)
            return losses[0]

        with self._replay():
            looks.look(loss, self.steps)
        self.window = looks.settle(looks.auto.window)

    def _windowed(
        self, cut: TimeBatch, start: int, stop: int, state: Any, reach: int
    ) -> tuple[tuple[Tensor, ...], Any]:
        """Run a chunk; with reach < 0 its first -reach steps have no graph."""
        if reach < 0:
            with torch.no_grad():
                _, state = self._call(cut, start, start - reach, state)
            start -= reach
        return self._call(cut, start, stop, state)

    def _again(self, reach: int, now: _Kept, rows: Tensor | None = None) -> Any:
        """The state before step `now`, with a graph over the preceding `reach` steps; `rows`: restricted to these
        sequences."""
        chosen: list[_Kept] = []
        steps = 0
        for kept in reversed(self._kept):
            chosen.insert(0, kept)
            steps += kept.stop - kept.start
            if steps >= reach:
                break
        state = _rows_of(chosen[0].before, rows, now.batch.B)
        for place, kept in enumerate(chosen):
            if place:
                state = _joined(state, kept, rows)
            kept.draws.restore()
            skipped = max(0, steps - reach) if place == 0 else 0
            if skipped:
                with torch.no_grad():
                    _, state = self._call(kept.batch, kept.start, kept.start + skipped, state, rows)
            _, state = self._call(kept.batch, kept.start + skipped, kept.stop, state, rows)
        return _joined(state, now, rows)

    @contextmanager
    def _replay(self) -> Iterator[None]:
        self.replaying = True
        try:
            yield
        finally:
            self.replaying = False

    def _call(
        self, cut: TimeBatch, start: int, stop: int, state: Any, only: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], Any]:
        """The losses and the new state of steps start .. stop-1, of the sequences `only` where given."""
        if only is not None:
            return self._returned(self.step(cut.rows(start, stop, only), state))
        rows = cut.alive(start)
        before = state
        # Packed sequences are sorted by length: those that go on are the first rows.
        if rows is not None and state is not None and rows < cut.alive(0):  # type: ignore[operator]
            whole = cut.alive(0) or 0
            state = map_tensors(
                lambda part: part.narrow(batch_dim_of(part, whole), 0, rows), before
            )
            losses, after = self._returned(self.step(cut.piece(start, stop), state))

            def joined(new: Tensor, old: Tensor) -> Tensor:
                dim = batch_dim_of(old, whole)
                return torch.cat([new, old.narrow(dim, rows, whole - rows)], dim)

            return losses, map_tensors(joined, after, before)
        return self._returned(self.step(cut.piece(start, stop), state))

    @staticmethod
    def _returned(found: Any) -> tuple[tuple[Tensor, ...], Any]:
        """Losses and new state."""
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise BadArgument(
                f"tbptt_step returned a {type(found).__name__}, not a loss and a state.",
                "Return (loss, state): the state is what the next chunk starts from.",
            )
        return losses_of(found[0]), found[1]


_SETS_ITSELF = "For a window that sets itself give the mixin window='auto', or a ChunkLoop `follow(Auto(...), model)`."


def _require_gradient(losses: tuple[Tensor, ...]) -> None:
    for loss in losses:
        if not loss.requires_grad:
            raise BadArgument(
                "tbptt_step returned a loss without a gradient.",
                "Leave out torch.no_grad and .detach() on the way to it, or return None for a chunk without a loss.",
            )


def losses_of(found: Any) -> tuple[Tensor, ...]:
    """The losses in the result of a step; () for None."""
    if found is None:
        return ()
    if isinstance(found, dict):
        found = found["loss"]
    losses = tuple(found) if isinstance(found, (tuple, list)) else (found,)
    for loss in losses:
        if not isinstance(loss, Tensor):
            raise BadArgument(
                f"tbptt_step returned a loss of type {type(loss).__name__}.",
                "Return (loss, state): a tensor, a dict with 'loss', or one loss an optimizer.",
            )
        if loss.numel() != 1:
            raise BadArgument(
                f"tbptt_step returned a loss of shape {tuple(loss.shape)}.",
                "Return its mean or sum, one number.",
            )
    return losses


def _joined(state: Any, following: _Kept, rows: Tensor | None = None) -> Any:
    """The state from which a chunk continues; for sequences that began with it, their own initial state."""
    if following.reset is None:
        return state
    begins = following.reset if rows is None else following.reset[rows]
    before = _rows_of(following.before, rows, following.batch.B)
    return where_rows(~begins, state, before)


def _rows_of(state: Any, rows: Tensor | None, batch: int) -> Any:
    if rows is None:
        return state
    return map_tensors(
        lambda part: part.index_select(batch_dim_of(part, batch), rows.to(part.device)), state
    )


def _device(cut: TimeBatch) -> torch.device:
    return next((part.device for part in tensors_of(cut.piece(0, 1))), torch.device("cpu"))
