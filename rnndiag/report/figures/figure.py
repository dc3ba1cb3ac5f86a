"""The registry of figures, one entry per figure, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps

import numpy as np

from rnndiag.report.context import Context
from rnndiag.report.figure_data import FigureData

FIGURES: dict[str, Figure] = {}


@dataclass(frozen=True)
class Figure:
    """One figure: its name, the question it answers, and the function that computes its data from a run."""

    name: str
    title: str
    question: str
    make: Callable[[Context], FigureData]
    place: float
    """Its position on the page."""
    newest: tuple[str, ...] = ()
    """Quantities of which it shows the newest recording; empty: it shows all recordings."""

    @property
    def file(self) -> str:
        """Name of its file, and of its function in `rnndiag.plot` unless that is registered under another."""
        return self.make.__module__.rpartition(".")[2]


def figure(
    name: str,
    title: str,
    question: str,
    place: float | None = None,
    newest: tuple[str, ...] = (),
) -> Callable[[Callable[[Context], FigureData]], Callable[[Context], FigureData]]:
    """Register a function that computes a figure; the figure gets its name and question from here.

    Args:
        name: F and a number.
        title: One or two words, for the contents.
        question: The heading.
        place: Where it stands on the page. None: its number.
        newest: As `Figure.newest`.

    Returns:
        A decorator.
    """

    def keep(make: Callable[[Context], FigureData]) -> Callable[[Context], FigureData]:
        @wraps(make)
        @np.errstate(all="ignore")
        def named(context: Context) -> FigureData:
            return replace(make(context), name=name, question=question)

        FIGURES[name] = Figure(
            name, title, question, named, float(name[1:]) if place is None else place, newest
        )
        return named

    return keep


def steps_shown(name: str, layer: str, context: Context) -> str:
    """The training steps of a figure's data: `step 980`, or `steps 0 to 980`."""
    for quantity in FIGURES[name].newest:
        step = context.step_of_last(quantity, layer)
        if step is not None:
            return f"step {step}"
    steps = context.run.steps
    if FIGURES[name].newest or not len(steps):
        return ""
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"


def absent(reason: str) -> FigureData:
    """A figure without data, and why nothing was recorded for it."""
    return FigureData("", "", absent=reason)
