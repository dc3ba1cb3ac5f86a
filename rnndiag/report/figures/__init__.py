"""The figures of a report: one file a figure, each registered under its name. A new one: a file and a line below."""

from rnndiag.report.figures import credit_matrix, health, over_training, reach, truncation
from rnndiag.report.figures.figure import FIGURES, Figure

ORDER = ("F1", "F2", "F3", "F4", "F5", "F6", "F7", "F8", "F9", "F10", "F11")
"""The order of the page."""

__all__ = [
    "FIGURES",
    "ORDER",
    "Figure",
    "credit_matrix",
    "health",
    "over_training",
    "reach",
    "truncation",
]
