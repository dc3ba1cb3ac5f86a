"""Checks that changing inputs from step t on leaves earlier states unchanged, unless a direction runs backwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rnndiag.recorder.preflight.finding import finding
from rnndiag.recorder.preflight.observe import PreflightSubject, differs
from rnndiag.recorder.preflight.perturb import of_steps

if TYPE_CHECKING:
    from rnndiag.health.finding import Finding

AHEAD = "looks ahead"


def check_time(subject: PreflightSubject) -> list[Finding]:
    """One finding for the first layer whose states depend on later inputs; else a pass.

    Layers behind a reverse direction, or starting from the final state of another run (a decoder), may depend on them.
    """
    layout, before = subject.layout, subject.seen()
    judged = {
        name: run
        for name, run in before.runs.items()
        if layout.steps == run.T and layout.samples == run.B and not run.reverse
    }
    if layout.steps < 2 or not judged:
        return [finding(AHEAD, "not_judged", "no layer runs along the steps of the batch")]
    first = (layout.steps + 1) // 2
    after = subject.observe(of_steps(subject.batch, layout, first, layout.steps))
    backwards = False
    for name, run in before.runs.items():
        backwards = backwards or run.reverse
        other = after.runs.get(name)
        if name not in judged or other is None:
            continue
        if any(
            bool(differs(a[None], b[None]).any())
            for a, b in zip(run.initial, other.initial, strict=True)
        ):
            break
        entered = differs(run.inputs, other.inputs).any(1)
        if bool(entered[: layout.steps - first].all()) and not bool(
            entered[layout.steps - first :].any()
        ):
            backwards = True
            continue
        if bool(entered[:first].any()):
            if backwards:
                break
            return [_finding_of(name, f"the inputs of {name} at a step depend on later steps")]
        if bool(differs(run.state_vector(), other.state_vector())[:first].any()):
            return [_finding_of(name, f"states of {name} depend on later steps")]
    return [finding(AHEAD, "pass", "no state depends on later inputs, but for reverse directions")]


def _finding_of(name: str, message: str) -> Finding:
    return finding(
        AHEAD,
        "warn",
        message,
        "Look for time and batch swapped, a convolution without causal padding, or a normalisation over time; "
        "if the layer may see the future, this is fine.",
        name,
    )
