"""The recommendation for a layer, stack or seam: which window would do, what it saves, and what the one in use costs.

The sentence is made here and nowhere else; screen, report, checks and docs all show it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rnndiag.stats.between_windows import Squares, at_window, over_windows, shared_squares
from rnndiag.stats.chunk import recommended_chunk
from rnndiag.stats.over_recordings import median_over_recordings
from rnndiag.stats.time_words import TimeWords
from rnndiag.stats.window import (
    EPSILON,
    NOT_MEASURED,
    Recommendation,
    recommended,
    systematic_bias,
)
from rnndiag.store.layer_names import recurrence
from rnndiag.store.quantities import MODEL

if TYPE_CHECKING:
    from rnndiag.store.measurement import Series
    from rnndiag.store.reader import StoredRun
from rnndiag.store.recording import Recording
from rnndiag.store.single_recording import as_run

SEAM = "seam_"
_CLEAR = 2.0
"""A systematic bias is reported if its square is this many standard errors from zero, or known to within ε²."""

ALL = 0.97
"""A systematic bias of at least this share of the minibatch bias is reported as all of it: both are estimates."""


@dataclass(frozen=True)
class InUse:
    """The window that training uses: the chunk length, or the number of steps that a backward pass covers."""

    steps: float
    bias: float
    """Relative bias on single minibatches."""
    systematic: float | None = None
    """Relative bias of the mean gradient; None: not resolved."""
    chunks: bool = False
    """Whether the window is the length of chunks between which the state is detached."""
    about: bool = False
    """Whether the bias is interpolated between windows measured on both sides."""
    measured: float | None = None
    """The longest measured window if `steps` is longer: the biases are those of this window."""


@dataclass(frozen=True)
class Advice:
    """The recommendation for one recurrence: a layer, or a stack whose layers are cut together."""

    name: str
    window: Recommendation
    cosine: float = math.nan
    """Cosine between the gradient through the window and the full gradient, on minibatches."""
    length: int | None = None
    """T, the number of steps examined; a window of T is full BPTT."""
    in_use: InUse | None = None
    chunk: Recommendation | None = None
    """The recommended chunk size; None: not measured."""
    kept: bool = False
    """Whether `length` is a chunk plus the steps kept of the chunks before it."""
    words: TimeWords = field(default_factory=TimeWords)
    """The user's unit of a time step, if given."""

    @property
    def sentence(self) -> str:
        """The complete sentence, from the recommended window to the cost of the one in use."""
        used = self._used
        return f"{self._window}{f'; {used}' if used else ''}."

    @property
    def text(self) -> str:
        """The sentence, and the recommended chunk size."""
        found, most = self.chunk, self.length or math.inf
        if found is None or found.within < 1 or not 1 <= self.window.steps < most:
            return self.sentence
        if not found.reached:
            needs = f"No chunks of up to {found.within} steps do that"
        elif self.length is not None and found.steps >= self.length:
            needs = "No chunks shorter than the whole sequence do"
        else:
            how = "" if found.source == self.window.source else f" (by the {found.source} bias)"
            needs = f"Chunks with a carried state need {found.steps:.0f} steps for it{how}"
        return f"{self.sentence} {needs}."

    @property
    def _whole(self) -> str:
        return f"BPTT through all {self.length} steps that were kept" if self.kept else "full BPTT"

    @property
    def _window(self) -> str:
        found, within = self.window, f"within {percent(self.window.epsilon)} of {self._whole}"
        if math.isnan(found.steps):
            return f"No window can be recommended: {found.note or 'the bias is not finite'}"
        if found.steps < 1:
            return "No gradient arrives, so there is nothing to truncate"
        if self.length == 1:
            return "There is one time step, so there is nothing to truncate"
        if not found.reached:
            return (
                f"No window within the {found.within} steps measured keeps the gradient {within}, and none can be "
                "extrapolated"
            )
        if self.length is not None and found.steps >= self.length:
            return f"Nothing shorter than all {self.length} steps keeps the gradient {within}"
        size = f"{found.steps:.0f}"
        if found.extrapolated:
            size = (
                f"at most {size} (a bound, extrapolated beyond the {found.within} steps measured)"
            )
        if found.between is not None:
            size = "about {} (between the {} and {} that were measured)".format(
                size, *found.between
            )
        size += self.words.in_brackets(found.steps)
        return f"A window of {size} keeps the gradient {within}{self._remark}{self._memory}"

    @property
    def _remark(self) -> str:
        parts = []
        if math.isfinite(self.cosine) and not self.window.extrapolated:
            parts.append(f"cosine {self.cosine:.3f}")
        if self.window.source == "minibatch":
            known = "measured" if self.window.note == NOT_MEASURED else "resolved"
            parts.append(f"on minibatches: the systematic part is not {known}")
        return f" ({'; '.join(parts)})" if parts else ""

    @property
    def _memory(self) -> str:
        if not self.length:
            return ""
        share = percent(min(1.0, self.window.steps / self.length))
        most, whose = "at most " * self.window.extrapolated, "those" if self.kept else "the"
        return f" and holds {most}{share} of {whose} steps in memory"

    @property
    def _used(self) -> str:
        used = self.in_use
        if used is None or self.length == 1 or self.window.steps < 1:
            return ""
        if not used.chunks and self.length is not None and used.steps >= self.length:
            return f"you hold all {used.steps:.0f}"
        if math.isnan(used.bias):
            return ""
        many = f"{used.steps:.0f}"
        off = f"your {f'chunks of {many} are' if used.chunks else f'{many} is'} off by "
        off += f"{'about ' * (used.about and used.measured is None)}{percent(used.bias)}"
        if used.measured is not None:
            off += f" (as measured at {used.measured:.0f})"
        if used.systematic is None:
            return f"{off} on a minibatch, and how much of that is systematic is not resolved"
        if used.systematic > ALL * used.bias:
            return f"{off}, all of it systematic"
        return f"{off}, of which {percent(used.systematic)} is systematic"


