"""F10: the credit profiles of all layers as one matrix, the shortest reach first."""

from __future__ import annotations

import numpy as np

from rnndiag.report.context import LN10, Context, finite
from rnndiag.report.decimate import extent, thin_matrix
from rnndiag.report.figure_data import Axis, Dots, FigureData, Matrix, Panel, Table
from rnndiag.report.figures.figure import absent, figure
from rnndiag.stats.reach import Reach

DECADES = 12
WORST = 5
MOST = 250
"""Most rows of the picture; the shortest reaches come first."""


@figure("F10", "By layer", "Which layer?")
def make(context: Context) -> FigureData:
    """Build the heat map of credit over lag, with one row per layer and per stack."""
    profiles = {}
    measured = [one for one in context.layers if ("credit_profile", one) in context.run][:MOST]
    for layer in (*measured, *context.stacks):
        newest = context.last("credit_profile", layer)
        if newest is not None:
            row = np.asarray(newest.sel(profile_stat="profile").values, float) / LN10
            # no gradient reaches it, so its profile is NaN without a fault
            silent = np.isnan(row).all()
            profiles[layer] = row if silent else np.where(np.isnan(row), np.inf, row)
    known = list(profiles)
    if not known:
        return absent(context.nothing("credit_profile"))
    if len(known) == 1:
        return absent(f"One recurrent layer only, {known[0]}: its profile is the curve of F1.")
    picture = np.full((len(known), max(row.size for row in profiles.values())), np.nan)
    for line, row in zip(picture, profiles.values(), strict=True):
        line[: row.size] = row
    reaches = [context.reach(layer) for layer in known]
    panel = _panel(picture, known, reaches)
    sentences = [
        f"{layer}: {r.text + ' steps' if r is not None and r.reached else 'not reached'}"
        for layer, r in list(zip(known, reaches, strict=True))[:WORST]
    ]
    rest = len([one for one in context.layers if one not in profiles])
    left = f" {rest} more layers are not drawn." if rest else ""
    return FigureData(
        "Shortest reach first. " + "; ".join(sentences) + "." + left,
        "Each row is one layer, lag 0 at the left; bright is much credit. The dots are the reach."
        + " The last row is a stack, all of its layers cut at the same step."
        * bool(context.stacks),
        (panel,),
        Table(
            ("layer", "reach", "T"),
            tuple(
                (layer, "–" if r is None else r.text, str(context.time_steps(layer) or "–"))
                for layer, r in zip(known, reaches, strict=True)
            ),
            (1, 2),
        ),
    )


def _without_shared_path(names: list[str]) -> list[str]:
    """The names without the modules that all of them share: `net.enc.rnn.l0`, `net.rnn.l0` -> `enc.rnn.l0`,
    `rnn.l0`."""
    parts = [name.split(".")[:-2] for name in names]
    shared = 0
    while all(len(one) > shared for one in parts) and len({one[shared] for one in parts}) == 1:
        shared += 1
    return [name.split(".", shared)[-1] for name in names]


def _panel(picture: np.ndarray, known: list[str], reaches: list[Reach | None]) -> Panel:
    """The matrix with the shortest reach on top."""
    numbers = finite(picture)
    high = float(np.ceil(numbers.max())) if numbers.size else 0.0
    low = max(high - DECADES, float(np.floor(numbers.min()))) if numbers.size else -1.0
    along = np.array([float(r) if r is not None and r.reached else np.nan for r in reaches])
    values, block = thin_matrix(picture[::-1])
    return Panel(
        Axis("lag", *extent(picture.shape[1], block[1])),
        Axis("layer", -0.5, len(known) - 0.5, names=tuple(reversed(_without_shared_path(known)))),
        dots=(Dots(along[::-1], np.arange(len(known), dtype=float), "reach", "second"),),
        matrices=(
            Matrix(values, low, max(high, low + 1), label="credit relative to lag 0", block=block),
        ),
    )
