"""The norm of an optimizer's gradients, which are only read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnndiag.recorder.facts.history import Scalar, StepFacts
from rnndiag.recorder.facts.training_loop import ClipSetting

FEW = 64
"""Up to this many tensors on the CPU, norms are computed one by one and added in Python, which is faster there."""


def gradients_of(optimizer: Any) -> list[Tensor]:
    """The gradients that the optimizer is about to use."""
    found = [
        grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if (grad := parameter.grad) is not None
    ]
    if any(grad.is_sparse for grad in found):
        found = [grad.coalesce().values() if grad.is_sparse else grad for grad in found]
    return found


def total_norm(gradients: list[Tensor], order: float = 2.0) -> Scalar | None:
    """Norm of order 2 or inf over all gradients: a float on the CPU, a 0-dim tensor on other devices; None if empty."""
    gradients = [grad for grad in gradients if grad.numel()]
    if not gradients:
        return None
    first = gradients[0].device
    if any(grad.requires_grad for grad in gradients):  # made with create_graph=True
        gradients = [grad.detach() for grad in gradients]
    if any(grad.device != first for grad in gradients):
        return _norm_over_places(gradients, order)
    if first.type == "cpu" and len(gradients) <= FEW:
        sizes = [torch.linalg.vector_norm(grad, order).item() for grad in gradients]
        if any(map(math.isnan, sizes)):  # hypot(inf, nan) is inf
            return math.nan
        return max(sizes) if order == math.inf else math.hypot(*sizes)
    norms: Sequence[Tensor] = torch._foreach_norm(gradients, order)
    if any(norm.dtype != norms[0].dtype for norm in norms):
        norms = [norm.float() for norm in norms]
    total: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)), order)
    return total


def _norm_over_places(gradients: list[Tensor], order: float) -> Tensor:
    """`total_norm` for gradients on several devices."""
    by_place: dict[torch.device, list[Tensor]] = {}
    for grad in gradients:
        by_place.setdefault(grad.device, []).append(grad)
    first = gradients[0].device
    norms = [norm for group in by_place.values() for norm in torch._foreach_norm(group, order)]
    moved = [norm.to(first, torch.float32) for norm in norms]
    total: Tensor = torch.linalg.vector_norm(torch.stack(moved), order)
    return total


def learning_rate(optimizer: Any) -> float:
    """Learning rate of the first parameter group."""
    return float(optimizer.param_groups[0].get("lr", float("nan")))


def step_facts(step: int, optimizer: Any, clip: ClipSetting) -> StepFacts:
    """The scalars of a step about to be made. On a GPU they stay there."""
    gradients = gradients_of(optimizer)
    norm = total_norm(gradients)
    largest = total_norm(gradients, math.inf) if clip.by_value else None
    return StepFacts(
        step,
        norm=norm,
        learning_rate=learning_rate(optimizer),
        clip_at=clip.threshold,
        clip_size=largest,
        optimizer=id(optimizer),
    )
