"""Which backward pass is running: every gradient is kept under the key of its graph task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


def running_task() -> int:
    """The id of the graph task that calls this, -1 outside of a backward pass. Ids are never used twice."""
    return int(torch._C._current_graph_task_id())


Hook = Callable[..., None]


def _unguarded(hook: Hook) -> Hook:
    return hook


@dataclass
class Tasks:
    """The backward passes seen so far, with what has to be read while they run."""

    loss_scale: Callable[[], float]
    scales: dict[int, float] = field(default_factory=dict)
    """Task -> the loss scale at its time, in order of appearance."""
    guard: Callable[[Hook], Hook] = _unguarded
    """Wraps a hook that autograd calls, so that a fault of the recorder does not end the backward pass."""
    double: set[int] = field(default_factory=set)
    """Tasks whose gradients are themselves part of a graph (create_graph=True)."""

    def enter(self) -> int:
        """Note the running task and return its key."""
        task = running_task()
        if task not in self.scales:
            self.scales[task] = float(self.loss_scale())
            if torch.is_grad_enabled():
                self.double.add(task)
        return task

    def clear(self) -> None:
        """Forget all passes."""
        self.scales.clear()
        self.double.clear()
