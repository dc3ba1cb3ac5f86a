"""A curve as one line of text: blocks of eight heights, a dot for exactly zero, a question mark for nan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from rnndiag.store.measurement import Series

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 60


def text_picture(values: np.ndarray, width: int = WIDTH) -> str:
    """The values (n,) as characters; with more than `width` values, each character is the largest of several."""
    import numpy as np

    flat = np.asarray(values, float).ravel()
    stretch = -(-flat.size // width) if flat.size else 1
    parts = [flat[k : k + stretch] for k in range(0, flat.size, stretch)]
    shown = np.array([np.max(part) if not np.isnan(part).any() else np.nan for part in parts])
    finite = shown[np.isfinite(shown)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    return "".join(_sign(value, low, high) for value in shown)


def _sign(value: float, low: float, high: float) -> str:
    if value == float("-inf"):
        return "·"
    if value != value or value == float("inf"):
        return "?"
    share = (value - low) / (high - low) if high > low else 0.0
    return BLOCKS[min(len(BLOCKS) - 1, int(share * len(BLOCKS)))]


def pictures(series: Series) -> Iterator[str]:
    """The newest recording along its longest dim as a line of blocks, for each of at most eight labels of other
    dims."""
    import numpy as np

    newest = series.valid(series.steps.size - 1)
    values = np.abs(newest.values) if np.iscomplexobj(newest.values) else newest.values
    if not values.ndim or max(values.shape) < 3 or values.ndim > 2:
        return
    axis = int(np.argmax(values.shape))
    rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
    beside = [dim for at, dim in enumerate(newest.dims) if at != axis]
    names = newest.coordinates.get(beside[0], ()) if beside else ("",)
    for name, row in list(zip(names, rows, strict=False))[:8]:
        yield f"    {text_picture(row)} {name} by {newest.dims[axis]}".replace("  by", " by")
