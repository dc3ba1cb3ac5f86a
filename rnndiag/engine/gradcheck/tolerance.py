"""How much two gradients may differ by rounding alone, and whether they do.

Slices of one time step are compared one by one, so that an error at few steps is not diluted by the others:

    |found_t - truth_t|  <=  rtol |truth_t|  +  16 eps max_t |truth_t|  +  10 noise

`rtol` and `eps` come from the dtype. `noise` is measured: the change of the kernel's own gradient when its arguments
change by one rounding error. It allows for an ill-conditioned recurrence, and for a gradient that is zero by
cancellation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import repeat

import torch
from torch import Tensor

from rnndiag.engine.gradcheck.gradients import Cotangent, Gradients, Point, gradients
from rnndiag.engine.gradcheck.nested import Function, Tensors
from rnndiag.errors import NotSupported

RTOL = {
    torch.float64: 1e-9,
    torch.float32: 2e-5,
    # 8 eps: kernels in half precision round every step's state
    torch.float16: 8e-3,
    torch.bfloat16: 6e-2,
}
ROUNDINGS = 16
"""Number of rounding errors, in units of the largest slice, allowed in every slice."""
NOISE_FACTOR = 10
"""Factor on one measured draw of the noise."""
OUTPUTS, FINAL = "outputs", "final state"
"""Names of the values in a table of targets."""
LARGEST_NOISE = 0.02
"""Largest relative noise that widens the tolerance: a noisier kernel is reported, not excused."""


@dataclass(frozen=True)
class Tolerance:
    """Allowed relative error, and the machine precision of the kernel's dtype."""

    rtol: float
    eps: float


@dataclass(frozen=True)
class Difference:
    """How far a gradient lies from the truth.

    `ratio` is the worst slice's error over what is allowed (above 1: wrong). `size` is the error of the whole
    relative to the truth, or that of the worst slice where the whole hides it; `allowed` the relative error that
    would pass in that slice.
    """

    ratio: float
    size: float
    allowed: float
    wrong_steps: tuple[int, ...] = ()
    missing: bool = False

    @property
    def right(self) -> bool:
        return self.ratio <= 1


def tolerance_of(tensors: Tensors, rtol: float | None) -> Tolerance:
    """The tolerance of the coarsest dtype among `tensors`."""
    dtypes = {t.dtype for t in tensors if t.is_floating_point()}
    unknown = dtypes - set(RTOL)
    if unknown or any(t.is_complex() for t in tensors):
        names = ", ".join(sorted(str(t.dtype) for t in tensors if t.dtype not in RTOL))
        raise NotSupported(
            f"gradcheck_recurrence has no tolerance for {names}.",
            "Use bfloat16, float16, float32 or float64; give complex states as real tensors (torch.view_as_real).",
        )
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    return Tolerance(RTOL[coarsest] if rtol is None else rtol, torch.finfo(coarsest).eps)


def slice_norms(tensor: Tensor, time: int | None) -> Tensor:
    """Norm of each time step, (T,) in float64; of the whole, (1,), where `time` is None."""
    tensor = tensor.detach().double()
    rows = tensor.reshape(1, -1) if time is None else tensor.movedim(time, 0).flatten(1)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms


def difference(
    found: Tensor | None,
    truth: Tensor | None,
    tolerance: Tolerance,
    time: int | None = None,
    noise: float = 0.0,
) -> Difference:
    """Compare one gradient (or value) with the truth, by time step where it has a time dimension.

    Args:
        found: The tensor to judge. None counts as zero.
        truth: The tensor it should be. None counts as zero.
        tolerance: Allowed error of the dtype.
        time: Time dimension of both, or None.
        noise: Largest norm of a slice's change under one rounding error of the arguments.
    """
    shape = found if found is not None else truth
    if shape is None:
        return Difference(0.0, 0.0, tolerance.rtol)
    zero = torch.zeros_like(shape, dtype=torch.float64)
    a = zero if found is None else found.detach().double()
    b = zero if truth is None else truth.detach().double().to(a.device)
    errors = slice_norms(a - b.to(a.device), time)
    sizes = slice_norms(b, time)
    largest = float(sizes.max()) if len(sizes) else 0.0
    noise = min(noise, LARGEST_NOISE * largest / NOISE_FACTOR) if largest else noise
    floor = ROUNDINGS * tolerance.eps * largest + NOISE_FACTOR * noise
    allowed = tolerance.rtol * sizes + floor
    ratios = torch.where(errors == 0, 0.0, errors / allowed).nan_to_num(
        nan=math.inf, posinf=math.inf
    )
    total = float(torch.linalg.vector_norm(b))
    worst = int(ratios.argmax())
    per = float(sizes[worst]) or largest or 1.0
    size = float(torch.linalg.vector_norm(a - b)) / (total or 1.0)
    relative = float(allowed[worst]) / per
    if float(ratios[worst]) > 1 and size <= relative:
        size = float(errors[worst]) / per
    return Difference(
        ratio=float(ratios[worst]),
        size=size if math.isfinite(size) else math.inf,
        allowed=relative if float(allowed[worst]) else tolerance.rtol,
        wrong_steps=()
        if time is None
        else tuple(int(t) for t in torch.nonzero(ratios > 1).flatten()),
        missing=total > 0 and not bool(a.any()),
    )


def measured_noise(
    function: Function,
    point: Point,
    cotangent: Cotangent,
    before: Gradients,
    eps: float,
    time: int,
    generator: torch.Generator,
) -> dict[str, float]:
    """Largest slice norm of the change of each target and value when the arguments change by one rounding error."""

    def jitter(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(
            tensor.device
        )
        return (tensor.double() * (1 + eps * drawn)).to(tensor.dtype)

    moved = replace(
        point, inputs=tuple(map(jitter, point.inputs)), state=tuple(map(jitter, point.state))
    )
    after = gradients(function, moved, cotangent)
    noise = {
        name: _largest_change(gradient, after.of[name], time if name in point.input_names else None)
        for name, gradient in before.of.items()
    }
    noise[OUTPUTS] = max(
        map(_largest_change, before.outputs, after.outputs, repeat(time)), default=0.0
    )
    noise[FINAL] = max(map(_largest_change, before.final, after.final, repeat(None)), default=0.0)
    return noise


def _largest_change(a: Tensor | None, b: Tensor | None, time: int | None) -> float:
    """Largest slice norm of a - b; zero if it is not finite, so that it does not widen the tolerance."""
    if a is None or b is None or not a.numel():
        return 0.0
    change = float(slice_norms(a.double() - b.double(), time).max())
    return change if math.isfinite(change) else 0.0
