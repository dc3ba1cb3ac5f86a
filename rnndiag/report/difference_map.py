"""The map of log10(B/A) of the credit of two runs, over training step and lag."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rnndiag.report.context import LN10, Context, finite
from rnndiag.report.decimate import extent, thin_matrix
from rnndiag.report.figure_data import Axis, FigureData, Matrix, Panel
from rnndiag.report.ticks import number, ten_to

QUESTION = "Where does the credit differ?"
MOST_DECADES = 6.0
SHARES = 40
"""Number of columns if two runs have no recorded step in common: equal shares of each training."""


def difference_map(everyone: Sequence[Context], names: Sequence[str]) -> FigureData:
    """One matrix for each other run against the first, on one scale and on common steps; a slider selects one."""
    layer = everyone[0].lead
    without = [n for n, c in zip(names, everyone, strict=True) if c.profiles(layer) is None]
    if without:
        words = f"No credit profile of {layer} was recorded in {', '.join(without)}."
        return FigureData("", "", absent=words, name="F2", question=QUESTION)
    rows, across, how = _columns(everyone, layer)
    profiles = [_profile(c, layer)[at] for c, at in zip(everyone, rows, strict=True)]
    lags = min(profile.shape[1] for profile in profiles)
    old = profiles[0][:, :lags]
    ratios = [_ratio(old, profile[:, :lags]) for profile in profiles[1:]]
    known = np.concatenate([np.abs(finite(ratio)) for ratio in ratios])
    top = float(min(MOST_DECADES, max(0.1, np.ceil(10 * known.max(initial=0.0)) / 10)))
    matrices, block = [], (1, 1)
    for ratio, name in zip(ratios, names[1:], strict=True):
        values, block = _thin(ratio)
        frame = f"{name} against {names[0]}"
        label = "log10 of their ratio"
        matrices.append(
            Matrix(
                values, -top, top, log=False, label=label, diverging=True, frame=frame, block=block
            )
        )
    panel = Panel(across, Axis("lag", *extent(lags, block[0])), matrices=tuple(matrices))
    words = "\n".join(_words(ratio, name) for ratio, name in zip(ratios, names[1:], strict=True))
    return FigureData(
        words,
        f"Red: more credit than in {names[0]}; blue: less. {how} What is exactly zero, or not finite, in both "
        "runs has no colour.",
        (panel,),
        layer=layer,
        name="F2",
        question=QUESTION,
    )


def _profile(context: Context, layer: str) -> np.ndarray:
    series = context.profiles(layer)
    assert series is not None
    return np.asarray(series.sel(profile_stat="profile").values, float) / LN10


def _columns(everyone: Sequence[Context], layer: str) -> tuple[list[np.ndarray], Axis, str]:
    """The recordings of each run that share a column."""
    found = [c.profiles(layer) for c in everyone]
    steps = [series.steps for series in found if series is not None]
    common = steps[0]
    for other in steps[1:]:
        common = np.intersect1d(common, other)
    if common.size:
        rows = [np.searchsorted(own, common) for own in steps]
        apart = np.diff(common)
        even = apart.size > 0 and (apart == apart[0]).all()
        every = float(apart[0]) if even else 1.0
        start = float(common[0]) if even else 0.0
        block = max(1, -(-common.size // 256))
        names = () if even else tuple(str(int(s)) for s in common)
        limits = extent(common.size, block, start, every)
        return (
            rows,
            Axis("training step", *limits, names=names, first=start, every=every),
            f"Columns are the {common.size} steps that all runs recorded.",
        )
    count = min(SHARES, *(own.size for own in steps))
    rows = [np.linspace(0, own.size - 1, count).round().astype(int) for own in steps]
    names = tuple(f"{share:.0%}" for share in np.linspace(0, 1, count))
    across = Axis("share of training", *extent(count, 1), names=names)
    return rows, across, "No step was recorded in all runs, so columns are shares of each training."


def _ratio(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """(lag, column) log10(new / old); infinite where exactly one of them is zero."""
    with np.errstate(invalid="ignore"):
        ratio = np.where(np.isfinite(old) | np.isfinite(new), new - old, np.nan)
    return np.asarray(ratio.T)


def _thin(ratio: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """For each block of cells, the difference with the largest absolute value, with its sign."""
    bounded = np.clip(ratio, -99.0, 99.0)
    high, block = thin_matrix(bounded)
    low = -thin_matrix(-bounded)[0]
    return np.where(np.abs(low) > np.abs(high), low, high), block


def _words(ratio: np.ndarray, name: str) -> str:
    known = finite(ratio)
    if not known.size:
        return f"{name} has no number in common with the first run."
    if not known.any():
        return f"{name} is identical in every recording and lag."
    where = np.unravel_index(
        int(np.nanargmax(np.where(np.isfinite(ratio), np.abs(ratio), -1))), ratio.shape
    )
    most = float(ratio[where])
    way = "more" if most > 0 else "less"
    return (
        f"{name} differs most at lag {int(where[0])}: {number(ten_to(abs(most)))} times {way} credit; "
        f"half of all cells differ by less than a factor of {number(ten_to(np.median(np.abs(known))))}."
    )
