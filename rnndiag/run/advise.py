"""From a run's numbers to its advice: of a layer, of the stack that it is part of, or across the seam."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rnndiag.run.advice import Advice, InUse
from rnndiag.run.between_windows import Squares, at_window, over_windows, shared_squares
from rnndiag.run.chunks import recommended_chunk
from rnndiag.run.layer_names import recurrence, stacks_of
from rnndiag.run.quantities import MODEL
from rnndiag.run.time_words import TimeWords
from rnndiag.run.window import EPSILON, middle, recommended, systematic_bias

if TYPE_CHECKING:
    from rnndiag.run.measurement import Series
    from rnndiag.run.run import Run

SEAM = "seam_"
_CLEAR = 2.0
"""A systematic bias is told where its square is so many standard errors from zero, or known to within ε²."""


@dataclass(frozen=True)
class Measured:
    """Where the windows of a recurrence are found in a run."""

    name: str
    prefix: str
    steps: tuple[int, ...]
    length: int | None
    """T; across the seam, the steps of the chunk and of those that were kept."""


def measured(run: Run, name: str, steps: Sequence[int] | np.ndarray) -> Measured | None:
    """The windows of one layer or stack: across the seam where there is one; None where none were measured."""
    for prefix, of in ((SEAM, recurrence(name)), ("", name)):
        found = at_hand(run, f"{prefix}window_bias", of, steps)
        if found is not None:
            return Measured(
                of, prefix, tuple(found.steps.tolist()), _length(run, of, prefix, found)
            )
    return None


def at_hand(
    run: Run, quantity: str, layer: str, steps: Sequence[int] | np.ndarray
) -> Series | None:
    """A quantity over these recordings; where none of them has it, of the last one that does."""
    if (quantity, layer) not in run:
        return None
    found = run.find(quantity, layer, [int(step) for step in steps])
    if found is not None and found.steps.size:
        return found
    whole = run.find(quantity, layer)
    if whole is None or not whole.steps.size:
        return None
    return run.find(quantity, layer, [int(whole.steps[-1])])


def advice(run: Run, layer: str | None = None, epsilon: float = EPSILON) -> Advice | None:
    """The advice for a layer: of the stack that it is part of, where its layers were cut together.

    Without a layer: for the one that needs the longest window. None where no windows were measured.
    """
    steps = run.judged()
    if layer is None:
        found = [one for name in run.layers if (one := advice(run, name, epsilon)) is not None]
        return max(found, key=lambda one: _or_less(one.window.steps), default=None)
    for name in _candidates(run, layer):
        place = measured(run, name, steps)
        if place is not None:
            return _advice(run, place, epsilon)
    return None


def _candidates(run: Run, layer: str) -> Iterator[str]:
    """The stacks that hold the layer, those of its own call first, then the layer itself."""
    holding = [name for name, layers in stacks_of(run).items() if layer in layers]
    holding += [name for name, layers in stacks_of(run).items() if recurrence(layer) in layers]
    yield from dict.fromkeys(holding)
    yield layer


def _or_less(steps: float) -> float:
    return -math.inf if math.isnan(steps) else steps


def _advice(run: Run, place: Measured, epsilon: float) -> Advice:
    window = recommended(run, place.name, place.steps, epsilon, place.length, place.prefix)
    return Advice(
        place.name,
        window,
        _cosine(run, place, window.steps),
        place.length,
        _in_chunks(run, place, epsilon) if place.prefix else _in_use(run, place, epsilon),
        None if place.prefix else recommended_chunk(run, place.name, place.steps, epsilon),
        bool(place.prefix),
        TimeWords.of_provenance(run.provenance),
    )


def _cosine(run: Run, place: Measured, window: float) -> float:
    """The median over recordings, on a straight line between the windows that were measured."""
    found = run.find(f"{place.prefix}window_cosine", place.name, place.steps)
    if found is None:
        return math.nan
    windows, values = _known(found)
    inside = windows.size and window >= max(1, windows[0])
    return float(np.interp(window, windows, values)) if inside else math.nan


def _known(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """The windows that some recording measured, and the median over recordings at each."""
    values = middle(over_windows(series))
    known = ~np.isnan(values)
    return series.positions("lag")[known], values[known]


def _length(run: Run, name: str, prefix: str, series: Series) -> int | None:
    steps = series.steps.tolist()
    if prefix:
        found = run.find("seam_steps", name, steps)
        return None if found is None else int(np.nanmax(np.sum(found.values, 1)))
    layers = stacks_of(run).get(name, (name,))
    valid = run.find("valid_samples", layers[0], steps)
    return None if valid is None else int(max(valid.lengths["time"]))


def seam_name(run: Run, layer: str) -> str | None:
    """Under which name the seam of a layer was measured: of its stack, or its own."""
    names = (recurrence(name) for name in _candidates(run, layer))
    return next((name for name in names if ("seam_bias", name) in run), None)


def seam_systematic(
    run: Run, name: str, steps: Sequence[int], epsilon: float = EPSILON
) -> float | None:
    """The systematic bias of the cut at a seam; None: not resolved."""

    def columns(*quantities: str) -> np.ndarray | None:
        found = [run.find(quantity, name, steps) for quantity in quantities]
        kept = [series.values for series in found if series is not None]
        return np.stack(kept, 1) if len(kept) == len(found) else None

    squares = columns("seam_whole_mean_square", "seam_mean_square")
    errors = columns("seam_whole_mean_square_error", "seam_mean_square_error")
    return None if squares is None else resolved_bias(squares, squares[:, 0], errors, epsilon)


def _in_chunks(run: Run, place: Measured, epsilon: float) -> InUse | None:
    """What the cut at the seam costs, as measured across it."""
    own, bias = (run.find(name, place.name, place.steps) for name in ("seam_steps", "seam_bias"))
    if own is None or bias is None:
        return None
    systematic = seam_systematic(run, place.name, place.steps, epsilon)
    chunk = float(np.median(own.sel(seam="own").values))
    return InUse(chunk, float(middle(bias.values)), systematic, chunks=True)


def _in_use(run: Run, place: Measured, epsilon: float) -> InUse | None:
    """The window in use within one call: as recorded, and what the sweep says of it."""
    used = at_hand(run, "window_in_use", MODEL, place.steps)
    bias = run.find("window_bias", place.name, place.steps)
    if used is None or bias is None:
        return None
    steps = float(middle(used.values))
    windows, values = _known(bias)
    off = at_window(values, windows, steps)
    if math.isnan(off):
        return InUse(steps, off)
    tail, whole, error = (
        run.find(name, place.name, place.steps)
        for name in ("tail_mean_square", "gradient_mean_square", "tail_mean_square_error")
    )
    squares = None if tail is None or whole is None else shared_squares(tail, whole, error)
    systematic = None if squares is None else _systematic_at(squares, steps, epsilon)
    beyond = float(windows[-1]) if steps > windows[-1] else None
    return InUse(steps, off, systematic, measured=beyond, about=steps not in windows)


def _systematic_at(squares: Squares, window: float, epsilon: float) -> float | None:
    """The systematic bias of a window, put between those that were measured; None: not resolved."""
    found = systematic_bias(squares.tail, squares.whole, squares.error)
    square = at_window(found.square, squares.windows, window)
    known = np.isfinite(found.square)
    right = np.searchsorted(squares.windows[known], window)
    near = found.square_error[known][max(0, right - 1) : right + 1]
    if not found.resolved or math.isnan(square):
        return None
    if not _is_clear(square, float(near.max(initial=0.0)), epsilon):
        return None
    return math.sqrt(max(square, 0.0))


def _is_clear(square: float, spread: float, epsilon: float) -> bool:
    return square >= _CLEAR * spread or spread <= epsilon**2


def resolved_bias(
    tail: np.ndarray, whole: np.ndarray, error: np.ndarray | None, epsilon: float
) -> float | None:
    """The systematic bias of the last column of `tail` (recordings, windows); None: not resolved."""
    found = systematic_bias(tail, whole, error)
    square, spread = float(found.square[-1]), float(found.square_error[-1])
    if not found.resolved or math.isnan(spread):
        return None
    return float(found.bias[-1]) if _is_clear(square, spread, epsilon) else None
