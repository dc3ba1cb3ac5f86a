"""The figures of a report, one file each. A new one is a file here and an import below; its number is its place."""

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

ORDER = tuple(sorted(FIGURES, key=lambda name: int(name[1:])))
"""The names of all figures, F1, F2, ..., in the order of the page."""

__all__ = ["FIGURES", "ORDER", "Figure"]
