"""F7: which estimator of the gradient is best here: bias against spread, area by cost, and the table by ranking."""

from __future__ import annotations

import numpy as np

from rnndiag.report.context import Context
from rnndiag.report.figure_data import Axis, Bubble, FigureData, Panel, Table
from rnndiag.report.figures.figure import absent, figure
from rnndiag.report.ticks import number, ten_to

LEAST = 1e-3
"""Smaller biases and spreads are drawn at the edge: they are negligible."""
MOST_BIAS = 0.1
"""Estimators with a larger relative bias are not recommended, however cheap."""
COLUMNS = {
    "bias": "bias",
    "sd": "sd",
    "rmse": "rmse",
    "cosine": "cosine of the mean",
    "draw_cosine": "mean cosine of a draw",
    "cost": "cost",
    "memory": "memory",
    "ranking": "ranking",
}
"""Score -> title of its column. Scores estimated from draws have a standard error."""


@figure("F7", "Estimators", "Which estimator is best here?", newest=("estimator_score",))
def make(context: Context) -> FigureData:
    """The newest scores of the lead layer."""
    layer = context.lead
    found = context.last("estimator_score", layer) if layer else None
    if found is None:
        return absent(context.nothing("estimator_score", layer))
    names = found.coordinates.get("estimator", tuple(map(str, range(found.sizes["estimator"]))))
    score = {
        name: np.asarray(found.sel(score=name).values, float) for name in found.coordinates["score"]
    }
    order = np.argsort(
        np.where(np.isnan(score["ranking"]), np.inf, score["ranking"]), kind="stable"
    )
    best = next((int(k) for k in order if score["bias"][k] <= MOST_BIAS), None)
    bias, sd = np.maximum(score["bias"], LEAST), np.maximum(score["sd"], LEAST)
    known = np.isfinite(bias) & np.isfinite(sd)
    if not known.any():
        return absent(f"No estimator of {layer} has a finite score.")
    high = ten_to(np.ceil(np.log10(max(bias[known].max(), sd[known].max(), 1.0))))
    biggest = float(np.nanmax(score["cost"][known]))
    panel = Panel(
        Axis("relative bias", LEAST / 1.5, high, "log10"),
        Axis("relative standard deviation", LEAST / 1.5, high, "log10"),
        bubbles=tuple(
            Bubble(
                float(bias[k]),
                float(sd[k]),
                max(0.0, float(np.nan_to_num(score["cost"][k]) / biggest)) if biggest > 0 else 0.0,
                names[k],
                "second" if k == best else "main",
            )
            for k in order
            if known[k]
        ),
    )
    rows = tuple(
        (
            names[k],
            *(_cell(score, key, int(k)) for key in COLUMNS if key in score),
        )
        for k in order
    )
    return FigureData(
        _finding(layer, names, score, best, context.step_of_last("estimator_score", layer)),
        f"Left: little bias. Low: little spread; {LEAST:g} stands for that or less. Area: cost in steps of "
        "backpropagation relative to the full gradient. "
        "The table is sorted by sqrt(bias² + (sd² + σ²) · cost), σ the noise of the minibatch: error for the same "
        "effort, as more steps average out spread and no bias. None with a bias above 10 % is recommended.",
        (panel,),
        Table(
            ("estimator", *(name for key, name in COLUMNS.items() if key in score)),
            rows,
            tuple(range(1, 1 + sum(key in score for key in COLUMNS))),
        ),
        layer=layer,
    )


def _cell(score: dict[str, np.ndarray], key: str, k: int) -> str:
    value = float(score[key][k])
    if not np.isfinite(value):
        return "–"
    error = score.get(f"{key}_error")
    around = f" ± {number(float(error[k]))}" if error is not None and error[k] > 0 else ""
    return number(value) + around


def _finding(
    layer: str,
    names: tuple[str, ...],
    score: dict[str, np.ndarray],
    best: int | None,
    step: int | None,
) -> str:
    if best is None:
        return (
            f"No estimator of {layer} has a bias of at most {MOST_BIAS:.0%}: none is recommended."
        )
    if not np.isfinite(score["ranking"][best]):
        return (
            f"The estimators of {layer} cannot be ranked: the noise of the minibatch is not known."
        )
    at = "" if step is None else f" at step {step}"
    words = f"For {layer}{at}, {names[best]} gives the least error for its cost"
    words += f": bias {_cell(score, 'bias', best)}, sd {_cell(score, 'sd', best)}, cost {_cell(score, 'cost', best)}."
    full = next((k for k, name in enumerate(names) if name.lower().startswith("full")), None)
    if full is not None and full != best:
        ratio = score["ranking"][full] / score["ranking"][best]
        words += f" Full backpropagation's is {number(float(ratio))} times that."
    return words
