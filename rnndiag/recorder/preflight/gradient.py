"""Checks that the loss's gradient reaches every recurrent layer, and goes back at least one step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from rnndiag.engine.adjoints import adjoints
from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.preflight.finding import finding
from rnndiag.recorder.preflight.observe import PassResult, PreflightSubject
from rnndiag.recorder.preflight.state import calls_of
from rnndiag.store.text import counted

if TYPE_CHECKING:
    from rnndiag.health.finding import Finding

DETACHED = "stray detach"
UNREACHED = "no gradient"


def check_gradient(subject: PreflightSubject) -> list[Finding]:
    """Findings on cut states, and on layers that the gradient does not reach."""
    seen = subject.seen()
    found = [*_cut(subject, seen), *_unreached(subject.observe.model, seen)]
    return found or [
        finding(UNREACHED, "pass", "the gradient reaches every layer and crosses its steps")
    ]


def _cut(subject: PreflightSubject, seen: PassResult) -> list[Finding]:
    found = []
    for layer, runs in calls_of(dict(seen.runs)).items():
        seams = [run for run in runs if run.tie.startswith("detached:")]
        if seams and not _declared(subject.detach, runs):
            lengths = sorted({run.T for run in runs})
            every = f"every {counted(lengths[0], 'step')}" if len(lengths) == 1 else "at times"
            message = f"the state of {layer} is detached {every}: no gradient passes from one call to the one before"
        elif (blocked := next((run for run in runs if run.T > 1 and stops(run)), None)) is not None:
            message = f"no gradient passes from one step of {blocked.name} to the step before"
        else:
            continue
        found.append(
            finding(
                DETACHED,
                "fail",
                message,
                "Remove detach(), .data, torch.no_grad() or a tensor made anew from the state's path; if the "
                "gradient is meant to be truncated there, declare it: preflight(..., detach=STEPS).",
                layer,
            )
        )
    return found


def _declared(detach: int | str | None, runs: list[LayerRun]) -> bool:
    if detach == "any":
        return True
    return isinstance(detach, int) and all(detach <= run.T for run in runs[:-1])


def stops(run: LayerRun) -> bool:
    """Whether the credit at lag 1 is exactly zero though the loss depends on late states that are not all zero."""
    direct = torch.cat([part.double() for part in run.direct], -1)
    alive = any(bool((part != 0).any()) for part in run.states)
    if not alive or not bool((direct[1:] != 0).any()):
        return False
    total = adjoints(run).state.double()
    return bool((total[:-1] == direct[:-1]).all())


def _unreached(model: nn.Module, seen: PassResult) -> list[Finding]:
    """Recurrent modules that ran and can learn, but got no gradient."""
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.RNNBase | nn.RNNCellBase) or name not in seen.called:
            continue
        prefix = f"{name}." if name else ""
        own = [prefix + key for key, p in module.named_parameters() if p.requires_grad]
        if own and not any(seen.gradients.get(key, False) for key in own):
            place = name or type(module).__name__
            found.append(
                finding(
                    UNREACHED,
                    "fail",
                    f"the loss sends no gradient to {place}, though it ran",
                    "Look between this layer and the loss for detach(), .data, torch.no_grad() or argmax.",
                    place,
                )
            )
    return found
