"""Prepares a check: the kernel on flat tensors, its dims and parameters, and the truths to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from rnndiag.engine.gradcheck.finite_differences import ForwardPass
from rnndiag.engine.gradcheck.gradients import Point, check_final
from rnndiag.engine.gradcheck.layout import Layout, find_layout
from rnndiag.engine.gradcheck.nested import Function, Tensors, flatten, leaves, rebuild
from rnndiag.engine.gradcheck.parameters import (
    cast,
    given_parameters,
    graph_leaves,
    held_in,
    kernel_parameters,
    matching,
    owned_tensors,
)
from rnndiag.engine.gradcheck.tolerance import Tolerance, tolerance_of
from rnndiag.engine.gradcheck.truths import OtherFunction
from rnndiag.errors import BadArgument

Kernel = Callable[..., Any]
FORWARD_RTOL = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Relative accuracy of finite differences, by the precision in which the forward pass is evaluated."""


@dataclass(frozen=True)
class Setup:
    """All that the judging of one kernel needs.

    Attributes:
        kernel: The kernel on flat tensors, for sequences of full length.
        with_lengths: Lengths -> the kernel called with these lengths.
        point: Arguments and parameters at full length.
        layout: Time and batch dimensions.
        tolerance: Allowed rounding of the dtype.
        chunk: Chunk size that lengths and seams are chosen by.
        reference: The float64 reference, where one is given.
        forward_dtype: Precision in which the forward pass can be evaluated for finite differences; None: in none.
        held: All tensors that the kernel owns.
        generator: Source of cotangents and directions.
    """

    kernel: Function
    with_lengths: Callable[[Sequence[int]], Function]
    point: Point
    layout: Layout
    tolerance: Tolerance
    chunk: int
    generator: torch.Generator
    reference: OtherFunction | None = None
    forward_dtype: torch.dtype | None = None
    held: tuple[Tensor, ...] = ()
    notes: Sequence[str] = ()

    @property
    def steps(self) -> int:
        return self.point.inputs[0].shape[self.layout.time]

    @property
    def batch(self) -> int:
        return self.point.inputs[0].shape[self.layout.batch]

    def cut(self, steps: int) -> Point:
        """The point at the first `steps` steps."""
        if steps == self.steps:
            return self.point
        return replace(self.point, inputs=self.layout.steps(self.point.inputs, 0, steps))

    def forward(self, point: Point) -> ForwardPass:
        """The kernel's forward pass at a point, in the finest precision that it can be evaluated in."""
        dtype = self.forward_dtype
        eps = self.tolerance.eps if dtype is None else torch.finfo(dtype).eps
        return ForwardPass(self.kernel, point, dtype, eps, self.held)

    @property
    def forward_rtol(self) -> float:
        return FORWARD_RTOL[self.forward_dtype] if self.forward_dtype else 1.0


def as_function(kernel: Kernel, inputs: Any, state: Any, *options: Any) -> Function:
    """A kernel of nested arguments as a function of flat tuples; `options` follow the state in each call."""

    def called(flat_inputs: Tensors, flat_state: Tensors) -> tuple[Tensors, Tensors]:
        result = kernel(
            rebuild(inputs, iter(flat_inputs)), rebuild(state, iter(flat_state)), *options
        )
        if not (isinstance(result, tuple | list) and len(result) == 2):
            raise BadArgument(
                f"The kernel returned {type(result).__name__}, not (outputs, final state).",
                "Wrap it in a function that returns these two.",
            )
        return flatten(result[0], "outputs"), flatten(result[1], "final state")

    return called


