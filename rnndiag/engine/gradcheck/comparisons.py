"""Comparison of every cell of full-length runs: each way to call the kernel, each cotangent, each target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rnndiag.engine.gradcheck.calls import call_faults
from rnndiag.engine.gradcheck.finite_differences import Derivative
from rnndiag.engine.gradcheck.gradients import (
    Cotangent,
    Gradients,
    Point,
    draw_cotangents,
    gradients,
)
from rnndiag.engine.gradcheck.nested import Function, Tensors
from rnndiag.engine.gradcheck.result import Cell
from rnndiag.engine.gradcheck.runs import (
    alone,
    in_chunks,
    lengths_around,
    strided,
)
from rnndiag.engine.gradcheck.setup import Setup
from rnndiag.engine.gradcheck.tolerance import (
    FINAL,
    OUTPUTS,
    Difference,
    difference,
    measured_noise,
)
from rnndiag.engine.gradcheck.truths import dot_product_difference, draw_directions


@dataclass(frozen=True)
class Run:
    """One way to call the kernel: its name, the function, the point, and arguments that require no gradient in it."""

    name: str
    function: Function
    point: Point
    without: tuple[str, ...] = ()
    strided: bool = False
    """Whether cotangents are passed as tensors that are not contiguous."""

    def loss(self, cotangent: Cotangent) -> Cotangent:
        """The cotangent in the form in which this run gets it."""
        if not self.strided:
            return cotangent
        return replace(
            cotangent, outputs=strided(cotangent.outputs), final=strided(cotangent.final)
        )


@dataclass(frozen=True)
class Case:
    """One cotangent at one length, with all that its gradients are compared with.

    Attributes:
        cotangent: The weights.
        whole: What the kernel gives when called once.
        noise: Change of each target and of the values under one rounding error.
        truth: What the reference gives, where there is one.
        along: Directions and v·Ju by target, where the forward pass serves as the truth.
    """

    cotangent: Cotangent
    whole: Gradients
    noise: dict[str, float]
    truth: Gradients | None
    along: dict[str, list[tuple[Tensor, tuple[float, float]]]]


def runs(setup: Setup) -> list[Run]:
    """Every way to call the kernel on sequences of full length, and whole at every length around the chunk size."""
    kernel, layout, chunk = setup.kernel, setup.layout, setup.chunk
    found = [Run("whole", kernel, setup.cut(n)) for n in lengths_around(chunk, setup.steps)]
    point = setup.point
    if setup.steps > 1:
        if chunk < setup.steps:
            found.append(Run(f"chunks of {chunk}", in_chunks(kernel, layout, chunk), point))
        first = chunk // 2 + 1 if chunk > 1 else 2
        if first < setup.steps:
            name = f"chunks of {chunk} after {first}"
            found.append(Run(name, in_chunks(kernel, layout, chunk, first), point))
        if chunk > 1:
            found.append(Run("single steps", in_chunks(kernel, layout, 1), point))
    if setup.batch > 1 and layout.separable:
        found.append(Run("each sequence alone", alone(kernel, layout), point))
    # Copies keep their strides, so that these arguments reach the kernel as they are.
    turned = replace(point, inputs=_turned(point.inputs), state=_turned(point.state))
    found.append(Run("strided tensors", kernel, turned, strided=True))
    found.append(Run("state needs no gradient", kernel, point, point.state_names))
    found.append(Run("inputs need no gradient", kernel, point, point.input_names))
    return found


def _turned(tensors: Tensors) -> Tensors:
    return tuple(t for t in strided(tensors) if t is not None)


def cases(setup: Setup, point: Point) -> list[Case]:
    """Every cotangent at one point, with its truths."""
    with torch.no_grad():
        outputs, final = setup.kernel(
            *(tuple(t.clone() for t in p) for p in (point.inputs, point.state))
        )
    cotangents = draw_cotangents(outputs, final, point.state_names, setup.generator)
    derivatives = _derivatives(setup, point)
    found = []
    for cotangent in cotangents:
        whole = gradients(setup.kernel, point, cotangent)
        noise = measured_noise(
            setup.kernel,
            point,
            cotangent,
            whole,
            setup.tolerance.eps,
            setup.layout.time,
            setup.generator,
        )
        truth = setup.reference.gradients(point, cotangent) if setup.reference else None
        along = {
            name: [(u, derivative.along(cotangent)) for u, derivative in pairs]
            for name, pairs in derivatives.items()
        }
        found.append(Case(cotangent, whole, noise, truth, along))
    return found


def _derivatives(setup: Setup, point: Point) -> dict[str, list[tuple[Tensor, Derivative]]]:
    """J u by finite differences, for targets without a reference gradient."""
    if setup.forward_dtype is None:
        return {}
    known = setup.reference
    covered: set[str] = set()
    if known is not None:
        names = known.counterparts or {}
        covered = {*point.input_names, *point.state_names, *names}
    forward = setup.forward(point)
    return {
        name: [(u, forward.derivative(name, u)) for u in directions]
        for name, directions in draw_directions(point, setup.generator).items()
        if name not in covered
    }


def compare(
    setup: Setup, run: Run, case: Case
) -> Iterator[tuple[Cell, Tensor | None, Tensor | None]]:
    """Cells of one run under one cotangent, each with the gradient found and the truth, where that is a tensor."""
    found = gradients(run.function, run.point, run.loss(case.cotangent), run.without)
    if case.cotangent.name == "both":
        yield from _values(setup, run, case, found)
    for name, gradient in found.of.items():
        off, truth, against = _compare(setup, run, case, name, gradient)
        yield cell_of(setup, run, case.cotangent.name, name, off, truth), gradient, against


def _compare(
    setup: Setup, run: Run, case: Case, name: str, gradient: Tensor | None
) -> tuple[Difference, str, Tensor | None]:
    """The difference of one gradient from its truth, the truth's name, and the truth as a tensor."""
    time = setup.layout.time if name in run.point.input_names else None
    noise = case.noise.get(name, 0.0)
    if case.truth is not None and name in case.truth.of:
        truth = case.truth.of[name]
        return difference(gradient, truth, setup.tolerance, time, noise), "reference", truth
    whole = case.whole.of.get(name)
    differs = difference(gradient, whole, setup.tolerance, time, noise)
    if name not in case.along:
        return differs, "the whole", whole

    def dot(of: Tensor | None) -> Difference:
        return dot_product_difference(
            of, case.along[name], setup.tolerance, setup.forward_rtol, noise
        )

    products = dot(gradient)
    # The gradient of the whole is the more accurate truth if it passes the dot-product test itself.
    if run.name != "whole" and differs.ratio > products.ratio and dot(whole).right:
        return differs, "the whole", whole
    return products, "dot product", None


