"""Checks that the content of the padding does not influence the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.nested import named_tensors
from rnndiag.recorder.preflight.finding import finding
from rnndiag.recorder.preflight.layout import BatchLayout
from rnndiag.recorder.preflight.observe import PassResult, PreflightSubject, differs
from rnndiag.recorder.preflight.perturb import of_padding, of_tensor

if TYPE_CHECKING:
    from rnndiag.health.finding import Finding

COUNTED = "padding counts"


def check_padding(subject: PreflightSubject) -> list[Finding]:
    """Finding on whether other content in padded steps changes the loss."""
    layout, padding = subject.layout, subject.layout.padding()
    if padding is None:
        return [finding(COUNTED, "note", "the batch has no padding, or does not tell its lengths")]
    before = subject.seen()
    inputs = _inputs(subject, before)
    if not inputs:
        return [
            finding(
                COUNTED, "not_judged", "no tensor of the batch with steps reaches a recurrent layer"
            )
        ]
    after = subject.observe(of_padding(subject.batch, layout, padding, inputs))
    scale = max(abs(before.loss), 1e-12)
    if abs(after.loss - before.loss) <= 1e-5 * scale:
        return [
            finding(
                COUNTED, "pass", f"the loss does not depend on the padding ({layout.lengths_from})"
            )
        ]
    name, how = _where(before, after, layout)
    return [
        finding(
            COUNTED,
            "fail",
            f"the loss goes from {before.loss:.6g} to {after.loss:.6g} when only padded steps change: {how}",
            "Pack the sequences (pack_padded_sequence), take the last real step in place of the last one, and mask "
            "padded steps out of the loss.",
            name,
            (f"note lengths are taken from {layout.lengths_from}",),
        )
    ]


def _inputs(subject: PreflightSubject, before: PassResult) -> set[str]:
    """Paths of the tensors with steps that a recurrent layer depends on."""
    found = set()
    for path, tensor in named_tensors(subject.batch, padded=True):
        if not subject.layout.has_time(tensor) or tensor.dtype == torch.bool:
            continue
        after = subject.observe(of_tensor(subject.batch, subject.layout, path))
        if any(
            name in after.runs and bool(differs(run.inputs, after.runs[name].inputs).any())
            for name, run in before.runs.items()
        ):
            found.add(path)
    return found


def _where(before: PassResult, after: PassResult, layout: BatchLayout) -> tuple[str, str]:
    """The layer at which padding enters, and how."""
    padding = layout.padding()
    assert padding is not None
    for name, run in before.runs.items():
        other = after.runs.get(name)
        if other is None or layout.steps != run.T or layout.samples != run.B:
            continue
        real = ~(padding.flip(1).T if run.reverse else padding.T)
        if (
            run.reverse
            and run.lengths is None
            and bool((differs(run.state_vector(), other.state_vector()) & real).any())
        ):
            return name, f"{name} runs backwards and starts in the padding"
        if reads_padding(run, ~real):
            return name, f"the loss reads states of {name} at padded steps"
    return "", "the padding reaches the loss"


def reads_padding(run: LayerRun, padded: torch.Tensor) -> bool:
    direct = sum(part.abs().sum(-1) for part in run.direct)
    return isinstance(direct, torch.Tensor) and bool((direct.cpu()[padded] > 0).any())
