"""Checks that changing one sample leaves the others' states unchanged: else the batch is mixed, reshaped or
transposed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.preflight.finding import finding
from rnndiag.recorder.preflight.layout import BatchLayout
from rnndiag.recorder.preflight.observe import ModuleCall, PassResult, PreflightSubject, differs
from rnndiag.recorder.preflight.perturb import of_sample

if TYPE_CHECKING:
    from rnndiag.health.finding import Finding

MIXED = "samples mixed"
SWAPPED = "time and batch swapped"
RESHAPED = "reshaped, not transposed"


def check_samples(subject: PreflightSubject) -> list[Finding]:
    """Findings for every layer, in eval mode and in training mode."""
    if subject.layout.samples < 2:
        return [
            finding(
                MIXED, "not_judged", "the batch holds one sample", "Give a batch of two or more."
            )
        ]
    found = [one for training in (False, True) for one in _in_mode(subject, training)]
    by_check: dict[tuple[str, str], Finding] = {}
    for one in found:
        by_check.setdefault((one.check, one.layer), one)
    if by_check:
        return list(by_check.values())
    return [finding(MIXED, "pass", "each sample's states depend on that sample alone")]


def _in_mode(subject: PreflightSubject, training: bool) -> list[Finding]:
    layout = subject.layout
    sample = layout.samples // 2
    other = of_sample(subject.batch, layout, sample)
    before, after = subject.seen(training), subject.observe(other, training)
    found = []
    for name, run in before.runs.items():
        if name in after.runs and (fault := _fault(subject, run, after.runs[name], sample)):
            found.append(_finding_of(subject, fault, run, training, other))
    return found


def _fault(subject: PreflightSubject, run: LayerRun, other: LayerRun, sample: int) -> str:
    """Which of the three faults the layer shows; empty if none."""
    layout = subject.layout
    entered, states = (
        differs(run.inputs, other.inputs),
        differs(run.state_vector(), other.state_vector()),
    )
    if not bool(entered.any()):
        entered = states
    rows, columns = entered.any(1), entered.any(0)
    if (
        layout.samples == run.T
        and layout.steps == run.B
        and _only(rows, sample)
        and int(columns.sum()) > 1
    ):
        return SWAPPED
    if layout.samples == run.B:
        if int(columns.sum()) <= 1 and int(states.any(0).sum()) <= 1:
            return ""
        return RESHAPED if _row_major(entered, sample, layout.steps) else MIXED
    within = bool((states.any(0) & ~columns).any())
    return MIXED if run.B > 1 and (within or bool(columns.all())) else ""


def _only(flags: Tensor, index: int) -> bool:
    return int(flags.sum()) == 1 and bool(flags[index])


def _row_major(entered: Tensor, sample: int, steps: int) -> bool:
    """Whether the changed (T, B) entries are contiguous in memory: one sample's block spread over time and batch."""
    where = torch.nonzero(entered.reshape(-1)).reshape(-1)
    block = torch.arange(sample * steps, (sample + 1) * steps)
    return len(where) > 1 and bool(torch.isin(where, block).all())


def _finding_of(
    subject: PreflightSubject, fault: str, run: LayerRun, training: bool, other: object
) -> Finding:
    """The finding on one fault of one layer."""
    layout = subject.layout
    if fault == SWAPPED:
        return swapped(run, layout)
    if fault == RESHAPED:
        return finding(
            RESHAPED,
            "fail",
            f"a reshape before {run.name} deals the steps of one sample out to {layout.samples} samples",
            "Use transpose(0, 1) or permute where view or reshape swaps time and batch.",
            run.name,
        )
    culprit = _culprit(subject.seen(training, True), subject.observe(other, training, calls=True))
    by = f"{culprit.name} ({culprit.kind})" if culprit else f"something in or before {run.name}"
    mode = "in training mode " if training else ""
    return finding(
        MIXED,
        "warn" if training else "fail",
        f"{mode}{by} mixes the samples of the batch: one sample changes the others' states in {run.name}",
        "Normalise over features (LayerNorm) in place of the batch, or keep the batch dim out of reductions "
        "and reshapes.",
        run.name,
    )


def swapped(run: LayerRun, layout: BatchLayout) -> Finding:
    """The finding on a layer whose time axis is the batch's samples."""
    otherwise = " (if dim 0 of this batch is time: preflight(..., batch_dim=1))"
    return finding(
        SWAPPED,
        "warn" if layout.assumed else "fail",
        f"{run.name} walks along the {layout.samples} samples and takes the {layout.steps} steps for its batch",
        f"Set batch_first=True, or transpose the input{otherwise if layout.assumed else ''}.",
        run.name,
    )


def _culprit(before: PassResult, after: PassResult) -> ModuleCall | None:
    """The first module whose input is changed in part and whose output is changed everywhere."""
    for one, other in zip(before.calls, after.calls, strict=False):
        if one.name != other.name or one.entered is None or other.entered is None:
            continue
        if one.left is None or other.left is None:
            continue
        if _in_part(one.entered, other.entered) and _everywhere(one.left, other.left):
            return one
    return None


def _slices(one: Tensor, other: Tensor) -> list[Tensor]:
    """For each of the first two dims, which of its slices differ, as bools."""
    if one.shape != other.shape or one.ndim < 2:
        return []
    changed = (one - other).abs() > 1e-6 * float(one.abs().max())
    return [changed.transpose(0, dim).reshape(one.shape[dim], -1).any(1) for dim in (0, 1)]


def _in_part(one: Tensor, other: Tensor) -> bool:
    return any(bool(flags.any()) and not bool(flags.all()) for flags in _slices(one, other))


def _everywhere(one: Tensor, other: Tensor) -> bool:
    found = _slices(one, other)
    return bool(found) and all(bool(flags.all()) for flags in found)
