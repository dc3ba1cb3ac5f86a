"""What the checks look at: the given batch, and passes over it and others, each with its layer runs and loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.need.output_loss import LossFn, loss_with_gradient
from rnndiag.recorder.preflight.layout import BatchLayout
from rnndiag.recorder.preflight.untouched import untouched
from rnndiag.recorder.probe import probe

SEED = 20240229


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module without children: its name, first input tensor and first output tensor."""

    name: str
    kind: str
    entered: Tensor | None
    left: Tensor | None


@dataclass(frozen=True)
class PassResult:
    """The results of one pass."""

    loss: float
    runs: Mapping[str, LayerRun]
    gradients: Mapping[str, bool]
    """Trainable parameter -> whether a nonzero gradient reached it."""
    called: frozenset[str]
    """Names of the modules that ran."""
    calls: tuple[ModuleCall, ...] = ()


@dataclass(frozen=True)
class Observer:
    """Runs `loss_fn(model, batch)` repeatedly, each time from the same state of model and random numbers."""

    model: nn.Module
    loss_fn: LossFn

    def __call__(self, batch: Any, training: bool = False, calls: bool = False) -> PassResult:
        """One pass in eval mode, or in training mode with the same dropout masks each time."""
        # cuDNN refuses the backward pass of a recurrent layer in eval mode
        with untouched(self.model), torch.backends.cudnn.flags(enabled=False):
            self.model.train(training)
            for parameter in self.model.parameters():
                parameter.grad = None
            torch.manual_seed(SEED)
            called: set[str] = set()
            noted: list[ModuleCall] = []
            handles = [
                module.register_forward_hook(_watch(name, called, noted if calls else None))
                for name, module in self.model.named_modules()
            ]
            try:
                with probe(self.model) as seen:
                    loss = loss_with_gradient(self.loss_fn(self.model, batch))
                    loss.backward()
                runs = {run.name: run for run in seen.layer_runs}
            finally:
                for handle in handles:
                    handle.remove()
            reached = {
                name: parameter.grad is not None and bool((parameter.grad != 0).any())
                for name, parameter in self.model.named_parameters()
                if parameter.requires_grad
            }
            return PassResult(float(loss.detach()), runs, reached, frozenset(called), tuple(noted))


@dataclass
class PreflightSubject:
    """Model, loss and batch. Passes over the unchanged batch are cached."""

    observe: Observer
    batch: Any
    layout: BatchLayout
    detach: int | str | None
    """The truncation window declared by the user: a number of steps, or `any`."""
    _seen: dict[tuple[bool, bool], PassResult] = field(default_factory=dict)

    def seen(self, training: bool = False, calls: bool = False) -> PassResult:
        """The pass over the unchanged batch."""
        key = training, calls
        if key not in self._seen:
            self._seen[key] = self.observe(self.batch, training, calls)
        return self._seen[key]


def _watch(name: str, called: set[str], noted: list[ModuleCall] | None) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        called.add(name)
        if noted is not None and not list(module.children()):
            noted.append(
                ModuleCall(name, type(module).__name__, _tensor(arguments), _tensor(output))
            )

    return hook


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach().clone() if value.is_floating_point() else None
    if isinstance(value, list | tuple):
        return next((found for item in value if (found := _tensor(item)) is not None), None)
    return None


def differs(one: Tensor, other: Tensor) -> Tensor:
    """(T, B) bool: where two (T, B, S) tensors differ by more than rounding."""
    if one.shape != other.shape:
        return torch.ones(one.shape[:2], dtype=torch.bool)
    if not one.is_floating_point():
        return (one != other).reshape(*one.shape[:2], -1).any(-1).cpu()
    old, new = one.detach().double().cpu(), other.detach().double().cpu()
    known = old[torch.isfinite(old)].abs()
    scale = float(known.max()) if known.numel() else 1.0
    away = (old - new).abs() > torch.finfo(one.dtype).eps ** 0.75 * max(scale, 1e-30)
    odd = torch.isfinite(old) != torch.isfinite(new)
    return torch.any((away | odd).reshape(*one.shape[:2], -1), -1)
