"""Reduces curves and matrices to the resolution of a picture, keeping their extremes.

A run may have 10,000 recorded steps and a figure 600 pixels.
"""

from __future__ import annotations

import numpy as np


def thin_line(x: np.ndarray, y: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a curve to about four points per pixel: the first, lowest, highest and last one. Gaps (NaN) are kept.

    Args:
        x: Positions (n,).
        y: Values (n,); NaN is a gap.
        width: Pixels of the plotting area.

    Returns:
        The positions and values that are kept.
    """
    x, y = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
    size = max(1, int(np.ceil(len(x) / max(1.0, width))))
    if len(x) <= 4 * width or size < 4:
        return x, y
    keep: list[int] = []
    for start in range(0, len(x), size):
        part = y[start : start + size]
        chosen = {start, start + len(part) - 1}
        if np.isfinite(part).any():
            chosen |= {start + int(np.nanargmin(part)), start + int(np.nanargmax(part))}
        if np.isnan(part).any():
            chosen.add(start + int(np.argmax(np.isnan(part))))
        keep += sorted(chosen)
    index = np.array(keep)
    return x[index], y[index]


def shown_lags(count: int, last: int) -> int:
    """Number of lags to draw if values beyond lag `last` are invisible: all, unless most of the axis would be blank."""
    return count if count <= 64 or last >= 0.4 * count else min(count, max(16, int(1.2 * last) + 2))


def extent(count: int, block: int, first: float = 0.0, every: float = 1.0) -> tuple[float, float]:
    """Limits of an axis with `count` cells, merged by `block`: half a cell beyond the first and last centre."""
    drawn = -(-count // block) * block
    return first - every / 2, first + (drawn - 0.5) * every


MOST = 256
"""Most rows and columns of a picture."""


def thin_matrix(values: np.ndarray, most: int = MOST) -> tuple[np.ndarray, tuple[int, int]]:
    """Reduce a matrix to at most `most` rows and columns; each cell is the largest of a block.

    Returns:
        The reduced matrix, and the rows and columns of a block.
    """
    blocks = tuple(max(1, int(np.ceil(n / most))) for n in values.shape)
    if blocks == (1, 1):
        return values, (1, 1)
    rows, columns = (int(np.ceil(n / b)) for n, b in zip(values.shape, blocks, strict=True))
    padded = np.full((rows * blocks[0], columns * blocks[1]), np.nan)
    padded[: values.shape[0], : values.shape[1]] = values
    cells = padded.reshape(rows, blocks[0], columns, blocks[1])
    nothing = np.isnan(cells).all((1, 3))
    largest = np.max(np.where(np.isnan(cells), -np.inf, cells), axis=(1, 3))
    return np.where(nothing, np.nan, largest), (blocks[0], blocks[1])
