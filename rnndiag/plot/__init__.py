"""The report's figures as matplotlib axes: `rnndiag.plot.reach(run)` in a notebook, one line each.

Every function takes a run, its directory, a recording or a probe. It draws on `ax` if one is given, else on a new
figure, and returns the axes. Of a figure with several panels these are the axes of the first one; `ax.figure` holds
all. `panel` chooses the panel that is drawn on a given `ax`. `layer` is the layer to show; by default the one that the
report shows first. `width` is that of a new figure in inches, with text of 8 points: 3.3 for one column of a paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rnndiag.plot.one_figure import save_figures, shown
from rnndiag.report.figures import FIGURES

reach = shown("F1", "reach", "Credit over lag: how far back the gradient reaches.")
over_training = shown(
    "F2", "over_training", "The credit profile of every recording, with the reach."
)
credit_matrix = shown("F3", "credit_matrix", "Which losses reach which states, at the newest step.")
contributions = shown("F4", "contributions", "What each time step adds to the gradient.")
products = shown("F5", "products", "Gain of Jacobian products over lag.")
truncation = shown("F6", "truncation", "Bias and cosine of every window and chunk.")
estimators = shown("F7", "estimators", "Bias against spread of each estimator of the gradient.")
stability = shown("F8", "stability", "Lyapunov spectrum, eigenvalues of W_hh, and ρ(J_t).")
health = shown("F9", "health", "The headline numbers over training.")
layers = shown("F10", "layers", "The credit profiles of all layers, the shortest reach first.")
memory = shown("F11", "memory", "States along held-out text, by their last token.")
need = shown("F12", "need", "Reach, use and need of memory over lag.")

__all__ = [
    "contributions",
    "credit_matrix",
    "estimators",
    "health",
    "layers",
    "memory",
    "need",
    "over_training",
    "products",
    "reach",
    "save_figures",
    "stability",
    "truncation",
]


def __getattr__(name: str) -> Callable[..., Any]:
    """Return the function of any other registered figure, by the name of its file in `report/figures/`."""
    for number, figure in FIGURES.items():
        if figure.file == name:
            return shown(number, name, f"{figure.title}: {figure.question}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
