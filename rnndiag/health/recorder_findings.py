"""Findings without a rule: the recorder's proofs, its preflight, and layers of which nothing was judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress

from rnndiag.health.evaluate import RunEvaluator
from rnndiag.health.finding import UNTRUSTED, Finding
from rnndiag.stats.over_recordings import nonfinite_counts
from rnndiag.store.layer_names import recurrence
from rnndiag.store.reader import StoredRun

PREFLIGHT = "preflight"
"""Key of `Recording.notes` under which findings of the preflight are stored, as a list of `Finding.as_json()`."""

COVERAGE = "coverage"
PROOF = "proof"
_MOST = 64
_NO_REASON = "no proof was made, and no reason was recorded"
_REMEDY = (
    "The numbers of this layer are not to be trusted: read the reason, record that step again with strict=True, "
    "and leave compiled or patched recurrent layers out."
)
_UNPROVED = "Without a proof the numbers are not judged: read the reason, and record that step again with strict=True."


def proof_findings(of: RunEvaluator) -> list[Finding]:
    """One finding per layer whose proof failed in a judged recording, or was not made there.

    Non-finite states or adjoints cannot be proved; the check `nonfinite` names those steps.
    """
    steps = {int(step) for step in of.scope(of.config.bounds(UNTRUSTED)).steps}
    failed: dict[str, dict[int, str]] = {}
    unproved: dict[str, dict[int, str]] = {}
    phase = of.run.phases[0] if of.run.phases else ""
    nonfinite = {layer: nonfinite_counts(of.run, layer) for layer in of.layers}
    somewhere = {step for counts in nonfinite.values() for step, count in counts.items() if count}
    for recording in of.run.outlines:
        if recording.step not in steps or recording.phase != phase:
            continue
        of_verdict = {"inexact": failed, "unverified": unproved}.get(recording.verdict)
        if of_verdict is None:
            continue
        for layer, reason in (recording.reasons or {"": _NO_REASON}).items():
            counts = nonfinite.get(layer)
            if not (recording.step in somewhere if counts is None else counts.get(recording.step)):
                of_verdict.setdefault(layer, {})[recording.step] = reason
    judged = f"of {len(steps)} judged recordings"
    found = []
    for layer, by_step in failed.items():
        message = f"the proof failed in {len(by_step)} {judged}"
        found.append(_without_proof(of, UNTRUSTED, layer, message, by_step))
    for layer, by_step in unproved.items():
        message = f"{len(by_step)} {judged} were not proved"
        found.append(_without_proof(of, PROOF, layer, message, by_step))
    return found


def _without_proof(
    of: RunEvaluator, check: str, layer: str, message: str, by_step: Mapping[int, str]
) -> Finding:
    """The finding of one layer; `by_step` holds the reason at each step, of which the most frequent is named."""
    return Finding(
        check=check,
        status="not_judged",
        layer=layer,
        since_step=min(by_step),
        message=f"{message}: {Counter(by_step.values()).most_common(1)[0][0]}",
        remedy=_REMEDY if check == UNTRUSTED else _UNPROVED,
        word="NOT TO BE TRUSTED" if check == UNTRUSTED else "NOT PROVED",
        run=of.run.name,
    )


def preflight_findings(run: StoredRun) -> list[Finding]:
    """The findings stored in the run's first recording; entries that cannot be parsed are skipped."""
    if len(run.steps) == 0:
        return []
    entries = run.outlines[0].notes.get(PREFLIGHT)
    if not isinstance(entries, list | tuple):
        return []
    found = []
    for entry in entries[:_MOST]:
        with suppress(TypeError, ValueError):
            found.append(Finding.from_json(entry).but(run=run.name))
    return found


def coverage_findings(of: RunEvaluator, found: Sequence[Finding]) -> list[Finding]:
    """One finding per layer of which nothing was judged, and one for a run without layers."""
    why = _first_fault(of.run)
    if not of.layers:
        return [
            Finding(
                COVERAGE,
                "not_judged",
                message="the recordings hold no measurement of a recurrent layer"
                + (f": {why}" if why else ""),
                remedy="See what the recorder could not do: rnndiag show RUN; fit once with strict=True to raise it.",
                word="NOTHING MEASURED",
                run=of.run.name,
            )
        ]
    remedy = "Record the groups that the checks need (measures=), or configure a check that it has numbers for."
    count, least = len(of.run.steps), of.config.min_recordings
    if not why and count < least:
        why = f"{count} recordings, and the checks need {least} (min_recordings)"
        remedy = "Record more often (every_n_steps=), or set min_recordings lower."
    judged = {recurrence(one.layer) for one in found if one.judged}
    missing = [layer for layer in of.layers if recurrence(layer) not in judged]
    return [
        Finding(
            COVERAGE,
            "not_judged",
            layer,
            message=f"no check judged anything of {layer}" + (f": {why}" if why else ""),
            remedy=remedy,
            run=of.run.name,
        )
        for layer in missing
    ]


def _first_fault(run: StoredRun) -> str:
    """The first fault stored by the recorder; empty if there is none."""
    for outline in run.outlines:
        errors = outline.notes.get("errors")
        if isinstance(errors, list | tuple) and errors:
            return str(errors[0])
    return ""
