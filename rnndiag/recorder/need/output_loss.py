"""The loss of a batch as a function of the outputs of one recurrent layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rnndiag.errors import BadArgument, NotSupported
from rnndiag.recorder.need.layer_output import (
    LayerOutput,
    LayerPass,
    recorded_calls,
    replaced_forward,
)

LossFn = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Sample:
    """One batch: inputs, outputs and states of the layer, and the gradient of the loss at its outputs.

    `active` (B, T) marks the outputs that the loss depends on and whose sequence belongs to the sample: one batch can
    be divided into several samples of different sequences.
    """

    number: int
    batch: Any
    seen: LayerPass
    gradient: Tensor
    """e = dL/dY at the recorded outputs, (B, T, H)."""
    loss: float
    active: Tensor
    sequences: Tensor
    """(n,) indices of the sequences of this sample in the batch."""

    @property
    def outputs(self) -> Tensor:
        """The recorded outputs Y, (B, T, H)."""
        return self.seen.outputs

    @property
    def batch_size(self) -> int:
        """Number of sequences of the whole batch."""
        return len(self.seen.inputs)

    def of_sequences(self, sequences: Tensor) -> Sample:
        """The same batch restricted to some sequences."""
        chosen = torch.zeros(self.batch_size, 1, dtype=torch.bool, device=self.active.device)
        chosen[sequences] = True
        return replace(self, active=self.active & chosen, sequences=sequences)

    def placed(self, rows: Tensor) -> Tensor:
        """Values at the active outputs (rows, H) placed into zeros (B, T, H)."""
        change = torch.zeros_like(self.outputs)
        change[self.active] = rows.to(change.dtype)
        return change


class OutputLoss:
    """`loss_fn(model, batch)` as a function of the outputs of one recurrent layer.

    Args:
        model: The model, in eval mode.
        loss_fn: Returns the scalar loss of a batch.
        layer: The layer whose outputs are given.
        seed: Seed of the random numbers that the step may draw: they are the same in every call of a batch.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, layer: LayerOutput, seed: int) -> None:
        self.model, self.loss_fn, self.layer, self.seed = model, loss_fn, layer, seed
        self.plain_steps = 0.0
        """Cost of all calls so far, in forward and backward passes of the model; a forward pass alone counts 1/3."""

    def sample(self, batch: Any, number: int) -> Sample:
        """Record one batch."""
        self._seed(number)
        self.plain_steps += 2 / 3
        with torch.no_grad(), recorded_calls(self.layer.module) as calls:
            self.loss_fn(self.model, batch)
        if not calls:
            raise NotSupported(
                f"{self.layer.name} did not run on batch {number}.", "Give batches that use it."
            )
        seen = self.layer.read(calls)
        first = Sample(number, batch, seen, seen.outputs, 0.0, seen.outputs, torch.arange(0))
        loss, gradient = self.gradient(first, seen.outputs)
        return replace(
            first,
            gradient=gradient,
            loss=loss,
            active=gradient.abs().sum(-1) > 0,
            sequences=torch.arange(len(seen.inputs)),
        )

    def value(self, sample: Sample, outputs: Tensor) -> float:
        """The loss if the layer returned `outputs` (B, T, H)."""
        self.plain_steps += 1 / 3  # a forward pass alone
        with torch.no_grad():
            return float(self._loss(sample, outputs))

    def gradient(self, sample: Sample, outputs: Tensor) -> tuple[float, Tensor]:
        """The loss if the layer returned `outputs`, and its gradient with respect to them, (B, T, H)."""
        self.plain_steps += 1
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_(True)
            loss = self._loss(sample, leaf)
            if not loss.requires_grad:
                return float(loss), torch.zeros_like(leaf)
            (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True, materialize_grads=True)
        return float(loss.detach()), gradient.detach()

    def _loss(self, sample: Sample, outputs: Tensor) -> Tensor:
        self._seed(sample.number)
        answer = self.layer.forward_returning(sample.seen, outputs)
        with replaced_forward(self.layer.module, answer):
            return scalar_loss(self.loss_fn(self.model, sample.batch))

    def _seed(self, number: int) -> None:
        torch.manual_seed(self.seed * 100003 + number)


def scalar_loss(result: Any) -> Tensor:
    """Extract the scalar loss from the result of a loss function or training step."""
    if isinstance(result, Mapping):
        result = result.get("loss")
    if not isinstance(result, Tensor) or result.numel() != 1:
        what = type(result).__name__
        if isinstance(result, Tensor):
            what = f"{what} of shape {tuple(result.shape)}"
        raise BadArgument(
            f"loss_fn returned {what}, not a loss.",
            "It takes (model, batch) and returns the scalar loss, or a dict with the key 'loss'.",
        )
    return result.reshape(())


def loss_with_gradient(result: Any) -> Tensor:
    """The scalar loss, which must carry a gradient."""
    loss = scalar_loss(result)
    if not loss.requires_grad:
        raise BadArgument(
            "The loss of loss_fn carries no gradient.",
            "Leave out torch.no_grad and .item() in loss_fn.",
        )
    return loss


def loss_of_training_step(model: nn.Module) -> LossFn:
    """The `training_step` of a LightningModule as a function of (model, batch)."""
    if hasattr(model, "tbptt_step"):  # of rnndiag.train.TruncatedBPTT: the whole batch as one chunk
        return lambda own, batch: own.tbptt_step(batch, None)[0]  # type: ignore[operator]
    if not getattr(model, "automatic_optimization", True):
        raise NotSupported(
            f"The training_step of {type(model).__name__} optimizes by itself, so it cannot be called for its loss.",
            "Pass loss_fn, a function of (model, batch) that only returns the loss.",
        )
    step = getattr(model, "training_step", None)
    if not callable(step):
        raise BadArgument(
            f"{type(model).__name__} has no training_step, and no loss_fn was given.",
            "Pass loss_fn, a function of (model, batch) that returns the scalar loss.",
        )
    return lambda own, batch: own.training_step(batch, 0)  # type: ignore[operator]
