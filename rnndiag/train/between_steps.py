"""Estimators that act between two steps: they keep, scale or cut the gradient that crosses from a step to the one
before.

Chunks, Bernoulli truncation, ARTBP, the uniform truncation point, source steps and the LSTM rule of 1997 are of this
kind, so they work in every loop, also one that only its author can run: a rollout, a decoder, a `carry` loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from rnndiag.engine.truncation.estimators import CellOnly, Chunk, Full
from rnndiag.engine.truncation.gradient_scale import cell_only, scale_gradient
from rnndiag.errors import BadArgument, NotSupported
from rnndiag.recorder.replay.unrolled import note_between_steps
from rnndiag.train.nested import batch_dim_of, map_tensors


@runtime_checkable
class CutsStates(Protocol):
    """An estimator that scales the gradient crossing from step t to t-1."""

    def state_factors(self, T: int, draw: torch.Generator | None = None) -> Tensor | None:
        """ξ (T,) or (T, B), factors on the gradient from step t to t-1."""


@runtime_checkable
class WeighsSources(Protocol):
    """An estimator that weights the contribution of each source step."""

    def source_factors(self, T: int, draw: torch.Generator | None = None) -> Tensor:
        """(T,) weights of the source steps."""


class BetweenSteps:
    """One draw of an estimator for one sequence of T steps. Made by `between_steps`."""

    def __init__(
        self,
        states: Tensor | None = None,
        outputs: Tensor | None = None,
        parts: tuple[str, ...] | None = None,
        only_cells: bool = False,
        batch_dim: Callable[[Tensor], int] | None = None,
    ) -> None:
        """states (T,) or (T, B): factors on the gradient of the state before step t; outputs (T,): of output t."""
        self._states, self._outputs = states, outputs
        self._parts, self._only_cells, self._batch_dim = parts, only_cells, batch_dim

    def state(self, t: int, state: Any) -> Any:
        """The state to pass to step t (0 .. T-1): the same values, with the estimator's gradient.

        At t = 0 it is the initial state, whose gradient is unchanged.
        """
        if t == 0 or state is None:
            return state
        if self._only_cells:
            return self._cells(state)
        if self._states is None:
            return state
        factor = self._states[t]
        if factor.dim() == 0:
            return scale_gradient(state, float(factor))

        def scale(part: Tensor) -> Tensor:
            shape, dim = [1] * part.dim(), self._batch_dim
            shape[batch_dim_of(part, len(factor)) if dim is None else dim(part)] = -1
            return scale_gradient(part, factor.to(part.device).view(shape))

        return map_tensors(scale, state)

    def output(self, t: int, output: Any) -> Any:
        """The output of step t, for the loss: the same values, with the estimator's gradient."""
        return output if self._outputs is None else scale_gradient(output, float(self._outputs[t]))

    def final(self, state: Any) -> Any:
        """The state after the last step, for a loss that reads it."""
        return state if self._outputs is None else scale_gradient(state, float(self._outputs[-1]))

    def _cells(self, state: Any) -> Any:
        if self._parts is None:
            return cell_only(state)
        if "c" not in self._parts:
            raise BadArgument(
                "The estimator 'cell_only' needs a cell state c, and this recurrence has none.",
                "Use an LSTM.",
            )
        pairs = zip(self._parts, state, strict=True)
        return tuple(part if name == "c" else part.detach() for name, part in pairs)


def between_steps(
    estimator: Any,
    steps: int,
    *,
    batch: int | None = None,
    generator: torch.Generator | None = None,
    parts: tuple[str, ...] | None = None,
    batch_dim: Callable[[Tensor], int] | None = None,
) -> BetweenSteps:
    """An estimator for a hand-written loop: pass the state through `.state(t, ...)` and the output through
    `.output`.

    Args:
        estimator: Full, Chunk(k), Bernoulli (also with artbp), Uniform, SourceStep or CellOnly.
        steps: T, the number of steps of the loop.
        batch: B, for Bernoulli(..., shared=False), which draws a mask a sequence.
        generator: Source of the draws. None: torch's global generator.
        parts: Names of the parts of the state, for CellOnly: those called "c" keep their gradient. None: all but the
            first part of an (h, c, ...) state.
        batch_dim: state part -> the dimension that counts its sequences. None: the one that has B entries.

    Returns:
        One draw: `.state(t, state)`, `.output(t, output)` and `.final(state)` change gradients and no values.

    Raises:
        NotSupported: The estimator keeps pairs of loss and state, as sliding windows do. Use `unroll`.

    Example:
        >>> rule = rnndiag.train.between_steps(rnndiag.estimators.Bernoulli(0.9), len(inputs))
        >>> for t, x in enumerate(inputs):
        ...     h = cell(x, rule.state(t, h))
        ...     loss = loss + loss_of(rule.output(t, h), targets[t])
    """
    if not isinstance(estimator, Full):
        note_between_steps(estimator)
    if isinstance(estimator, CellOnly):
        return BetweenSteps(parts=parts, only_cells=True)
    if isinstance(estimator, WeighsSources):
        weights = estimator.source_factors(steps, generator)
        return BetweenSteps(_crossings(weights), weights)
    if isinstance(estimator, Full):
        return BetweenSteps()
    if isinstance(estimator, CutsStates) and not (
        isinstance(estimator, Chunk) and estimator.back != estimator.k1
    ):
        masks: dict[str, Any] = {}
        if not getattr(estimator, "shared", True):
            if batch is None:
                raise BadArgument(
                    f"{estimator} draws a mask a sequence, and the number of sequences is not given.",
                    "Give batch=B.",
                )
            masks = {"masks": (batch,)}
        return BetweenSteps(estimator.state_factors(steps, generator, **masks), batch_dim=batch_dim)
    raise NotSupported(
        f"{getattr(estimator, 'label', estimator)} does not act between two steps of a loop.",
        "Use rnndiag.train.unroll for windows, (k1, k2) and roulette; clip after the backward pass.",
    )


def _crossings(weights: Tensor) -> Tensor:
    """(T,): factors on the state before step t that multiply the full adjoint of every step i by weights[i].

    The adjoint of step t-1 is w_{t-1} e + factor J^T (w_t δ_t), so the factor is w_{t-1} / w_t.
    """
    before, after = weights[:-1], weights[1:]
    if bool(((after == 0) & (before != 0)).any()):
        raise NotSupported(
            "A source step is kept while the one after it is dropped.",
            "Source weights of zero must come before all others.",
        )
    ratios = torch.where(before == 0, torch.zeros_like(before), before / after)
    return torch.cat([torch.ones_like(weights[:1]), ratios])
