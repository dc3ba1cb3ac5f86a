"""Checks that the state is carried from step to step: early inputs must influence late states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.preflight.finding import finding
from rnndiag.recorder.preflight.observe import PreflightSubject, differs
from rnndiag.recorder.preflight.perturb import of_steps

if TYPE_CHECKING:
    from rnndiag.health.finding import Finding

NOT_CARRIED = "state not carried"


def calls_of(runs: dict[str, LayerRun]) -> dict[str, list[LayerRun]]:
    """The layer runs by layer, in order of their calls: `rnn.l0`, `rnn.l0#2`, ..."""
    grouped: dict[str, list[LayerRun]] = {}
    for name, run in runs.items():
        grouped.setdefault(name.partition("#")[0], []).append(run)
    return grouped


def check_state(subject: PreflightSubject) -> list[Finding]:
    """One finding for each layer whose late states do not depend on early inputs."""
    layout, before = subject.layout, subject.seen()
    if layout.steps < 2:
        return [finding(NOT_CARRIED, "not_judged", "the batch has one step")]
    after = subject.observe(of_steps(subject.batch, layout, 0, layout.steps // 2))
    found, judged = [], False
    for layer, runs in calls_of(dict(before.runs)).items():
        length = sum(run.T for run in runs)
        if length != layout.steps or runs[0].reverse or layout.samples != runs[0].B:
            continue
        judged = True
        if not _later_states_differ(runs, after.runs, layout.steps // 2):
            found.append(
                finding(
                    NOT_CARRIED,
                    "fail",
                    f"{layer} is called {len(runs)} times and starts each time anew: what it saw earlier is lost",
                    "Pass the state that a call returns into the next call.",
                    layer,
                )
            )
    if not judged and not found:
        return [finding(NOT_CARRIED, "not_judged", "no layer runs along the steps of the batch")]
    return found or [finding(NOT_CARRIED, "pass", "earlier inputs change later states")]


def _later_states_differ(runs: list[LayerRun], after: object, half: int) -> bool:
    """Whether any state of a step at or after `half` changed."""
    step = 0
    for run in runs:
        other = after.get(run.name) if isinstance(after, dict) else None
        if other is not None and step + run.T > half:
            flags = differs(run.state_vector(), other.state_vector())
            if bool(flags[max(half - step, 0) :].any()):
                return True
        step += run.T
    return False