def percent(share: float) -> str:
    """A share as text: 31 %, 3.1 %, 0.31 %; large ones with commas."""
    if not math.isfinite(share):
        return "an infinite share" if share > 0 else "an unknown share"
    value = 100 * share
    digits = 0 if value >= 9.95 or value == 0 else 1 if value >= 0.95 else 2
    return f"{value:,.{digits}f} %"


__all__ = ["EPSILON", "Advice", "InUse", "percent"]


@dataclass(frozen=True)
class Measured:
    """Where the window biases of a recurrence are stored in a run."""

    name: str
    prefix: str
    steps: tuple[int, ...]
    length: int | None
    """T; across a seam, the steps of the chunk plus those kept before it."""


def measured(run: StoredRun, name: str, steps: Sequence[int] | np.ndarray) -> Measured | None:
    """Locate the window biases of a layer or stack: across the seam if measured there; None if there are none."""
    for prefix, of in ((SEAM, recurrence(name)), ("", name)):
        found = at_hand(run, f"{prefix}window_bias", of, steps)
        if found is not None:
            return Measured(
                of, prefix, tuple(found.steps.tolist()), _length(run, of, prefix, found)
            )
    return None


def at_hand(
    run: StoredRun, quantity: str, layer: str, steps: Sequence[int] | np.ndarray
) -> Series | None:
    """A quantity over these recordings; if none of them has it, from the last recording that does."""
    if (quantity, layer) not in run:
        return None
    found = run.find(quantity, layer, [int(step) for step in steps])
    if found is not None and found.steps.size:
        return found
    whole = run.find(quantity, layer)
    if whole is None or not whole.steps.size:
        return None
    return run.find(quantity, layer, [int(whole.steps[-1])])


def advice(
    run: StoredRun | Recording, layer: str | None = None, epsilon: float = EPSILON
) -> Advice | None:
    """Which truncation window a layer needs, in one sentence and in numbers.

    Args:
        run: A run, or one recording (of a probe, say).
        layer: Name of a layer; where its layers were cut together, its stack is advised. None: the layer that needs
            the longest window.
        epsilon: How far the windowed gradient may be from that of full BPTT, relative to its norm.

    Returns:
        The advice; None where no windows were measured.

    Example:
        >>> with rnndiag.probe(model) as probe:
        ...     loss_of(model, batch).backward()
        >>> print(rnndiag.advice(probe.recording).sentence)
        A window of ... keeps the gradient within 10 % of full BPTT ...
    """
    run = as_run(run)
    steps = run.judged()
    if layer is None:
        found = [one for name in run.layers if (one := advice(run, name, epsilon)) is not None]
        return max(found, key=lambda one: _or_less(one.window.steps), default=None)
    for name in _candidates(run, layer):
        place = measured(run, name, steps)
        if place is not None:
            return _advice(run, place, epsilon)
    return None


