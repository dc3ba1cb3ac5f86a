"""Bugs of published kernels, planted in a scan: each is found, and the lag, seam or step is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from planted_scan import PlantedScan, loop

import rnndiag
from rnndiag.engine.gradcheck.result import Cell, GradcheckResult

CHUNK, STEPS = 4, 13


def check(bug: str, with_reference: bool, batch: int = 3) -> GradcheckResult:
    torch.manual_seed(0)
    kernel = PlantedScan(bug, CHUNK)
    return rnndiag.gradcheck_recurrence(
        kernel,
        loop(kernel) if with_reference else None,
        inputs=torch.randn(STEPS, batch, 3),
        state=torch.randn(batch, 4),
        chunk=CHUNK,
        lengths=[5, STEPS, 9][:batch],
    )


def cells(result: GradcheckResult, row: str, run: str = "whole") -> list[Cell]:
    return [cell for cell in result.table if cell.row == row and cell.run == run]


def wrong_steps(result: GradcheckResult, row: str) -> list[int]:
    return [cell.steps for cell in cells(result, row) if not cell.right]


def final_cotangent(r: GradcheckResult) -> None:
    for cell in cells(r, "final state -> inputs"):
        assert (cell.right, cell.seam, cell.error) == (False, cell.steps, 1.0)
        assert "lost at the end of the call" in cell.what
    assert not wrong_steps(r, "outputs -> inputs")
    (composed,) = cells(r, "outputs -> inputs", f"chunks of {CHUNK}")
    assert composed.seam == CHUNK
    assert "across a seam (steps 4, 8" in composed.what


def initial_gradient(r: GradcheckResult) -> None:
    for row in ("outputs -> state", "final state -> state"):
        for cell in cells(r, row):
            assert (cell.right, cell.seam, cell.error) == (False, 0, 1.0)
    assert not wrong_steps(r, "outputs -> inputs")
    (composed,) = cells(r, "outputs -> inputs", f"chunks of {CHUNK}")
    assert composed.seam == CHUNK


def partial_chunk(r: GradcheckResult) -> None:
    assert wrong_steps(r, "outputs -> inputs") == [1, 3, 5, 9, 13]
    last = cells(r, "outputs -> inputs")[-1]
    assert (last.step, last.seam) == (12, 12)
    assert "last, partial chunk: step 12" in last.what


def decay_one_lag_off(r: GradcheckResult) -> None:
    for row in ("outputs -> decay", "final state -> decay"):
        for cell in cells(r, row):
            assert not cell.right
            assert cell.lag == 0
            assert "at every lag" in cell.what
    assert not wrong_steps(r, "outputs -> state")


def decay_lag_lost(r: GradcheckResult) -> None:
    for row in ("outputs -> decay", "final state -> decay"):
        for cell in cells(r, row):
            assert cell.right == (cell.steps == 1)
            assert cell.right or (cell.lag == 1 and "at lag 1 alone" in cell.what)
    assert {cell.target for cell in r.wrong} == {"decay"}


def padding(r: GradcheckResult) -> None:
    assert all(cell.run.startswith("lengths") for cell in r.wrong)
    (leak,) = cells(r, "final state -> inputs", "lengths 5,13,9")
    assert leak.step is not None
    assert "padding leaks: not zero at padded step" in leak.what
    assert all("padding leaks" in cell.what for cell in r.wrong)


def half_precision(r: GradcheckResult) -> None:
    named = [c for c in r.wrong if c.row == "value -> outputs" and not c.run.startswith("lengths")]
    assert named
    assert {cell.seam for cell in named} == {CHUNK}
    assert all("half-precision rounding" in cell.what for cell in named)
    assert all(2e-5 < cell.error < 8e-3 for cell in named)


def gate_order(r: GradcheckResult) -> None:
    for cell in cells(r, "outputs -> weight"):
        assert not cell.right
        assert cell.error > 0.5
        if cell.truth == "reference":
            assert "its 2 blocks (gates) in the order (1, 0)" in cell.what
    assert not wrong_steps(r, "outputs -> decay")


def internal_seams(r: GradcheckResult) -> None:
    assert wrong_steps(r, "outputs -> inputs") == [5, 8, 9, 13]
    assert {c.seam for c in cells(r, "outputs -> inputs") if not c.right} == {CHUNK}
    assert all(c.right for c in cells(r, "outputs -> inputs", f"chunks of {CHUNK}"))


def first_steps(r: GradcheckResult) -> None:
    assert "at the first step of every chunk" in cells(r, "outputs -> inputs")[-1].what


def chunks_not_accumulated(r: GradcheckResult) -> None:
    assert wrong_steps(r, "outputs -> weight") == [5, 8, 9, 13]
    assert {c.seam for c in cells(r, "outputs -> weight") if not c.right} == {CHUNK}
    assert {cell.target for cell in r.wrong} == {"weight"}


def odd_lengths(r: GradcheckResult) -> None:
    assert wrong_steps(r, "both -> inputs") == [1, 3, 5, 9, 13]


def batches(r: GradcheckResult) -> None:
    assert wrong_steps(r, "outputs -> weight") == [1, 3, 4, 5, 8, 9, 13]
    assert all(cell.right for cell in r.table if cell.run == "each sequence alone")


def not_finite(r: GradcheckResult) -> None:
    assert wrong_steps(r, "outputs -> inputs") == [1, 3, 5, 9, 13]
    assert all(c.error == float("inf") for c in cells(r, "outputs -> inputs") if not c.right)


def one_cotangent(r: GradcheckResult) -> None:
    assert wrong_steps(r, "both -> inputs") == [1, 3, 4, 5, 8, 9, 13]
    assert not wrong_steps(r, "outputs -> inputs")
    assert not wrong_steps(r, "final state -> inputs")


def state_without_gradient(r: GradcheckResult) -> None:
    assert {cell.run for cell in r.wrong} == {"state needs no gradient"}
    (place,) = cells(r, "outputs -> inputs", "state needs no gradient")
    assert place.step in (0, 1)


def shared_gradient(r: GradcheckResult) -> None:
    assert not [cell for cell in r.wrong if cell.run == "whole"]
    assert not cells(r, "outputs -> weight", f"chunks of {CHUNK}")[0].right


def strided(r: GradcheckResult) -> None:
    assert {cell.run for cell in r.wrong} == {"strided tensors"}


def call(target: str) -> Callable[[GradcheckResult], None]:
    def named(r: GradcheckResult) -> None:
        assert target in {cell.target for cell in r.wrong if cell.run == "call"}

    return named


BUGS: dict[str, Callable[[GradcheckResult], None]] = {
    "final state's cotangent dropped": final_cotangent,
    "initial state's gradient missing": initial_gradient,
    "no gradient for the initial state": initial_gradient,
    "last partial chunk scaled": partial_chunk,
    "decay's gradient one lag off": decay_one_lag_off,
    "lag 1 of the decay lost": decay_lag_lost,
    "padding leaks into the final state": padding,
    "cut at the wrong length": padding,
    "half-precision state between chunks": half_precision,
    "bfloat16 state between chunks": half_precision,
    "gate order in the backward pass": gate_order,
    "internal seams cut": internal_seams,
    "first step of every chunk lost": first_steps,
    "gradient of chunks not accumulated": chunks_not_accumulated,
    "wrong for odd lengths": odd_lengths,
    "wrong for more than one sequence": batches,
    "not finite in the last partial chunk": not_finite,
    "one cotangent at a time": one_cotangent,
    "initial state left out where it needs no gradient": state_without_gradient,
    "one gradient buffer for all calls": shared_gradient,
    "reads strided cotangents as contiguous": strided,
    "reads strided inputs as contiguous": strided,
    "gradient changes from call to call": call("same gradient twice"),
    "writes into the initial state": call("arguments unchanged"),
    "backward writes into what was saved": call("second backward"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_bug_is_found_and_named_by_the_kernel_alone(bug: str) -> None:
    result = check(bug, with_reference=False)
    assert not result
    assert result.faults
    BUGS[bug](result)


@pytest.mark.parametrize("bug", list(BUGS)[:11])
def test_bug_is_found_and_named_by_a_reference(bug: str) -> None:
    result = check(bug, with_reference=True)
    assert not result
    assert "reference" in {cell.truth for cell in result.wrong}
    BUGS[bug](result)


@pytest.mark.parametrize("with_reference", [True, False], ids=["reference", "no reference"])
def test_the_scan_without_a_bug_is_right(with_reference: bool) -> None:
    result = check("", with_reference)
    assert result, str(result)
    assert not result.faults
    assert not result.notes
    rows = {cell.row for cell in result.table if cell.run == "whole"}
    assert rows >= {
        f"{cotangent} -> {target}"
        for cotangent in ("outputs", "final state", "both")
        for target in ("weight", "decay", "inputs", "state")
    }


def test_swapped_gates_of_the_forward_pass_are_named_by_the_reference() -> None:
    result = check("gates swapped in the forward pass", True)
    first = cells(result, "value -> outputs")[0]
    assert not first.right
    assert "gates) of the parameters in the order (1, 0)" in first.what


def test_factor_of_a_scaled_chunk_is_named_by_the_reference() -> None:
    last = cells(check("last partial chunk scaled", True), "outputs -> inputs")[-1]
    assert "2 times the truth" in last.what


def test_sequences_that_are_wrong_are_named_by_the_reference() -> None:
    last = cells(check("wrong for more than one sequence", True), "outputs -> inputs")[-1]
    assert "in sequence 1 of the batch only" in last.what


def test_refused_lengths_are_noted_and_not_wrong() -> None:
    torch.manual_seed(0)
    kernel = PlantedScan("refuses odd lengths", CHUNK)
    result = rnndiag.gradcheck_recurrence(
        kernel, inputs=torch.randn(12, 2, 3), state=torch.randn(2, 4), chunk=CHUNK
    )
    assert result
    assert any("refuses T=5 (ValueError: the length must be even)" in note for note in result.notes)
