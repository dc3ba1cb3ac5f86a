"""What all patterns share: embedding what comes in, a recurrence, a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_modules.batch import Batch
from lightning_modules.recurrence.recurrence import Recurrence
from lightning_modules.registry import Registry
from lightning_modules.tasks.task import Task, Tokens, Vectors
from lightning_modules.training.estimator import Estimator
from rnndiag.errors import BadArgument

MakeRecurrence = Callable[[int], Recurrence]
"""Input size -> a recurrence."""


class OneHot(nn.Module):
    """Token ids to unit vectors: W_ih picks a column."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) -> (..., count)."""
        return nn.functional.one_hot(tokens, self.count).to(torch.get_default_dtype())


def reader(kind: object, embedding: int | None) -> tuple[nn.Module, int]:
    """What turns inputs into vectors, and their size."""
    if isinstance(kind, Vectors):
        return nn.Identity(), kind.size
    if isinstance(kind, Tokens) and embedding is None:
        return OneHot(kind.count), kind.count
    if isinstance(kind, Tokens) and embedding is not None:
        return nn.Embedding(kind.count, embedding), embedding
    raise BadArgument(
        f"A {type(kind).__name__} cannot be read step by step.", "Choose another task."
    )


class Pattern(nn.Module, ABC):
    """A network for one pattern: batch -> predictions in the shape of the task's targets."""

    recurrence: Recurrence

    def __init__(
        self,
        task: Task,
        make: MakeRecurrence,
        embedding: int | None = None,
        teacher_forcing: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0.0 <= teacher_forcing <= 1.0:
            raise BadArgument(f"teacher_forcing is {teacher_forcing}.", "Take a share from 0 to 1.")
        self.teacher_forcing = teacher_forcing
        self.build(task, make, embedding)

    @abstractmethod
    def build(self, task: Task, make: MakeRecurrence, embedding: int | None) -> None:
        """Make the submodules."""

    @abstractmethod
    def forward(self, batch: Batch, unroll: Estimator) -> Tensor:
        """Predictions; `unroll` runs the recurrence."""


def head(recurrence: Recurrence, outputs: int) -> nn.Module:
    """The matrix V from outputs of the recurrence to predictions."""
    return nn.Identity() if recurrence.is_readout else nn.Linear(recurrence.features, outputs)


PATTERNS: Registry[Callable[..., Pattern]] = Registry("pattern", "lightning_modules.patterns")
