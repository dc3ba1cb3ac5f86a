"""The one Lightning module: a task, a recurrence, a training estimator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightning_modules.batch import Batch
from lightning_modules.cells import CELLS
from lightning_modules.initialisation import Initialisation
from lightning_modules.patterns import PATTERNS, Pattern
from lightning_modules.recurrence.recurrence import Recurrence
from lightning_modules.regularisation import REGULARISATIONS, Regularisation
from lightning_modules.sampling import write
from lightning_modules.tasks import TASKS, Task
from lightning_modules.tasks.task import Writing
from lightning_modules.training import ESTIMATORS, Estimator
from lightning_modules.training.full import Full
from lightning_modules.wirings import WIRINGS, Plan

TEMPERATURE = 0.5
"""Of the characters that a trained program writes at the end: between its likeliest (0) and its own odds (1)."""
Choice = str | Mapping[str, Any]
"""A name, or {name: ..., options}."""


class Program(L.LightningModule):
    """One program of the lectures.

    Args:
        task: what is to be learnt; see lightning_modules/tasks.
        cell: the cell, or None for a wiring with a transition of its own.
        hidden: units of each layer.
        layers: how many layers.
        wiring: how they are put together.
        initialisation: rules for the start of the weights; see Initialisation.
        regularisation: dropout of one kind or another.
        estimator: how the gradient goes back in time.
        embedding: size of a learnt vector for each token; None reads tokens as unit vectors.
        teacher_forcing: how often a decoder is told the right token instead of the one it said.
        learning_rate: of Adam.
    """

    def __init__(
        self,
        task: Choice,
        cell: str | None = None,
        hidden: int = 64,
        layers: int = 1,
        wiring: str = "stack",
        initialisation: Mapping[str, Any] | None = None,
        regularisation: Choice = "none",
        estimator: Choice = "full",
        embedding: int | None = None,
        teacher_forcing: float = 1.0,
        learning_rate: float = 0.003,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.task: Task = TASKS.build(task)
        self.estimator: Estimator = ESTIMATORS.build(estimator)
        self.learning_rate = learning_rate
        entry = None if cell is None else CELLS[cell]
        rule: Regularisation = REGULARISATIONS.build(regularisation)
        start = Initialisation.of(
            {**(entry.initialisation if entry else {}), **(initialisation or {})}
        )

        def make(inputs: int) -> Recurrence:
            plan = Plan(
                inputs=inputs,
                hidden=hidden,
                layers=layers,
                outputs=self.task.output_size,
                classifies=self.task.classifies,
                cell=entry,
                regularisation=rule,
            )
            recurrence = WIRINGS[wiring].make(plan, wiring)
            start.apply(recurrence, entry)
            rule.on_recurrence(recurrence)
            return recurrence

        network = PATTERNS[self.task.pattern]
        self.network: Pattern = network(self.task, make, embedding, teacher_forcing)
        self.results: dict[str, float] = {}
        """Loss and metric on held-out data, at the last validation."""
        self.written: str | None = None
        """What a trained program over characters wrote at the end."""

    def forward(self, batch: Batch) -> Tensor:
        """Predictions, with the full gradient."""
        predictions: Tensor = self.network(batch, Full())
        return predictions

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss, its gradient as the estimator has it."""
        predictions = self.network(batch, self.estimator)
        loss = self.task.loss(predictions, batch.targets)
        self.log("loss", loss, prog_bar=True, batch_size=batch.targets.shape[-1])
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and metric on data that is not trained on."""
        predictions = self(batch)
        size = batch.targets.shape[-1]
        self.log("held_out_loss", self.task.loss(predictions, batch.targets), batch_size=size)
        score = self.task.score(predictions, batch.targets)
        self.log(f"held_out_{self.task.metric}", score, prog_bar=True, batch_size=size)

    def on_train_epoch_start(self) -> None:
        """A stream begins anew."""
        self.estimator.reset()

    def on_validation_epoch_end(self) -> None:
        """Keep the numbers."""
        metrics = self.trainer.callback_metrics
        self.results = {
            name.removeprefix("held_out_"): float(value)
            for name, value in metrics.items()
            if name.startswith("held_out_")
        }

    def on_fit_end(self) -> None:
        """Say what was reached, and let a program over characters write."""
        if isinstance(self.task, Writing):
            self.written = write(self.network, self.task, length=80, temperature=TEMPERATURE)
        if self.trainer.is_global_zero and self.results:
            self.print_summary()

    def print_summary(self) -> None:
        """One line on the loss, one on what was written."""
        task, loss = self.task, self.results["loss"]
        word = "solved" if loss <= task.solved else "not solved"
        print(
            f"held-out loss {loss:.4f} (chance {task.chance:.4f}, solved at {task.solved:.4f}): {word}; "
            f"{task.metric} {self.results[task.metric]:.4f} (chance {task.chance_metric:.4f})"
        )
        if self.written is not None:
            print(f"it writes: {self.written}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)
