"""Checks calls with variable lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rnndiag.engine.gradcheck.comparisons import Run, cell_of
from rnndiag.engine.gradcheck.gradients import Gradients, draw_cotangents, gradients
from rnndiag.engine.gradcheck.hints import describe
from rnndiag.engine.gradcheck.result import Cell
from rnndiag.engine.gradcheck.runs import alone_to_length, lengths_around, valid_steps, with_padding
from rnndiag.engine.gradcheck.setup import Setup
from rnndiag.engine.gradcheck.tolerance import (
    FINAL,
    OUTPUTS,
    Difference,
    difference,
    measured_noise,
)
from rnndiag.engine.gradcheck.truths import OtherFunction
from rnndiag.errors import BadArgument


def read_lengths(lengths: Sequence[int] | Tensor, setup: Setup) -> list[tuple[int, ...]]:
    """The given lengths, and as many lengths around the chunk size."""
    own = tuple(int(n) for n in lengths)
    if len(own) != setup.batch or not all(0 <= n <= setup.steps for n in own):
        raise BadArgument(
            f"lengths are {own} for {setup.batch} sequences of {setup.steps} steps.",
            "Pass one length per sequence, each from 0 to the number of steps.",
        )
    if setup.batch > 1 and not setup.layout.separable:
        raise BadArgument(
            f"No dimension of the state, {[tuple(s.shape) for s in setup.point.state]}, holds {setup.batch} sequences.",
            "Variable lengths are checked one sequence at a time, which needs a state for each.",
        )
    around = [n for n in lengths_around(setup.chunk, setup.steps) if n < setup.steps]
    chosen = [setup.steps, *reversed(around)]
    drawn = tuple(chosen[b % len(chosen)] for b in range(setup.batch))
    return [own] if drawn == own else [own, drawn]


def length_cells(setup: Setup, lengths: Sequence[int]) -> Iterator[Cell]:
    """Cells of a call with variable lengths, compared with each sequence alone at its own length.

    Losses weight valid steps only. Gradients at padded inputs must be zero, and the content of the padding must not
    matter.
    """
    layout = setup.layout
    base = setup.kernel if setup.reference is None else setup.reference.function
    own = OtherFunction("each sequence alone", alone_to_length(base, layout, lengths))
    if setup.reference is not None:
        own = replace(setup.reference, function=own.function)
    function = setup.with_lengths(lengths)
    padded = replace(setup.point, inputs=with_padding(setup.point.inputs, layout, lengths, 0))
    other = replace(setup.point, inputs=with_padding(setup.point.inputs, layout, lengths, 1))
    run = Run(f"lengths {','.join(map(str, lengths))}", function, padded)
    with torch.no_grad():
        arguments = [tuple(t.clone() for t in part) for part in (padded.inputs, padded.state)]
        outputs, final = setup.kernel(*arguments)
    for drawn in draw_cotangents(outputs, final, padded.state_names, setup.generator):
        masked = tuple(
            v if v is None else v * valid_steps(v, layout, lengths) for v in drawn.outputs
        )
        cotangent = replace(drawn, outputs=masked)
        found, again = gradients(function, padded, cotangent), gradients(function, other, cotangent)
        truth = own.gradients(padded, cotangent)
        noise = measured_noise(
            function, padded, cotangent, found, setup.tolerance.eps, layout.time, setup.generator
        )
        for name, gradient in found.of.items():
            time = layout.time if name in padded.input_names else None
            expected = truth.of.get(name)
            off = difference(gradient, expected, setup.tolerance, time, noise.get(name, 0.0))
            cell = cell_of(setup, run, cotangent.name, name, off, own.name)
            if not cell.right:
                moved = difference(again.of[name], gradient, setup.tolerance, time)
                cell = replace(
                    cell,
                    what=_padding(setup, lengths, gradient, expected, moved, time),
                    step=_first(off),
                )
            yield cell
        if cotangent.name == "both":
            yield from _length_values(setup, run, lengths, found, again, truth)


def _first(off: Difference) -> int | None:
    return off.wrong_steps[0] if off.wrong_steps else None


def _length_values(
    setup: Setup,
    run: Run,
    lengths: Sequence[int],
    found: Gradients,
    again: Gradients,
    truth: Gradients,
) -> Iterator[Cell]:
    """Outputs of valid steps, and final states."""
    for target, mine, theirs, others in (
        (OUTPUTS, found.outputs, truth.outputs, again.outputs),
        (FINAL, found.final, truth.final, again.final),
    ):
        for a, b, c in zip(mine, theirs, others, strict=True):
            time = setup.layout.time if target == OUTPUTS else None
            if target == OUTPUTS:
                mask = valid_steps(a, setup.layout, lengths).bool()
                a, b, c = (torch.where(mask, y, 0) for y in (a, b, c))
            off = difference(a, b, setup.tolerance, time)
            cell = cell_of(setup, run, "value", target, off, "each sequence alone")
            if not cell.right:
                moved = difference(c, a, setup.tolerance, time)
                cell = replace(
                    cell, what=_padding(setup, lengths, a, b, moved, time), step=_first(off)
                )
            yield cell


def _padding(
    setup: Setup,
    lengths: Sequence[int],
    found: Tensor | None,
    truth: Tensor | None,
    moved: Difference,
    time: int | None,
) -> str:
    """What is wrong with variable lengths: whether padding leaks, and at which step of which sequence."""
    words = []
    if found is not None and time is not None:
        outside = found.detach() * (1 - valid_steps(found, setup.layout, lengths))
        if bool(outside.any()):
            at = torch.nonzero(outside)[0]
            t, b = int(at[setup.layout.time]), int(at[setup.layout.batch])
            words.append(
                f"padding leaks: not zero at padded step {t} of sequence {b} (length {lengths[b]})"
            )
    if not moved.right and not words:
        words.append("padding leaks: other values at padded steps change it")
    if not words:
        batch = setup.layout.batch if time is not None else None
        words.append("wrong for variable lengths, whatever the padding holds")
        words.append(describe(found, truth, 0, batch))
    return "; ".join(word for word in words if word)
