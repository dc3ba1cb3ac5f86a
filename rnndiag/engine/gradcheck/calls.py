"""Checks of single calls: arguments written in place, results that change, a graph that cannot be reused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor

from rnndiag.engine.gradcheck.gradients import Cotangent, Point, gradients
from rnndiag.engine.gradcheck.nested import Function, Tensors
from rnndiag.engine.gradcheck.tolerance import Difference, Tolerance, difference

CallCheck = tuple[str, Difference, str]
"""Name of a check, the size of the error, and the sentence for a failure."""


def call_faults(
    function: Function, point: Point, cotangent: Cotangent, tolerance: Tolerance
) -> Iterator[CallCheck]:
    """Every check of a call.

    Args:
        function: The kernel.
        point: Arguments and parameters.
        cotangent: Weights of outputs and final state together.
        tolerance: Differences within it are rounding: a GPU may order sums differently in every call.
    """
    yield from _of_two_calls(function, point, cotangent, tolerance)
    yield from _of_one_graph(function, point, cotangent, tolerance)


def _of_two_calls(
    function: Function, point: Point, cotangent: Cotangent, tolerance: Tolerance
) -> Iterator[CallCheck]:
    """Whether a second call with the same arguments gives the same values and gradients."""
    first, second = (gradients(function, point, cotangent) for _ in range(2))
    values = [
        difference(a, b, tolerance)
        for a, b in _pairs((*second.outputs, *second.final), (*first.outputs, *first.final))
    ]
    yield (
        "same values twice",
        _worst(values),
        "two calls with the same arguments return different values",
    )
    repeated = [difference(second.of[name], first.of[name], tolerance) for name in first.of]
    names = [n for n, d in zip(first.of, repeated, strict=True) if not d.right]
    yield (
        "same gradient twice",
        _worst(repeated),
        f"two calls with the same arguments return different gradients of {', '.join(names)}",
    )


def _of_one_graph(
    function: Function, point: Point, cotangent: Cotangent, tolerance: Tolerance
) -> Iterator[CallCheck]:
    """Whether a call and two backward passes leave alone what they are given, and the passes agree."""
    arguments = tuple(
        t.detach().clone().requires_grad_(t.is_floating_point())
        for t in (*point.inputs, *point.state)
    )
    with torch.enable_grad():
        given = tuple(t.clone() for t in arguments)
        outputs, final = function(given[: len(point.inputs)], given[len(point.inputs) :])
    results = (*outputs, *final)
    before = [t.detach().clone() for t in results]
    weighted = [
        (y, v) for y, v in _pairs(results, cotangent.parts()) if v is not None and y.requires_grad
    ]
    wanted = [t for t in (*arguments, *point.parameters.values()) if t.requires_grad]
    passes = _backward_twice(weighted, wanted) if weighted and wanted else []
    names = (*point.input_names, *point.state_names)
    written = [n for n, a, b in zip(names, arguments, given, strict=True) if not _equal(a, b)]
    yield (
        "arguments unchanged",
        _all_or_nothing(bool(written)),
        f"the call writes into {', '.join(written)}",
    )
    yield (
        "results unchanged by backward",
        _all_or_nothing(any(not _equal(a, b) for a, b in zip(before, results, strict=True))),
        "the backward pass writes into the outputs or the final state",
    )
    if len(passes) == 2:
        again = [difference(b, a, tolerance) for a, b in zip(*passes, strict=True)]
        yield (
            "second backward",
            _worst(again),
            "a second backward pass through the same graph gives another gradient",
        )


def _backward_twice(
    weighted: list[tuple[Tensor, Tensor]], wanted: list[Tensor]
) -> list[tuple[Tensor | None, ...]]:
    """The gradients of two backward passes through one graph; fewer where the kernel refuses a pass."""
    results, weights = zip(*weighted, strict=True)
    passes: list[tuple[Tensor | None, ...]] = []
    # A kernel may refuse a second pass, as autograd itself does; only a silent one is a fault.
    with suppress(RuntimeError):
        for keep in (True, False):
            found: tuple[Tensor | None, ...] = torch.autograd.grad(
                results, wanted, weights, retain_graph=keep, allow_unused=True
            )
            # Copies: a kernel may hand out one buffer in both passes.
            passes.append(tuple(None if g is None else g.clone() for g in found))
    return passes


def _all_or_nothing(fault: bool) -> Difference:
    """The `Difference` of a check that only passes or fails: infinite for a fault, else zero."""
    return Difference(float("inf"), 1.0, 0.0) if fault else Difference(0.0, 0.0, 0.0)


def _pairs(a: Tensors, b: tuple[Tensor | None, ...]) -> list[tuple[Tensor, Tensor | None]]:
    return list(zip(a, b, strict=True))


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(torch.equal(a.detach().nan_to_num(), b.detach().nan_to_num()))


def _worst(differences: list[Difference]) -> Difference:
    return max(differences, key=lambda d: d.ratio, default=Difference(0.0, 0.0, 0.0))
