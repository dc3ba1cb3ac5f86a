"""The registry of figures, one entry per figure, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rnndiag.report.context import Context
from rnndiag.report.figure_data import FigureData

FIGURES: dict[str, Figure] = {}


@dataclass(frozen=True)
class Figure:
    """One figure: its name, the question it answers, and how its data are computed from a run."""

    name: str
    title: str
    question: str
    make: Callable[[Context], FigureData]
    place: float
    """Where it stands on the page."""

    @property
    def file(self) -> str:
        """Name of the file that computes it, and of its function in `rnndiag.plot` if that has no other name for it."""
        return self.make.__module__.rpartition(".")[2]


def figure(
    name: str, title: str, question: str, place: float | None = None
) -> Callable[[Callable[[Context], FigureData]], Callable[[Context], FigureData]]:
    """Register a function that computes a figure; its place on the page is its number where none is given."""

    def keep(make: Callable[[Context], FigureData]) -> Callable[[Context], FigureData]:
        quiet = np.errstate(all="ignore")(make)
        FIGURES[name] = Figure(
            name, title, question, quiet, float(name[1:]) if place is None else place
        )
        return quiet

    return keep


def absent(name: str, reason: str) -> FigureData:
    """A figure without data: its question, and why nothing was recorded for it."""
    return FigureData(name, FIGURES[name].question, "", "", absent=reason)
