"""Training with a truncated or randomized gradient: any step function, unrolled by an estimator's rule.

What these loops back-propagate is what `estimate` scores: same estimators, same conventions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rnndiag.engine.truncation.estimators import CellOnly, Full
from rnndiag.engine.truncation.gradient_scale import cell_only, scale_gradient
from rnndiag.engine.truncation.outcomes import Estimator
from rnndiag.errors import BadArgument, NotSupported

StepState = Tensor | tuple[Tensor, ...]
Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""(x_t, state) -> (output, new state)."""


@runtime_checkable
class CutsStates(Protocol):
    """An estimator that scales what crosses from step t to t-1."""

    def state_factors(self, T: int, draw: torch.Generator | None = None) -> Tensor | None:
        """ξ (T,) or (T, B)."""
        ...


@runtime_checkable
class WeighsSources(Protocol):
    """An estimator that weighs what each source step gives to the parameters."""

    def source_factors(self, T: int, draw: torch.Generator | None = None) -> Tensor:
        """(T,)"""
        ...


@runtime_checkable
class ReachesBack(Protocol):
    """An estimator that lets every loss reach a number of states, each lag with a weight."""

    def lag_factors(self, T: int, draw: torch.Generator | None = None) -> Tensor:
        """(τ,): the weight of every lag that is kept."""
        ...


def chunks_of(inputs: Tensor, size: int, dim: int = 0) -> Iterator[Tensor]:
    """Consecutive chunks of `size` steps of a sequence; the last one may be shorter."""
    if size < 1:
        raise BadArgument(f"The chunk size is {size}.", "Give 1 or more.")
    yield from inputs.split(size, dim)


def truncated_unroll(
    step: Step | nn.Module,
    inputs: Tensor,
    state: StepState,
    estimator: Estimator | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, StepState]:
    """Outputs (T, B, ...) and final state of step(x_t, state) -> (output, state) over inputs (T, B, ...).

    The forward pass is the plain one; the backward pass is the estimator's. Uniform and SourceStep weigh what a step
    gives to the parameters: `step` must then be a module, which is called with scaled parameters. Windows and roulette
    run all windows side by side on the batch axis, so rows of the batch must not see one another; the final state is
    then detached.
    """
    estimator = estimator or Full()
    if isinstance(estimator, ReachesBack):
        return windowed_unroll(
            step, inputs, state, estimator.lag_factors(len(inputs), generator).to(inputs.device)
        )
    sources: Tensor | None = None
    factors: Tensor | None = None
    if isinstance(estimator, WeighsSources):
        sources = estimator.source_factors(len(inputs), generator)
        if not isinstance(step, nn.Module):
            raise BadArgument(
                f"{estimator.label} weighs what a step gives to the parameters.",
                "Give the step as an nn.Module.",
            )
    elif isinstance(estimator, CutsStates):
        factors = estimator.state_factors(len(inputs), generator, **_masks(estimator, inputs))
    elif not isinstance(estimator, CellOnly):
        raise NotSupported(
            f"{estimator.label} is not a rule to unroll by.",
            "Clip the gradient after the backward pass instead.",
        )
    outputs = []
    for t, x in enumerate(inputs):
        if isinstance(estimator, CellOnly) and t > 0:
            state = cell_only(state)
        if factors is not None:
            state = scale_gradient(state, _factor(factors[t], inputs.device))
        if sources is not None and isinstance(step, nn.Module):
            output, state = _scaled_call(step, float(sources[t]), x, state)
        else:
            output, state = step(x, state)
        outputs.append(output)
    return torch.stack(outputs), state


def _masks(estimator: object, inputs: Tensor) -> dict[str, tuple[int, ...]]:
    """A mask a sequence, where the estimator wants it."""
    return {} if getattr(estimator, "shared", True) else {"masks": (inputs.shape[1],)}


def _factor(row: Tensor, device: torch.device) -> Tensor | float:
    return float(row) if row.dim() == 0 else row.to(device)[:, None]


def _scaled_call(module: nn.Module, factor: float, x: Tensor, state: StepState) -> Any:
    weights: dict[str, Tensor] = {
        name: scale_gradient(value, factor) for name, value in module.named_parameters()
    }
    return functional_call(module, weights, (x, state))


def windowed_unroll(
    step: Step | nn.Module, inputs: Tensor, state: StepState, lag_factors: Tensor
) -> tuple[Tensor, StepState]:
    """Outputs whose gradient reaches the last len(lag_factors) states, lag d weighted by lag_factors[d].

    A plain pass without gradients gives every state; then the windows of all outputs run side by side.
    """
    single = isinstance(state, Tensor)
    initial: tuple[Tensor, ...] = (state,) if isinstance(state, Tensor) else tuple(state)
    T, B, tau = inputs.shape[0], inputs.shape[1], min(len(lag_factors), len(inputs))
    before, final = _states(step, inputs, initial, single)
    steps = torch.arange(T, device=inputs.device)
    rows = tuple(
        torch.cat([first.expand(min(tau, T), *first.shape), part[: T - tau]])
        for first, part in zip(initial, before, strict=True)
    )
    output = None
    for j in range(tau):
        at = steps - tau + 1 + j
        lag = tau - 1 - j
        if lag + 1 < tau:
            ratio = float(lag_factors[lag + 1] / lag_factors[lag])
            rows = scale_gradient(rows, ratio)
        x = inputs[at.clamp(min=0)].flatten(0, 1)
        flat = tuple(part.flatten(0, 1) for part in rows)
        output, new = step(x, flat[0] if single else flat)
        parts = (new,) if isinstance(new, Tensor) else tuple(new)
        rows = tuple(
            torch.where(_alive(at, old), value.unflatten(0, (T, B)), old)
            for value, old in zip(parts, rows, strict=True)
        )
    assert output is not None
    outputs = scale_gradient(output.unflatten(0, (T, B)), float(lag_factors[0]))
    return outputs, final[0] if single else final


def _alive(at: Tensor, like: Tensor) -> Tensor:
    return (at >= 0).view(-1, *[1] * (like.dim() - 1))


@torch.no_grad()
def _states(
    step: Step | nn.Module, inputs: Tensor, initial: tuple[Tensor, ...], single: bool
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """States after every step (T, B, S_p) and the last one, without gradients."""
    state: Any = initial[0] if single else initial
    kept: list[tuple[Tensor, ...]] = []
    for x in inputs:
        _, state = step(x, state)
        kept.append((state,) if isinstance(state, Tensor) else tuple(state))
    return tuple(torch.stack(part) for part in zip(*kept, strict=True)), kept[-1]
