"""Rules for causes that rest on `memory_need` at the end of a fit, never on the credit profile."""

from __future__ import annotations

from rnndiag.health.diagnosis.diagnosis import Remedy
from rnndiag.health.diagnosis.layer_evidence import Dated
from rnndiag.health.diagnosis.rule import Found, View, evidence

NO_MORE = ("nothing_found", "solved", "negligible", "reached_not_used")
"""Leading verdicts of `memory_need` that find no use in more memory."""


def needs_more_memory(view: View) -> Found | None:
    """Inputs further back than the gradient reaches would lower the loss."""
    features = view.features
    for need in features.needs_measured:
        if need.lead != "needed_beyond":
            continue
        furthest = max(
            (group.high for group in need.groups if group.significant), default=need.beyond
        )
        value = int(max(furthest, need.beyond)) + 1
        return Found(
            need.sentence,
            evidence(beyond=Dated(float(need.beyond), features.loss.last_step)),
            need.layer,
            remedy=Remedy(
                "window", value, f"Carry the gradient, and the sequences, through {value} steps."
            ),
        )
    return None


def loss_asks_for_no_more(view: View) -> Found | None:
    """No earlier input would lower the loss."""
    features = view.features
    for need in features.needs_measured:
        if need.lead in NO_MORE:
            return Found(
                need.sentence,
                evidence(loss=Dated(need.loss, features.loss.last_step)),
                need.layer,
            )
    return None
