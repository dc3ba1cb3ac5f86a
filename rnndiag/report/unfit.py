"""Parts of a page whose arrays do not fit together are left out; the rest of the page is written all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rnndiag.health.evaluate import UNFIT
from rnndiag.report.context import Context
from rnndiag.report.figure_data import FigureData
from rnndiag.report.figures import FIGURES

_T = TypeVar("_T")


def or_else(make: Callable[[], _T], instead: Callable[[Exception], _T]) -> _T:
    """What `make` gives; where the run's arrays do not fit together, `instead` of the fault."""
    try:
        return make()
    except UNFIT as fault:
        return instead(fault)


def figure(name: str, make: Callable[[], FigureData]) -> FigureData:
    """One figure, or a sentence in its place where its arrays do not fit together."""

    def absent(fault: Exception) -> FigureData:
        why = f"Its arrays do not fit together ({fault}): see `rnndiag verify`."
        return FigureData(name, FIGURES[name].title, "", "", absent=why)

    return or_else(make, absent)


def figure_of(name: str, context: Context) -> FigureData:
    """One figure of a run (see `figure`)."""
    return figure(name, lambda: FIGURES[name].make(context))
