"""The norm of an optimizer's gradients, read and never written, in one fused call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rnndiag.recorder.history import StepFacts
from rnndiag.recorder.training_facts import Clip


def gradients_of(optimizer: Any) -> list[Tensor]:
    """The gradients that the optimizer is about to use."""
    found = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                grad = parameter.grad
                found.append(grad.coalesce().values() if grad.is_sparse else grad)
    return found


@torch.no_grad()
def total_norm(gradients: Iterable[Tensor], order: float = 2.0) -> Tensor | None:
    """One norm over all gradients, left on their device; None where there are none."""
    gradients = list(gradients)
    if gradients and len({grad.device for grad in gradients}) == 1:
        norms = torch._foreach_norm(gradients, order)
        if all(norm.dtype == norms[0].dtype for norm in norms):
            total: Tensor = torch.linalg.vector_norm(torch.stack(norms), order)
            return total
    return _norm_over_places(gradients, order)


def _norm_over_places(gradients: list[Tensor], order: float) -> Tensor | None:
    """The same for gradients on several devices or of several dtypes."""
    by_place: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for grad in gradients:
        by_place.setdefault((grad.device, grad.dtype), []).append(grad)
    norms = [norm for group in by_place.values() for norm in torch._foreach_norm(group, order)]
    if not norms:
        return None
    first = norms[0]
    if len(by_place) > 1:
        norms = [norm.to(first.device, torch.float32) for norm in norms]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), order)
    return total


def learning_rate(optimizer: Any) -> float:
    """Of the first parameter group."""
    return float(optimizer.param_groups[0].get("lr", float("nan")))


def step_facts(step: int, optimizer: Any, clip: Clip) -> StepFacts:
    """The scalars of a step that is about to be made. Those of a GPU stay there."""
    gradients = gradients_of(optimizer)
    norm = total_norm(gradients)
    largest = total_norm(gradients, float("inf")) if clip.by_value else None
    return StepFacts(
        step,
        norm=float("nan") if norm is None else norm,
        learning_rate=learning_rate(optimizer),
        clip_at=clip.threshold,
        clip_size=largest,
        optimizer=id(optimizer),
    )
