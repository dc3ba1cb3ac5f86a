"""Replaces parts of a page whose arrays are inconsistent, so that the rest of the page can still be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rnndiag.health.evaluate import UNFIT
from rnndiag.report.context import Context
from rnndiag.report.figure_data import FigureData
from rnndiag.report.figures import FIGURES

_T = TypeVar("_T")


def or_else(make: Callable[[], _T], instead: Callable[[Exception], _T]) -> _T:
    """The result of `make`; if the run's arrays are inconsistent, that of `instead` for the error."""
    try:
        return make()
    except UNFIT as fault:
        return instead(fault)


def figure(name: str, make: Callable[[], FigureData]) -> FigureData:
    """One figure, or a sentence in its place if its arrays are inconsistent."""

    def absent(fault: Exception) -> FigureData:
        why = f"Its arrays do not fit together ({fault}): see `rnndiag verify`."
        return FigureData("", "", absent=why, name=name, question=FIGURES[name].title)

    return or_else(make, absent)


def figure_of(name: str, context: Context) -> FigureData:
    """One figure of a run (see `figure`)."""
    return figure(name, lambda: FIGURES[name].make(context))
