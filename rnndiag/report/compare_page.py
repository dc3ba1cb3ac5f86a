"""One page about two or more runs: overlays, a map of differences, and the table of changes in four words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rnndiag.errors import BadArgument, RunUnreadable
from rnndiag.health.outcome import SHAPES
from rnndiag.report.context import Context
from rnndiag.report.deltas import Delta, deltas, what_differs
from rnndiag.report.difference_map import difference_map
from rnndiag.report.figure_data import FigureData
from rnndiag.report.figures import FIGURES
from rnndiag.report.overlay import TONES, overlay
from rnndiag.report.page import embedded, render, section
from rnndiag.report.unfit import figure, figure_of
from rnndiag.store.text import counted

OVERLAID = ("F1", "F6", "F9")


@np.errstate(all="ignore")
def comparable(contexts: Sequence[Context], layer: str = "") -> list[Context]:
    """The same runs with distinct names, all showing one layer that every run has."""
    if not 2 <= len(contexts) <= len(TONES):
        raise BadArgument(
            f"{len(contexts)} runs cannot be compared on one page.", f"Name 2 to {len(TONES)} runs."
        )
    shared = [
        name
        for name in contexts[0].layers
        if all(name in context.run.layers for context in contexts)
    ]
    if layer and layer not in shared:
        raise BadArgument(
            f"Not every run has a layer {layer!r}.", f"All have {', '.join(shared) or 'none'}."
        )
    empty = next((context.run.name for context in contexts if not context.layers), None)
    if empty is not None:
        raise RunUnreadable(
            f"{empty} holds no readable recurrent layer.", "See what is in it with `rnndiag show`."
        )
    if not shared:
        raise BadArgument(
            "The runs have no recurrent layer in common.", "See their layers with `rnndiag show`."
        )
    lead = contexts[0].lead
    chosen = layer or (lead if lead in shared else shared[0])
    return [replace(context, chosen=chosen) for context in contexts]


def run_names(contexts: Sequence[Context]) -> list[str]:
    """Distinct names of runs: if two are equal the folder is added, and a number if that does not suffice."""
    names = [context.run.name for context in contexts]
    if len(set(names)) < len(names):
        names = ["/".join(Path(str(context.run.path)).parts[-2:]) for context in contexts]
    return [
        f"{name} ({names[: k + 1].count(name)})" if names[:k].count(name) else name
        for k, name in enumerate(names)
    ]


def compared_figures(contexts: Sequence[Context]) -> list[FigureData]:
    """F1, the map of differences, F6 and F9 of all runs together."""
    names = run_names(contexts)
    laid = {
        name: overlay([figure_of(name, context) for context in contexts], names)
        for name in OVERLAID
    }
    differences = figure("F2", lambda: difference_map(contexts, names))
    return [laid["F1"], differences, laid["F6"], laid["F9"]]


def heading(changes: Sequence[Delta]) -> tuple[str, str, str]:
    """Kind (fault, unsure, well), word and sentence of the worst change."""
    if not changes:
        return "unsure", "NOTHING TO COMPARE", "No judged number was recorded in all of the runs."
    worst = changes[0]
    moved = [d for d in changes if d.word in ("shifted", "out of bounds")]
    if moved:
        word = "OUT OF BOUNDS" if worst.word == "out of bounds" else "SHIFTED"
        rest = len(moved) - 1
        more = f", and {counted(rest, 'other number')} moved" if rest else ""
        said = f"{worst.check} of {worst.layer} went from {worst.before} to {worst.after}{more}."
        return "fault", word, said
    if worst.word == "identical":
        return "well", "IDENTICAL", f"All {len(changes)} judged numbers are the same."
    return (
        "well",
        "WITHIN NOISE",
        f"None of {len(changes)} judged numbers moved by more than allowed.",
    )


@np.errstate(all="ignore")
def compare_page(contexts: Sequence[Context]) -> str:
    """The whole page as text; all contexts come from `comparable`."""
    names = run_names(contexts)
    changes = deltas(contexts, names)
    kind, word, sentence = heading(changes)
    figures = compared_figures(contexts)
    facts = {
        "runs": names,
        "verdict": {"word": word, "sentence": sentence},
        "changes": [vars(delta) for delta in changes],
        "figures": [{"name": data.name, "finding": data.finding} for data in figures],
    }
    return render(
        "compare.html",
        names=names,
        contexts=contexts,
        kind=kind,
        word=word,
        sentence=sentence,
        shape=SHAPES[kind],
        open_changes=[d for d in changes if d.word in ("shifted", "out of bounds")],
        folded_changes=[d for d in changes if d.word not in ("shifted", "out of bounds")],
        differs=what_differs(contexts, names),
        sections=[section(data, FIGURES[data.name].title) for data in figures],
        numbers=embedded(facts),
    )
