"""The figures of a report, one file each. To add one, add a file here and an import below.

Figures are ordered by their numbers, unless one gives another place.
"""

from rnndiag.report.figures import (  # noqa: F401  (each registers its figure)
    contributions,
    credit_matrix,
    estimators,
    health,
    memory,
    need,
    over_training,
    products,
    reach,
    stability,
    truncation,
    which_layer,
)
from rnndiag.report.figures.figure import FIGURES, Figure

ORDER = tuple(sorted(FIGURES, key=lambda name: FIGURES[name].place))
"""The names of all figures, F1, F12, F2, ..., in the order of the page."""

__all__ = ["FIGURES", "ORDER", "Figure"]
