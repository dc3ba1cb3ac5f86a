"""A task as Lightning's data: minibatches made on demand from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch.utils.data import DataLoader, Dataset

from lightning_modules.batch import Batch
from lightning_modules.tasks import TASKS, Task


class Batches(Dataset[Batch]):
    """Minibatch number i of a split, the same whenever it is asked for."""

    def __init__(self, task: Task, split: str, count: int, size: int, seed: int) -> None:
        self.task, self.split, self.count, self.size, self.seed = task, split, count, size, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        if index >= self.count:
            raise IndexError(index)
        return self.task.batch(self.split, index, self.size, self.seed)


class TaskData(L.LightningDataModule):
    """Fresh minibatches for training, the same held-out ones every time.

    task: the task's name, or {name: ..., options}. batches: training steps of an epoch.
    """

    def __init__(
        self,
        task: str | Mapping[str, Any],
        batch_size: int = 32,
        batches: int = 1000,
        held_out_batches: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.task: Task = TASKS.build(task)
        self.batch_size, self.batches, self.seed = batch_size, batches, seed
        self.held_out_batches = held_out_batches

    def loader(self, split: str, count: int) -> DataLoader[Batch]:
        """`count` minibatches of a split, in their order."""
        data = Batches(self.task, split, count, self.batch_size, self.seed)
        return DataLoader(data, batch_size=None)

    def train_dataloader(self) -> DataLoader[Batch]:
        """The minibatches of an epoch."""
        return self.loader("train", self.batches)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Minibatches that are not trained on."""
        return self.loader("held-out", self.held_out_batches)
