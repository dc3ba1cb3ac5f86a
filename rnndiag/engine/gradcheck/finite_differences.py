"""Directional derivatives J u of a kernel's forward pass, without its backward pass.

Central differences of steps h and h/2, extrapolated: the error left is of order h^4, and is estimated by what the
extrapolation changed. One direction u gives the change of all outputs, hence v·Ju for every cotangent v. In exact
arithmetic v·Ju equals u·J'v, the product of u with the gradient of v·y; a backward pass that gives another number is
not the gradient of its forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.gradcheck.gradients import Cotangent, Point
from rnndiag.engine.gradcheck.nested import Function, Tensors
from rnndiag.engine.gradcheck.parameters import cast, held_in


@dataclass(frozen=True)
class Derivative:
    """J u for one direction: the change of outputs and final state, in float64, with the errors of both."""

    outputs: Tensors
    final: Tensors
    output_errors: Tensors
    final_errors: Tensors

    def along(self, cotangent: Cotangent) -> tuple[float, float]:
        """v·Ju and its estimated error: that of the entries, added up as independent ones."""
        value, square = 0.0, 0.0
        changes = zip(
            cotangent.parts(),
            (*self.outputs, *self.final),
            (*self.output_errors, *self.final_errors),
            strict=True,
        )
        for v, change, error in changes:
            if v is not None:
                value += float((v.double() * change).sum())
                square += float((v.double() * error).square().sum())
        return value, square**0.5


@dataclass(frozen=True)
class ForwardPass:
    """A kernel's forward pass as a function of float64 arguments, evaluated in `dtype` (None: as it is).

    `eps` is the machine precision of that evaluation; `tensors` are those that the kernel owns, which are cast too.
    """

    function: Function
    point: Point
    dtype: torch.dtype | None
    eps: float
    tensors: tuple[Tensor, ...] = ()

    def _held(self) -> AbstractContextManager[None]:
        return held_in(self.tensors, self.dtype) if self.dtype else nullcontext()

    def values(self, shifts: Mapping[str, Tensor] | None = None) -> tuple[Tensors, Tensors]:
        """Results where the named targets are moved by `shifts`, in float64."""
        shifts = shifts or {}

        def moved(name: str, tensor: Tensor) -> Tensor:
            (own,) = cast((tensor.detach(),), self.dtype)
            return (
                own.clone() if name not in shifts else (own.double() + shifts[name]).to(own.dtype)
            )

        point = self.point
        inputs = tuple(map(moved, point.input_names, point.inputs))
        state = tuple(map(moved, point.state_names, point.state))
        with self._held(), torch.no_grad():
            changed = [(point.parameters[n], s) for n, s in shifts.items() if n in point.parameters]
            before = [tensor.data for tensor, _ in changed]
            try:
                for tensor, shift in changed:
                    tensor.data = (tensor.data.double() + shift).to(tensor.dtype)
                outputs, final = self.function(inputs, state)
            finally:
                for (tensor, _), data in zip(changed, before, strict=True):
                    tensor.data = data
            return tuple(y.detach().double() for y in outputs), tuple(
                s.detach().double() for s in final
            )

    def derivative(self, name: str, direction: Tensor) -> Derivative:
        """J u of one target by four forward passes.

        Args:
            name: The target.
            direction: u in float64, of the target's shape and about its size.
        """
        h = self.eps ** (1 / 3)  # small, so that few kinks (ReLU) are crossed
        sides = [self.values({name: direction * (h * k)}) for k in (1.0, -1.0, 0.5, -0.5)]
        flat = [(*outputs, *final) for outputs, final in sides]
        changes, errors = [], []
        for up, down, half_up, half_down in zip(*flat, strict=True):
            coarse, fine = (up - down) / (2 * h), (half_up - half_down) / h
            changes.append((4 * fine - coarse) / 3)
            errors.append((fine - coarse).abs() / 3 + 4 * self.eps * up.abs() / h)
        n = len(sides[0][0])
        return Derivative(
            tuple(changes[:n]), tuple(changes[n:]), tuple(errors[:n]), tuple(errors[n:])
        )


def draw_direction(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction in float64, of the root mean square of the tensor (1 where that is all zero)."""
    values = tensor.detach().double()
    size = float(values.square().mean().sqrt()) or 1.0
    drawn = torch.randn(values.shape, generator=generator, dtype=torch.float64).to(values.device)
    return drawn * size