def _candidates(run: StoredRun, layer: str) -> Iterator[str]:
    """The stacks that contain the layer, those of the same call first, then the layer itself."""
    holding = [name for name, layers in run.stacks.items() if layer in layers]
    holding += [name for name, layers in run.stacks.items() if recurrence(layer) in layers]
    yield from dict.fromkeys(holding)
    yield layer


def _or_less(steps: float) -> float:
    return -math.inf if math.isnan(steps) else steps


def _advice(run: StoredRun, place: Measured, epsilon: float) -> Advice:
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


def _cosine(run: StoredRun, place: Measured, window: float) -> float:
    """Cosine at a window: median over recordings, linearly interpolated between measured windows."""
    found = run.find(f"{place.prefix}window_cosine", place.name, place.steps)
    if found is None:
        return math.nan
    windows, values = _known(found)
    inside = windows.size and window >= max(1, windows[0])
    return float(np.interp(window, windows, values)) if inside else math.nan


def _known(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """The windows that any recording measured (D,), and the median over recordings at each (D,)."""
    values = median_over_recordings(over_windows(series))
    known = ~np.isnan(values)
    return series.positions("lag")[known], values[known]


def _length(run: StoredRun, name: str, prefix: str, series: Series) -> int | None:
    steps = series.steps.tolist()
    if prefix:
        found = run.find("seam_steps", name, steps)
        return None if found is None else int(np.nanmax(np.sum(found.values, 1)))
    layers = run.stacks.get(name, (name,))
    valid = run.find("valid_samples", layers[0], steps)
    return None if valid is None else int(max(valid.lengths["time"]))


def seam_name(run: StoredRun, layer: str) -> str | None:
    """The name under which the seam of a layer was recorded: of its stack, or its own."""
    names = (recurrence(name) for name in _candidates(run, layer))
    return next((name for name in names if ("seam_bias", name) in run), None)


def seam_systematic(
    run: StoredRun, name: str, steps: Sequence[int], epsilon: float = EPSILON
) -> float | None:
    """Systematic bias of the cut at a seam; None: not resolved."""

    def columns(*quantities: str) -> np.ndarray | None:
        found = [run.find(quantity, name, steps) for quantity in quantities]
        kept = [series.values for series in found if series is not None]
        return np.stack(kept, 1) if len(kept) == len(found) else None

    squares = columns("seam_whole_mean_square", "seam_mean_square")
    errors = columns("seam_whole_mean_square_error", "seam_mean_square_error")
    return None if squares is None else resolved_bias(squares, squares[:, 0], errors, epsilon)


def _in_chunks(run: StoredRun, place: Measured, epsilon: float) -> InUse | None:
    """The cost of the cut between chunks, measured across the seam."""
    own, bias = (run.find(name, place.name, place.steps) for name in ("seam_steps", "seam_bias"))
    if own is None or bias is None:
        return None
    systematic = seam_systematic(run, place.name, place.steps, epsilon)
    chunk = float(np.median(own.sel(seam="own").values))
    return InUse(chunk, float(median_over_recordings(bias.values)), systematic, chunks=True)


def _in_use(run: StoredRun, place: Measured, epsilon: float) -> InUse | None:
    """The window in use within one call, as recorded, with its bias from the sweep."""
    used = at_hand(run, "window_in_use", MODEL, place.steps)
    bias = run.find("window_bias", place.name, place.steps)
    if used is None or bias is None:
        return None
    # the first chunks of a sequence are shorter than the window: take the longest stretch
    known = used.values[np.isfinite(used.values)]
    steps = float(known.max()) if len(known) else math.nan
    windows, values = _known(bias)
    off = at_window(values, windows, steps)
    if math.isnan(off):
        return InUse(steps, off)
    systematic = window_systematic(run, place.name, steps, place.steps, epsilon)
    beyond = float(windows[-1]) if steps > windows[-1] else None
    return InUse(steps, off, systematic, measured=beyond, about=steps not in windows)


def window_systematic(
    run: StoredRun, name: str, window: float, steps: Sequence[int], epsilon: float = EPSILON
) -> float | None:
    """Systematic bias of a window (of the mean gradient over these recordings); None: not resolved."""
    tail, whole, error = (
        run.find(quantity, name, steps)
        for quantity in ("tail_mean_square", "gradient_mean_square", "tail_mean_square_error")
    )
    squares = None if tail is None or whole is None else shared_squares(tail, whole, error)
    return None if squares is None else _systematic_at(squares, window, epsilon)


def _systematic_at(squares: Squares, window: float, epsilon: float) -> float | None:
    """Systematic bias of a window, interpolated between measured ones; None: not resolved."""
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