def takes_two(kernel: Kernel) -> bool:
    """True if the kernel can be called without lengths."""
    try:
        required = [
            p
            for p in signature(kernel).parameters.values()
            if p.default is Parameter.empty
            and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except ValueError:  # built-in functions have no signature
        return True
    return len(required) <= 2


@dataclass(frozen=True)
class Found:
    """Facts on a kernel from a single call."""

    function: Function
    point: Point
    held: tuple[Tensor, ...]


def find(
    kernel: Kernel, inputs: Any, state: Any, parameters: Any = None, name: str = "kernel"
) -> Found:
    """Call a kernel once and name its arguments, its parameters, and all tensors that it holds."""
    input_names, flat_inputs = zip(*leaves(inputs, "inputs"), strict=True)
    state_names, flat_state = zip(*leaves(state, "state"), strict=True)
    point = Point(flat_inputs, flat_state, {}, input_names, state_names)
    function = as_function(kernel, inputs, state)
    with torch.enable_grad():
        arguments = [tuple(t.detach().clone() for t in part) for part in (flat_inputs, flat_state)]
        outputs, final = function(*arguments)
    check_final(final, point)
    dims = tuple(flat_inputs[0].shape[:2])
    if any(tuple(y.shape[:2]) != dims for y in outputs):
        shapes = [tuple(y.shape) for y in outputs]
        raise BadArgument(
            f"The {name}'s outputs have shapes {shapes}, the inputs begin with {dims}.",
            "Inputs and outputs must share their first two dimensions, (T, B) or (B, T).",
        )
    owned = owned_tensors(kernel)
    used = graph_leaves((*outputs, *final))
    named = kernel_parameters(owned, used) if parameters is None else given_parameters(parameters)
    held = tuple({id(t): t for t in (*owned.values(), *named.values(), *used)}.values())
    return Found(function, replace(point, parameters=named), held)


def check_arguments(inputs: Tensors, chunk: int | None) -> None:
    """Raise unless the inputs share two leading dimensions and the chunk fits them."""
    dims = {tuple(x.shape[:2]) for x in inputs}
    if not inputs or len(dims) != 1 or len(next(iter(dims))) != 2 or 0 in next(iter(dims)):
        raise BadArgument(
            f"The inputs have shapes {[tuple(x.shape) for x in inputs]}.",
            "All inputs need the same two leading dimensions, (T, B, ...) or (B, T, ...).",
        )
    if chunk is not None and chunk < 1:
        raise BadArgument(
            f"chunk is {chunk}.", "Pass the number of steps that the kernel treats at once."
        )


def full_length(kernel: Kernel, count: int) -> Kernel:
    """The kernel with lengths always given: those of the whole sequences.

    `count` is the number of sequences, which identifies the batch dim; a batch of one is passed without lengths.
    """

    def called(inputs: Any, state: Any) -> Any:
        first = flatten(inputs, "inputs")[0]
        sizes = tuple(first.shape[:2])
        size = count if count in sizes else 1
        full = torch.full((size,), sizes[0] * sizes[1] // size, device=first.device)
        return kernel(inputs, state, full)

    return called


def prepare(
    kernel: Kernel,
    found: Found,
    reference: Found | None,
    templates: tuple[Any, Any],
    *,
    dtype: torch.dtype | None,
    chunk: int | None,
    batch_first: bool | None,
    rtol: float | None,
    generator: torch.Generator,
) -> Setup:
    """The setup of a check. Call it while the kernel's tensors are held in `dtype`."""
    point = replace(
        found.point, inputs=cast(found.point.inputs, dtype), state=cast(found.point.state, dtype)
    )
    layout = find_layout(found.function, point.inputs, point.state, batch_first)
    steps = point.inputs[0].shape[layout.time]
    own = (*point.inputs, *point.state, *point.parameters.values())

    def with_lengths(lengths: Sequence[int]) -> Function:
        count = torch.tensor(list(lengths), device=point.inputs[0].device)
        return as_function(kernel, *templates, count)

    setup = Setup(
        kernel=found.function,
        with_lengths=with_lengths,
        point=point,
        layout=layout,
        tolerance=tolerance_of(own, rtol),
        chunk=min(chunk or default_chunk(steps), steps),
        generator=generator,
        reference=None if reference is None else other(found, reference),
        held=found.held,
    )
    setup = replace(setup, forward_dtype=forward_dtype(setup))
    return replace(setup, notes=_notes(setup))


def other(found: Found, reference: Found) -> OtherFunction:
    """The reference in float64, its parameters matched with the kernel's."""
    pairs = matching(found.point.parameters, reference.point.parameters)
    return OtherFunction("reference", reference.function, torch.float64, reference.held, pairs)


def default_chunk(steps: int) -> int:
    """A power of two, so that two chunks and a rest fit into `steps`."""
    chunk = 1
    while 4 * chunk + 1 <= steps:
        chunk *= 2
    return chunk


def forward_dtype(setup: Setup) -> torch.dtype | None:
    """float64 if the kernel runs in it, else float32, else None."""
    for dtype in (torch.float64, torch.float32):
        try:
            point = setup.cut(min(setup.steps, 2))
            forward = replace(setup, forward_dtype=dtype).forward(point)
            with held_in(setup.held, dtype), torch.no_grad():
                outputs, final = setup.kernel(cast(point.inputs, dtype), cast(point.state, dtype))
            results = [t for t in (*outputs, *final) if t.is_floating_point()]
            if all(t.dtype == dtype for t in results) and forward.values():
                return dtype
        except Exception:  # noqa: BLE001, PERF203 - whatever a kernel raises of a dtype, it does not run in it
            continue
    return None


def _notes(setup: Setup) -> list[str]:
    """What the check cannot detect at this point, as sentences."""
    notes = []
    point = setup.point
    if not point.parameters:
        notes.append(
            "the kernel has no parameters that require a gradient: only inputs and state were checked."
        )
    zero = [n for n, s in zip(point.state_names, point.state, strict=True) if not bool(s.any())]
    if zero:
        notes.append(
            f"{', '.join(zero)} is all zeros: what multiplies the initial state cannot be seen to be wrong. "
            "Pass a random state."
        )
    if setup.reference is None and setup.forward_dtype is None:
        notes.append(
            "the kernel runs in half precision only, too coarse for finite differences: whole and chunks were "
            "compared with each other alone. Pass a float64 reference."
        )
    missing = set(point.parameters) - set(
        (setup.reference and setup.reference.counterparts) or point.parameters
    )
    if missing:
        notes.append(f"the reference has no parameter like {', '.join(sorted(missing))}.")
    return notes