def _values(
    setup: Setup, run: Run, case: Case, found: Gradients
) -> Iterator[tuple[Cell, Tensor | None, Tensor | None]]:
    """Outputs and final state themselves: a wrong forward pass has no right gradient."""
    if case.truth is not None:
        name, outputs, final = "reference", case.truth.outputs, case.truth.final
    elif run.name != "whole":
        name, outputs, final = "the whole", case.whole.outputs, case.whole.final
    elif setup.forward_dtype == torch.float64 and setup.tolerance.eps > 1e-15:
        name = "kernel in float64"
        outputs, final = setup.forward(run.point).values()
    else:
        return
    for target, mine, theirs, time in (
        (OUTPUTS, found.outputs, outputs, setup.layout.time),
        (FINAL, found.final, final, None),
    ):
        for a, b in zip(mine, theirs, strict=True):
            off = difference(a, b, setup.tolerance, time, case.noise[target])
            cell = cell_of(setup, run, "value", target, off, name)
            if off.wrong_steps:
                step = off.wrong_steps[0]
                at_seam = step > 0 and step % setup.chunk == 0
                cell = replace(cell, step=step, seam=step if at_seam else None)
            yield cell, a, b


def cell_of(
    setup: Setup, run: Run, cotangent: str, target: str, off: Difference, truth: str
) -> Cell:
    steps = run.point.inputs[0].shape[setup.layout.time]
    return Cell(run.name, steps, cotangent, target, off.right, off.size, off.allowed, truth)


def call_cells(setup: Setup, case: Case) -> list[Cell]:
    """Faults of single calls, at full length."""
    checks = call_faults(setup.kernel, setup.point, case.cotangent, setup.tolerance)
    return [
        Cell(
            "call",
            setup.steps,
            "call",
            name,
            off.right,
            off.size,
            off.allowed,
            "itself",
            what="" if off.right else what,
        )
        for name, off, what in checks
    ]
