"""Bugs planted in a chunked linear attention with decay, whose backward pass is written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import rnndiag
from rnndiag.engine.gradcheck.result import GradcheckResult

CHUNK, STEPS = 4, 13


class Attention(torch.autograd.Function):
    """S_t = a_t S_{t-1} + k_t v_t', y_t = q_t S_t; inputs (B, T, ...), state (B, D, E)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, a: Tensor, s: Tensor, bug: str) -> Any:
        outputs, at_seams = [], []
        for t in range(q.shape[1]):
            if t % CHUNK == 0:
                at_seams.append(s)
            s = a[:, t, None, None] * s + k[:, t, :, None] * v[:, t, None, :]
            outputs.append((q[:, t, :, None] * s).sum(1))
            if bug == "half" and t % CHUNK == CHUNK - 1:
                s = s.half().to(s.dtype)
        ctx.save_for_backward(q, k, v, a, *at_seams)
        ctx.bug = bug
        return torch.stack(outputs, 1), s

    @staticmethod
    def backward(ctx: Any, of_outputs: Tensor, of_final: Tensor) -> Any:
        q, k, v, a, *at_seams = ctx.saved_tensors
        bug, steps = ctx.bug, q.shape[1]
        to_q, to_k, to_v, to_a = map(torch.zeros_like, (q, k, v, a))
        adjoint = torch.zeros_like(of_final) if bug == "final" else of_final.clone()
        for number in reversed(range(len(at_seams))):
            first = number * CHUNK
            states = [at_seams[number]]
            for t in range(first, min(steps, first + CHUNK)):
                kept = a[:, t, None, None] * states[-1]
                states.append(kept + k[:, t, :, None] * v[:, t, None, :])
            if bug == "seam" and number == 1:
                adjoint = torch.zeros_like(adjoint)
            for t in reversed(range(first, min(steps, first + CHUNK))):
                here, before = states[t - first + 1], states[t - first]
                to_q[:, t] = (here * of_outputs[:, t, None, :]).sum(-1)
                adjoint = adjoint + q[:, t, :, None] * of_outputs[:, t, None, :]
                to_k[:, t] = (adjoint * v[:, t, None, :]).sum(-1)
                to_v[:, t] = (adjoint * k[:, t, :, None]).sum(1)
                used = states[max(0, t - first - 1)] if bug == "decay" else before
                to_a[:, t] = (adjoint * used).sum((1, 2))
                adjoint = a[:, t, None, None] * adjoint
        return to_q, to_k, to_v, to_a, adjoint, None


def check(bug: str) -> GradcheckResult:
    torch.manual_seed(1)
    sizes = [(3, STEPS, 4), (3, STEPS, 4), (3, STEPS, 5), (3, STEPS)]
    inputs = tuple(torch.randn(size) for size in sizes)

    def kernel(inputs: tuple[Tensor, ...], state: Tensor) -> Any:
        q, k, v, a = inputs
        return Attention.apply(q, k, v, torch.sigmoid(a + 2), state, bug)

    return rnndiag.gradcheck_recurrence(
        kernel, inputs=inputs, state=torch.randn(3, 4, 5), chunk=CHUNK
    )


def final(result: GradcheckResult) -> None:
    for target in ("inputs[1]", "inputs[2]", "inputs[3]", "state"):
        cells = [c for c in result.wrong if c.row == f"final state -> {target}"]
        # q has no gradient from the final state, and does not show that the cotangent got in
        assert {c.seam for c in cells if c.run == "whole"} == {1, 3, 4, 5, 8, 9, 13}


def decay(result: GradcheckResult) -> None:
    assert {c.target for c in result.wrong} == {"inputs[3]"}
    told = [c for c in result.wrong if c.row == "outputs -> inputs[3]" and c.steps == STEPS]
    assert told[0].lag == 0
    assert "but for the first step of every chunk" in told[0].what


def seam(result: GradcheckResult) -> None:
    told = {c.row: c for c in result.wrong if c.run == "whole" and c.steps == STEPS}
    for target in ("inputs[1]", "inputs[2]", "inputs[3]"):
        assert told[f"outputs -> {target}"].seam == 2 * CHUNK


def half(result: GradcheckResult) -> None:
    values = [c for c in result.wrong if c.cotangent == "value"]
    assert values
    assert all("half-precision rounding" in c.what for c in values)
    # finite differences of a rounded function are steps: no place is claimed by them
    differences = [c for c in result.wrong if c.truth == "dot product"]
    assert differences
    assert all((c.lag, c.seam, c.step) == (None, None, None) for c in differences)
    assert all("mend the values first" in c.what for c in differences)


@pytest.mark.parametrize("told", [final, decay, seam, half])
def test_a_planted_bug_is_found_and_its_place_is_named(
    told: Callable[[GradcheckResult], None],
) -> None:
    result = check(told.__name__)
    assert not result
    told(result)


def test_the_right_kernel_raises_no_alarm() -> None:
    assert check("")
