"""What memory holds: states of a trained character program along held-out text, on their two main directions.

Points that lie together were read as alike. Their labels are the last characters read, so a figure can colour them
by suffix: low layers order their states by it, high layers by more than that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from torch import Tensor

import rnndiag
from lightning_modules.program import Program
from lightning_modules.tasks.task import Writing
from rnndiag.errors import BadArgument

SUFFIX = 3
"""How many characters a label shows: the one just read, and those before it."""


@dataclass(frozen=True)
class LayerMap:
    """One layer's states along a text of N characters."""

    layer: str
    labels: tuple[str, ...]
    """The last characters read, at every step."""
    points: np.ndarray
    """(N, 2)"""
    variance: np.ndarray
    """(2,): the share of the states' variance that each direction holds."""
    states: np.ndarray
    """(N, H)"""

    def measurements(self) -> tuple[rnndiag.Measurement, ...]:
        """As a run stores them."""
        directions = {"component2": ("1", "2")}
        return (
            rnndiag.Measurement.of(
                "state_map",
                self.points,
                layer=self.layer,
                coordinates={"token": self.labels, **directions},
            ),
            rnndiag.Measurement.of(
                "state_map_variance", self.variance, layer=self.layer, coordinates=directions
            ),
        )


def project(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States (N, H) on their first two principal components: points (N, 2) and the components' shares (2,).

    The sign of a component is that of its largest entry, so that the same states give the same map.
    """
    centred = states - states.mean(0)
    _, size, directions = np.linalg.svd(centred, full_matrices=False)
    total = float((size**2).sum())
    kept = directions[:2]
    largest = np.abs(kept).argmax(1)
    kept = kept * np.sign(kept[np.arange(len(kept)), largest])[:, None]
    share = size[:2] ** 2 / total if total > 0.0 else np.zeros(2)
    return centred @ kept.T, share


@torch.no_grad()
def state_map(program: Program, text: str | None = None, characters: int = 400) -> list[LayerMap]:
    """A map of every layer, along `text` or the task's held-out text."""
    task = program.task
    if not isinstance(task, Writing):
        raise BadArgument(
            f"The task {type(task).__name__} has no characters to read.", "Take 'text' or 'hello'."
        )
    read = (task.held_out() if text is None else text)[:characters]
    if len(read) < 2:
        raise BadArgument(f"A text of {len(read)} characters makes no map.", "Take a longer one.")
    was_training = program.training
    program.eval()
    steps = list(_states(program, torch.tensor(task.encode(read), device=program.device)))
    program.train(was_training)
    starts = [max(0, end - SUFFIX) for end in range(1, len(read) + 1)]
    labels = tuple(read[start : end + 1] for end, start in enumerate(starts))
    names = program.network.recurrence.layer_names("network.recurrence")
    maps = []
    for name, rows in zip(names, zip(*steps, strict=True), strict=True):
        states = torch.stack(rows).double().cpu().numpy()
        maps.append(LayerMap(name, labels, *project(states), states))
    return maps


def _states(program: Program, tokens: Tensor) -> Iterator[tuple[Tensor, ...]]:
    recurrence, reader = program.network.recurrence, program.network.get_submodule("reader")
    state = None
    for token in tokens:
        _, state = recurrence(reader(token[None, None]), state)
        yield tuple(h[0] for h in recurrence.layer_states(state))


class StateMap(L.Callback):
    """Adds the map to the run of the GradientDiagnostics callback, at the end of the fit. List it before that one."""

    def __init__(self, characters: int = 400) -> None:
        self.characters = characters

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Map every layer of the trained program."""
        if not isinstance(pl_module, Program):
            raise BadArgument(f"{type(pl_module).__name__} is no Program.", "Leave StateMap out.")
        callbacks: list[object] = getattr(trainer, "callbacks")  # noqa: B009  (Lightning does not type it)
        for callback in callbacks:
            if isinstance(callback, rnndiag.GradientDiagnostics):
                for layer in state_map(pl_module, characters=self.characters):
                    callback.add(*layer.measurements())
