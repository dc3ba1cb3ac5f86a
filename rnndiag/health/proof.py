"""The recorder's own verdict on its numbers: a layer whose proof failed cannot be judged by them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from rnndiag.health.finding import UNTRUSTED, Finding
from rnndiag.health.judge import Judge
from rnndiag.health.numbers import RunNumbers

CHECK = UNTRUSTED
_REMEDY = (
    "The numbers of this layer are not to be trusted: read the reason, record that step again with strict=True, "
    "and leave compiled or patched recurrent layers out."
)


def _not_finite(numbers: RunNumbers, layer: str) -> set[int]:
    """Steps at which the layer held numbers that are not finite: nothing to prove there, and `nonfinite` tells it."""
    steps: set[int] = set()
    for quantity in ("nonfinite_states", "nonfinite_adjoints"):
        if (quantity, layer) in numbers.run:
            found = numbers.stack(quantity, layer)
            counts = np.nansum(found.values.reshape(len(found.steps), -1), axis=1)
            steps |= set(found.steps[counts > 0].tolist())
    return steps


def proof_findings(judge: Judge) -> list[Finding]:
    """One finding for each layer whose proof failed in a judged recording, and for each that could not be proved."""
    scope = judge.scope(judge.config.bounds(CHECK))
    judged = {int(step) for step in scope.steps}
    failed: dict[str, Counter[str]] = {}
    unproved: dict[str, Counter[str]] = {}
    since: dict[str, int] = {}
    for recording in judge.run.outlines:
        if recording.step not in judged or recording.verdict == "exact":
            continue
        told = failed if recording.verdict == "inexact" else unproved
        for layer, reason in (recording.reasons or {"": "no reason was recorded"}).items():
            if recording.step in _not_finite(judge.whole, layer):
                continue
            told.setdefault(layer, Counter())[str(reason)] += 1
            since.setdefault(layer, recording.step)
    found = []
    for layer, reasons in failed.items():
        found.append(
            Finding(
                check=CHECK,
                status="not_judged",
                layer=layer,
                since_step=since[layer],
                message=f"the proof failed in {sum(reasons.values())} of {len(judged)} judged recordings: "
                + reasons.most_common(1)[0][0],
                remedy=_REMEDY,
                word="NOT TO BE TRUSTED",
                run=judge.run.name,
            )
        )
    for layer, reasons in unproved.items():
        found.append(
            Finding(
                check="proof",
                status="note",
                layer=layer,
                since_step=since[layer],
                message=f"{sum(reasons.values())} of {len(judged)} judged recordings could not be proved: "
                + reasons.most_common(1)[0][0],
                run=judge.run.name,
            )
        )
    return found
