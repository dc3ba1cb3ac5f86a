"""Identifies the running backward pass: every gradient is stored under the id of its autograd graph task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


def running_task() -> int:
    """The id of autograd's current graph task, -1 outside of a backward pass. Ids are never reused."""
    return int(torch._C._current_graph_task_id())


Hook = Callable[..., None]


@dataclass
class Tasks:
    """The backward passes seen so far, with facts that can only be read while they run."""

    loss_scale: Callable[[], float]
    scales: dict[int, float] = field(default_factory=dict)
    """Task -> the loss scale during it, in order of appearance."""
    guard: Callable[[Hook], Hook] = lambda hook: hook
    """Wraps hooks called by autograd, so that a fault of the recorder does not end the backward pass."""
    double: set[int] = field(default_factory=set)
    """Tasks whose gradients are themselves part of a graph (create_graph=True)."""

    def enter(self) -> int:
        """Register the running task and return its id."""
        task = running_task()
        if task not in self.scales:
            self.scales[task] = float(self.loss_scale())
            if torch.is_grad_enabled():
                self.double.add(task)
        return task

    def clear(self) -> None:
        """Drop all passes."""
        self.scales.clear()
        self.double.clear()
