"""Independent truths of a gradient: another function's backward pass, or the kernel's own forward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rnndiag.engine.gradcheck.finite_differences import draw_direction
from rnndiag.engine.gradcheck.gradients import Cotangent, Gradients, Point, gradients
from rnndiag.engine.gradcheck.nested import Function
from rnndiag.engine.gradcheck.parameters import cast, held_in
from rnndiag.engine.gradcheck.tolerance import NOISE_FACTOR, Difference, Tolerance

DIRECTIONS = 2
"""Number of random directions of the dot-product test, per target and length."""


@dataclass(frozen=True)
class OtherFunction:
    """A function that must have the same gradient: a reference loop in float64, or the kernel run in another way.

    Args:
        name: What the table calls it.
        function: (inputs, state) -> (outputs, final state).
        dtype: Precision it is run in. None: that of the arguments.
        tensors: Tensors that the function owns, cast to `dtype` for the time of a call.
        counterparts: Kernel's parameter name -> the function's parameter. None: they are the kernel's own.
    """

    name: str
    function: Function
    dtype: torch.dtype | None = None
    tensors: tuple[Tensor, ...] = ()
    counterparts: Mapping[str, Tensor] | None = None

    def gradients(self, point: Point, cotangent: Cotangent) -> Gradients:
        """Gradient of Σ v·y of this function at the same point."""
        own = replace(
            point, inputs=cast(point.inputs, self.dtype), state=cast(point.state, self.dtype)
        )
        with held_in(self.tensors, self.dtype):
            return gradients(self.function, own, cotangent, counterparts=self.counterparts)


def dot_product_difference(
    gradient: Tensor | None,
    directions: list[tuple[Tensor, tuple[float, float]]],
    tolerance: Tolerance,
    least_rtol: float,
    noise: float = 0.0,
) -> Difference:
    """Compare u·J'v, from the backward pass, with v·Ju, from the forward pass.

    Args:
        gradient: J'v. None counts as zero.
        directions: Each direction u with (v·Ju, its estimated error).
        tolerance: Allowed error of the kernel's dtype.
        least_rtol: Relative error that the differences are trusted to.
        noise: Norm of the gradient's change under one rounding error.
    """
    worst = Difference(0.0, 0.0, max(tolerance.rtol, least_rtol))
    missing = gradient is None or not bool(gradient.any())
    for u, (truth, error) in directions:
        own = torch.zeros_like(u) if gradient is None else gradient.detach().double()
        found = float((own * u).sum())
        # The product of two unrelated directions is about |g||u|/sqrt(n): the scale that rounding is measured by.
        spread = float(u.norm()) / math.sqrt(max(u.numel(), 1))
        scale = max(float(own.norm()) * spread, abs(truth))
        allowed = (
            max(tolerance.rtol, least_rtol) * scale + 4 * error + NOISE_FACTOR * noise * spread
        )
        off = abs(found - truth)
        if not math.isfinite(off):
            return Difference(math.inf, math.inf, least_rtol, missing=missing)
        ratio = off / allowed if allowed else (0.0 if off == 0 else math.inf)
        if ratio >= worst.ratio:
            relative = allowed / scale if scale else least_rtol
            size = off / scale if scale else 0.0
            worst = Difference(ratio, size, relative, missing=missing and ratio > 1)
    return worst


def draw_directions(
    point: Point, generator: torch.Generator, count: int = DIRECTIONS
) -> dict[str, list[Tensor]]:
    """Random directions of every target."""
    return {
        name: [draw_direction(point.tensor(name), generator) for _ in range(count)]
        for name in point.targets()
    }
