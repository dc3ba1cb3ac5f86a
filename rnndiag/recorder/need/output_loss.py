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
    layer_output,
    recorded_calls,
    replaced_forward,
)

LossFn = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Sample:
    """One batch: what the layer saw, and what the loss says about its outputs.

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
        """Sequences of the whole batch."""
        return len(self.seen.inputs)

    def of_sequences(self, sequences: Tensor) -> Sample:
        """The same batch, where only some sequences are looked at."""
        chosen = torch.zeros(self.batch_size, 1, dtype=torch.bool, device=self.active.device)
        chosen[sequences] = True
        return replace(self, active=self.active & chosen, sequences=sequences)

    def placed(self, rows: Tensor) -> Tensor:
        """Values at the active outputs (rows, H) as a change of all outputs (B, T, H)."""
        change = torch.zeros_like(self.outputs)
        change[self.active] = rows.to(change.dtype)
        return change


class OutputLoss:
    """`loss_fn(model, batch)` with the outputs of one recurrent layer given.

    Args:
        model: The model, in eval mode.
        loss_fn: Returns the scalar loss of a batch.
        layer: The layer whose outputs are given.
        seed: Seed of the random numbers that the step may draw: they are the same in every call of a batch.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, layer: LayerOutput, seed: int) -> None:
        self.model, self.loss_fn, self.layer, self.seed = model, loss_fn, layer, seed
        self.plain_steps = 0.0
        """What all calls so far cost, in forward and backward passes of the model; a forward pass counts 1/3."""

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
        """The loss at given outputs."""
        self.plain_steps += 1 / 3
        with torch.no_grad():
            return float(self._loss(sample, outputs))

    def gradient(self, sample: Sample, outputs: Tensor) -> tuple[float, Tensor]:
        """The loss at given outputs and its gradient with respect to them, (B, T, H)."""
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
    """The loss in what a loss function or training step returned."""
    if isinstance(result, Mapping):
        result = result.get("loss")
    if not isinstance(result, Tensor) or result.numel() != 1:
        raise BadArgument(
            f"loss_fn returned {type(result).__name__}, not a loss.",
            "It takes (model, batch) and returns the scalar loss, or a dict with the key 'loss'.",
        )
    return result.reshape(())


def chosen_layer(
    model: nn.Module, loss_fn: LossFn, batch: Any, name: str | None
) -> tuple[LayerOutput, tuple[str, ...]]:
    """The layer to test, and the names of recurrent layers that run after it.

    Without a name: the recurrent layer that runs last among those whose outputs the loss depends on.
    """
    modules = {
        found: module
        for found, module in model.named_modules()
        if isinstance(module, nn.RNNBase | nn.RNNCellBase)
    }
    order = _order_of_calls(model, loss_fn, batch, modules)
    if name is not None:
        known = dict(model.named_modules())
        if name not in known:
            raise BadArgument(
                f"The model has no module {name!r}.",
                f"Recurrent layers that ran: {', '.join(order) or 'none'}.",
            )
        layer = layer_output(name, known[name])
        if name not in order:
            raise NotSupported(
                f"{name} did not run, or the loss does not depend on its outputs.",
                f"Recurrent layers that ran: {', '.join(order) or 'none'}.",
            )
    elif not order:
        raise NotSupported(
            "No nn.RNN, nn.LSTM, nn.GRU or cell of theirs ran whose outputs the loss depends on.",
            "A recurrence written by hand has no output that can be replaced: move it to such a layer "
            "or cell to have its need of memory tested.",
        )
    else:
        name = order[-1]
        layer = layer_output(name, modules[name])
    later = order[order.index(name) + 1 :]
    layer.with_cell = layer.parts == 2 and _reads_cell(model, loss_fn, batch, layer)
    return layer, tuple(later)


def _order_of_calls(
    model: nn.Module, loss_fn: LossFn, batch: Any, modules: Mapping[str, nn.Module]
) -> list[str]:
    """Names of the modules that ran and that the loss depends on, by their first call."""
    outputs: dict[str, list[Tensor]] = {}
    handles = []
    for name, module in modules.items():

        def note(_module: nn.Module, _given: Any, returned: Any, name: str = name) -> None:
            outputs.setdefault(name, []).extend(tensors_of(returned))

        handles.append(module.register_forward_hook(note))
    try:
        with torch.enable_grad():
            loss = scalar_loss(loss_fn(model, batch))
    finally:
        for handle in handles:
            handle.remove()
    if not loss.requires_grad:
        raise BadArgument(
            "The loss of loss_fn carries no gradient.",
            "Leave out torch.no_grad and .item() in loss_fn.",
        )
    flat = [(name, one) for name, found in outputs.items() for one in found if one.requires_grad]
    reached, connected = set(), set()
    for name, one in flat:
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            loss, one, retain_graph=True, allow_unused=True
        )
        if found[0] is not None:
            connected.add(name)
            if bool(found[0].any()):
                reached.add(name)
    # On a batch that is solved exactly no gradient is left.
    return [name for name in outputs if name in (reached or connected)]


def tensors_of(value: Any) -> list[Tensor]:
    """All floating-point tensors in nested tuples, packed sequences among them."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, tuple | list):
        return [one for part in value for one in tensors_of(part)]
    return []


def _reads_cell(model: nn.Module, loss_fn: LossFn, batch: Any, layer: LayerOutput) -> bool:
    """Whether the loss depends on the cell states that the layer returned, given its outputs h."""
    layer.with_cell = True
    loss = OutputLoss(model, loss_fn, layer, seed=0)
    gradient = loss.sample(batch, 0).gradient
    size = gradient.shape[-1] - layer.cell_size()
    return bool((gradient[..., size:] != 0).any())
