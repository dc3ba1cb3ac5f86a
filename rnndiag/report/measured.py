"""How the run was measured: versions, precision, sampling, schedule, cost, proofs, and what is missing and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from rnndiag.report.context import Context
from rnndiag.store.quantities import MODEL
from rnndiag.store.text import mapping

LISTED = 50
"""Most accidents, and faults of the recorder, listed on the page."""


def measured(context: Context) -> list[tuple[str, list[str]]]:
    """Pairs of a heading and its lines. All is text from the run that must be escaped."""
    run, facts = context.run, context.run.provenance
    rows: list[tuple[str, list[str]]] = [
        ("Run", [run.name, f"{len(run)} recordings, {run.status}"]),
        ("Versions", [", ".join(f"{k} {v}" for k, v in mapping(facts, "versions").items())]),
        ("Trainer", [_flat(mapping(facts, "trainer"))]),
        ("Recorder", [_flat(mapping(facts, "config"))]),
        ("Seed", [str(facts["seed"])] if facts.get("seed") is not None else []),
        ("Code", [_flat(mapping(facts, "git"))]),
        ("Command", [_command(facts.get("command"))]),
        ("Proofs", _proofs(context)),
        ("Sampling", _notes(context, "sampling")),
        ("Sequences", _notes(context, "resets")),
        ("Trained with", _notes(context, "trained_with")),
        ("Across the seam", _notes(context, "seam")),
        ("Cost", _cost(context)),
        ("Not measured", _notes(context, "not_measured")),
        ("Accidents", _accidents(context)),
        ("Faults of the recorder", _faults(context)),
        ("Problems", [str(problem) for problem in run.problems]),
    ]
    return [(name, [line for line in lines if line]) for name, lines in rows if any(lines)]


def _command(command: Any) -> str:
    return " ".join(map(str, command)) if isinstance(command, list) else str(command or "")


def _flat(facts: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value}" for key, value in facts.items() if value not in (None, "", [], {})
    )


def _proofs(context: Context) -> list[str]:
    outlines = [outline for outline in context.run.outlines if outline.phase == "train"]
    counts = Counter(outline.verdict for outline in outlines)
    lines = [", ".join(f"{count} {word}" for word, count in counts.items())]
    reasons = Counter(
        f"{layer}: {reason}"
        for outline in outlines
        for layer, reason in outline.reasons.items()
        if reason
    )
    return lines + [f"{reason} ({count} recordings)" for reason, count in reasons.most_common(12)]


def _notes(context: Context, key: str) -> list[str]:
    """The notes of the newest recording under one key, one line per entry, without repetitions."""
    for outline in reversed(context.run.outlines):
        if told := mapping(outline.notes, key):
            by_sentence: dict[str, list[str]] = {}
            for name, sentence in told.items():
                by_sentence.setdefault(str(sentence), []).append(str(name))
            return [f"{', '.join(names)}: {sentence}" for sentence, names in by_sentence.items()]
    return []


def _accidents(context: Context) -> list[str]:
    """Every step recorded by the black box, with its accident."""
    return _first(
        [
            f"step {outline.step}: {told.get('sentence') or 'no reason was stored'}"
            for outline in context.run.outlines
            if (told := mapping(outline.notes, "black_box"))
        ]
    )


def _faults(context: Context) -> list[str]:
    """Faults of the recorder itself, each once, with the step of the recording that stored it."""
    said: dict[str, int] = {}
    for outline in context.run.outlines:
        told = outline.notes.get("errors")
        for fault in told if isinstance(told, list | tuple) else ():
            said.setdefault(str(fault), outline.step)
    return _first([f"{fault} (stored at step {step})" for fault, step in said.items()])


def _first(lines: list[str]) -> list[str]:
    """The first LISTED lines, and how many more there are."""
    more = len(lines) - LISTED
    return lines[:LISTED] + ([f"and {more} more"] if more > 0 else [])


def _cost(context: Context) -> list[str]:
    share = context.last("overhead_share", MODEL)
    if share is None or not np.isfinite(share.values).all():
        return []
    size = context.run.size
    return [f"{float(share.values):.1%} of training time, {size / 1e6:.1f} MB on disk"]
