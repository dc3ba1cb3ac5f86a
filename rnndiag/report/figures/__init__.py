"""The figures of a report: one file a figure, each registered under its name. A new one: a file and a line below."""

from rnndiag.report.figures import (  # noqa: F401  (each registers its figure)
    contributions,
    credit_matrix,
    estimators,
    health,
    memory,
    over_training,
    products,
    reach,
    stability,
    truncation,
    which_layer,
)
from rnndiag.report.figures.figure import FIGURES, Figure

ORDER = tuple(f"F{k}" for k in range(1, 12))
"""The order of the page."""

__all__ = ["FIGURES", "ORDER", "Figure"]
