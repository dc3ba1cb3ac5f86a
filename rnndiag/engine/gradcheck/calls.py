"""Checks of single calls: arguments written in place, results that change, a graph that cannot be reused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor

from rnndiag.engine.gradcheck.gradients import Cotangent, Point, gradients
from rnndiag.engine.gradcheck.nested import Function, Tensors
from rnndiag.engine.gradcheck.tolerance import Difference, Tolerance, difference


def call_faults(
    function: Function, point: Point, cotangent: Cotangent, tolerance: Tolerance
) -> Iterator[tuple[str, Difference, str]]:
    """Each check of a call: its name, the size of the error, and the sentence for a failure.

    Args:
        function: The kernel.
        point: Arguments and parameters.
        cotangent: Weights of outputs and final state together.
        tolerance: Differences within it are rounding: sums on a GPU may be ordered anew in every call.
    """
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
    arguments = tuple(
        t.detach().clone().requires_grad_(t.is_floating_point())
        for t in (*point.inputs, *point.state)
    )
    with torch.enable_grad():
        given = tuple(t.clone() for t in arguments)
        outputs, final = function(given[: len(point.inputs)], given[len(point.inputs) :])
    results = [t.detach().clone() for t in (*outputs, *final)]
    ties = [
        (y, v)
        for y, v in _pairs((*outputs, *final), cotangent.parts())
        if v is not None and y.requires_grad
    ]
    wanted = [t for t in (*arguments, *point.parameters.values()) if t.requires_grad]

    def backward(keep: bool) -> tuple[Tensor | None, ...]:
        ys, vs = zip(*ties, strict=True)
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            ys, wanted, vs, retain_graph=keep, allow_unused=True
        )
        # Copies: a kernel may hand out one buffer in both passes.
        return tuple(None if g is None else g.clone() for g in found)

    passes: list[tuple[Tensor | None, ...]] = []
    # A kernel may refuse a second pass, as autograd itself does; only a silent one is a fault.
    with suppress(RuntimeError):
        if ties and wanted:
            passes.append(backward(True))
            passes.append(backward(False))
    arguments_named = (*point.input_names, *point.state_names)
    written = [
        n for n, a, b in zip(arguments_named, arguments, given, strict=True) if not _equal(a, b)
    ]
    exact = Difference(float("inf") if written else 0.0, 1.0 if written else 0.0, 0.0)
    yield "arguments unchanged", exact, f"the call writes into {', '.join(written)}"
    changed = any(not _equal(a, b) for a, b in zip(results, (*outputs, *final), strict=True))
    exact = Difference(float("inf") if changed else 0.0, 1.0 if changed else 0.0, 0.0)
    yield (
        "results unchanged by backward",
        exact,
        "the backward pass writes into the outputs or the final state",
    )
    if len(passes) == 2:
        again = [difference(b, a, tolerance) for a, b in zip(*passes, strict=True)]
        yield (
            "second backward",
            _worst(again),
            "a second backward pass through the same graph gives another gradient",
        )


def _pairs(a: Tensors, b: tuple[Tensor | None, ...]) -> list[tuple[Tensor, Tensor | None]]:
    return list(zip(a, b, strict=True))


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(torch.equal(a.detach().nan_to_num(), b.detach().nan_to_num()))


def _worst(differences: list[Difference]) -> Difference:
    return max(differences, key=lambda d: d.ratio, default=Difference(0.0, 0.0, 0.0))
