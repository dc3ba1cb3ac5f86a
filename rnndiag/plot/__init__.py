"""The report's figures as matplotlib axes: `rnndiag.plot.reach(run)` in a notebook, one line each.

Every function takes a run (or its directory) and draws on `ax` where one is given, else on a new figure; it returns
the axes, of a figure with several panels the first one's (`ax.figure` holds them all). `panel` chooses which of
several panels is drawn on a given `ax`. `layer` is the layer to show, by default the one that the report leads with.
"""

from __future__ import annotations

from rnndiag.plot.one_figure import save_figures, shown

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

__all__ = [
    "contributions",
    "credit_matrix",
    "estimators",
    "health",
    "layers",
    "memory",
    "over_training",
    "products",
    "reach",
    "save_figures",
    "stability",
    "truncation",
]
