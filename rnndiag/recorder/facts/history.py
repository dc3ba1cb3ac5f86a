"""A ring buffer of cheap scalars of every training step, so that steps between recordings are documented.

Scalars of a GPU stay there and are fetched in batches: reading one every step would make the host wait for the GPU.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from torch import Tensor

from rnndiag.store.measurement import Measurement

LENGTH = 2048
"""Number of latest steps that are kept between two recordings."""
FETCH_EVERY = 64
"""Number of steps whose GPU scalars are fetched at a time."""
MEDIAN_OVER = 65
"""Number of finite norms over which the running median is taken."""
REFRESHED = 8
"""Recompute the median every REFRESHED norms."""
ENOUGH = 16
"""Number of norms needed before a jump can be detected."""

ROUNDING = 1e-4
"""A norm that shrinks by less than this share between the backward pass and the step was not clipped."""

Scalar = float | Tensor


def number(value: Scalar | None) -> float:
    """The value as float; NaN for None."""
    return math.nan if value is None else float(value)


@dataclass(slots=True)
class StepFacts:
    """One optimizer step: its number, loss, gradient norm before clipping, learning rate and how it was clipped."""

    step: int
    norm: Scalar | None = None
    """Gradient norm before clipping; None: the optimizer has no gradient."""
    loss: Scalar | None = None
    """None: the training step returned no loss."""
    learning_rate: float = math.nan
    clip_at: float | None = None
    """The clipping threshold for `clip_size`; None: the Trainer does not clip."""
    optimizer: int = 0
    """Index of the optimizer within the batch: norms of different optimizers are not comparable."""
    clip_size: Scalar | None = None
    """The clipped quantity: the norm, or the largest entry if values are clipped."""

    stepped: Scalar | None = None
    """The gradient norm used by the optimizer if the program clips by itself; None: not measured."""

    @property
    def clipped(self) -> bool:
        """Whether clipping changed the step."""
        if self.clip_at is not None:
            return number(self.norm if self.clip_size is None else self.clip_size) > self.clip_at
        return self.stepped is not None and float(self.stepped) < (1.0 - ROUNDING) * number(
            self.norm
        )

    @property
    def threshold(self) -> float | None:
        """The clipping threshold; for clipping by the program itself, the norm after it."""
        if self.clip_at is None and self.stepped is not None and self.clipped:
            return float(self.stepped)
        return self.clip_at


@dataclass
class RunningMedian:
    """Running median of the last values, recomputed every few values: sorting every step would cost more than the
    norm."""

    value: float = math.nan
    count: int = 0
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=MEDIAN_OVER))

    def add(self, value: float) -> None:
        """Add a value."""
        self._last.append(value)
        self.count += 1
        if self.count <= ENOUGH or self.count % REFRESHED == 0:
            self.value = median(self._last)


@dataclass
class History:
    """The steps since the last recording, and the running medians used to detect jumps."""

    entries: deque[StepFacts] = field(default_factory=lambda: deque(maxlen=LENGTH))
    _norms: dict[int, RunningMedian] = field(default_factory=dict)
    """Running median of the norm, by optimizer."""
    waiting: list[StepFacts] = field(default_factory=list)
    """Steps added since the last `settle`."""
    dropped: int = 0

    def add(self, facts: StepFacts) -> None:
        """Add a step that is about to be made."""
        self.dropped += len(self.entries) == LENGTH
        self.entries.append(facts)
        self.waiting.append(facts)

    def loss(self, loss: Scalar | None, since_step: int) -> None:
        """Set the loss of the steps of this batch."""
        for facts in reversed(self.entries):
            if facts.step < since_step:
                break
            facts.loss = loss

    def settle(self, at_once: bool) -> list[StepFacts]:
        """Steps whose scalars have been fetched. GPU scalars are fetched in batches, unless `at_once`."""
        if not self.waiting:
            return []
        norm = self.waiting[-1].norm
        if isinstance(norm, Tensor) and norm.is_cuda:
            if not at_once and len(self.waiting) < FETCH_EVERY:
                return []
            _fetch(self.waiting)
        settled, self.waiting = self.waiting, []
        return settled

    def judge(self, facts: StepFacts, factor: float) -> tuple[str, float] | None:
        """("gradient" | "jump", running median of the norm) if the step is an accident, else None."""
        norms = self._norms.get(facts.optimizer)
        if norms is None:
            norms = self._norms[facts.optimizer] = RunningMedian()
        usual = norms.value
        if facts.norm is None:
            return None
        norm = float(facts.norm)
        if not math.isfinite(norm):
            return "gradient", usual
        jumped = norms.count >= ENOUGH and norm > factor * usual > 0
        norms.add(norm)
        return ("jump", usual) if jumped else None

    def measurements(self) -> list[Measurement]:
        """The ring buffer as measurements; empties it."""
        _fetch(self.entries)
        kept, self.entries = self.entries, deque(maxlen=LENGTH)
        if not kept:
            return []
        columns = {
            "history_step": [facts.step for facts in kept],
            "history_gradient_norm": [number(facts.norm) for facts in kept],
            "history_clipped": [float(facts.clipped) for facts in kept],
            "history_learning_rate": [facts.learning_rate for facts in kept],
        }
        if any(facts.loss is not None for facts in kept):  # NaN is a loss that is NaN
            columns["history_loss"] = [number(facts.loss) for facts in kept]
        return [Measurement.of(name, np.asarray(values)) for name, values in columns.items()]


def _fetch(entries: deque[StepFacts] | list[StepFacts]) -> None:
    """Copy GPU scalars of all entries to the host in one transfer; they become 0-dim CPU tensors."""
    pending = [
        (facts, name, value)
        for facts in entries
        for name in ("norm", "loss", "clip_size", "stepped")
        if isinstance(value := getattr(facts, name), Tensor) and value.is_cuda
    ]
    if pending:
        stacked = torch.stack([value.float().reshape(()) for *_, value in pending]).cpu()
        for (facts, name, _), value in zip(pending, stacked, strict=True):
            setattr(facts, name, value)
