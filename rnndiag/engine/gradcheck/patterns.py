"""Naming the paths that are wrong: one lag, one seam, one step, or a range of them.

A path leads from a source step s to a result step t >= s. The initial state is the source -1, so that it lies t + 1
steps before outputs t. A rule says of each path whether it is wrong; the rule that agrees best with what was measured
names the fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

INITIAL = -1
"""The source step of the initial state."""
EVERYWHERE = "at every lag"
CLEARLY = 0.08
"""A special rule must agree better than the general rule by this much."""
AGREEMENT = 0.85
"""Share of paths (wrong by the rule or by measurement) on which a rule must agree to be believed."""


@dataclass(frozen=True)
class Place:
    """Where a gradient goes wrong: at most one of lag, seam and step, and the sentence that says it.

    A seam at j lies between steps j-1 and j.
    """

    text: str
    lag: int | None = None
    seam: int | None = None
    step: int | None = None


@dataclass(frozen=True)
class Paths:
    """Measured paths, flat: source step, result step, whether wrong, and whether an error could be seen."""

    source: Ints
    result: Ints
    wrong: Bools
    visible: Bools
    by_lag: bool = False
    """True if only the lag is known, as for a parameter: it acts at every step and has no source step."""


def name_paths(paths: Paths, chunk: int, steps: int) -> Place | None:
    """The rule that describes the wrong paths best; if none does, the shortest wrong lag."""
    if not paths.wrong.any():
        return None
    best: tuple[float, Place | None] = (AGREEMENT - 1e-9, None)
    for place, rule in _rules(paths, chunk, steps):
        predicted = rule & paths.visible
        union = int((predicted | paths.wrong).sum())
        agreement = int((predicted & paths.wrong).sum()) / union
        # Simpler rules come first, and only a better one replaces them.
        if agreement > best[0]:
            handicap = CLEARLY if place.text == EVERYWHERE else 1e-9
            best = (agreement + handicap, place)
    if best[1] is None:
        lag = int((paths.result - paths.source)[paths.wrong].min())
        return Place(f"on some paths, the shortest of lag {lag}", lag=lag)
    return best[1]


def _rules(paths: Paths, chunk: int, steps: int) -> Iterator[tuple[Place, Bools]]:
    """Candidate rules, from simple to special."""
    s, t = paths.source, paths.result
    lag = t - s
    yield Place(EVERYWHERE, lag=0), np.ones_like(paths.wrong)
    if paths.by_lag:
        yield from _lag_rules(lag, chunk)
        return
    # Internal seams of the kernel first: they are what a chunked kernel gets wrong.
    seams = sorted(range(1, steps), key=lambda j: (j % chunk != 0, j))
    if steps > chunk:
        crossing = (np.maximum(s, 0) // chunk) != (t // chunk)
        if steps > 2 * chunk:
            yield (
                Place(
                    f"on every path across a seam (steps {_multiples(chunk, steps)})", seam=chunk
                ),
                crossing,
            )
        yield Place("at the first step of every chunk", seam=chunk), (s >= 0) & (s % chunk == 0)
        yield Place("at the last step of every chunk", seam=chunk), s % chunk == chunk - 1
        inner = (s >= 0) & (s % chunk != 0)
        yield Place("at every lag, but for the first step of every chunk", lag=0), inner
    for j in seams:
        seam = j if j % chunk == 0 else None
        at = f"the seam at step {j}" if seam else f"step {j}"
        step = None if seam else j
        yield Place(f"on every path across {at}", seam=seam, step=step), (s < j) & (t >= j)
        yield Place(f"from outputs of {at} on", seam=seam, step=step), t >= j
        last = j == steps - steps % chunk
        of = "the last, partial chunk: " if last else ""
        these = f"step {j}" if j == steps - 1 else f"steps {j} to {steps - 1}"
        yield Place(f"at {of}{these}", seam=seam, step=j), s >= j
        yield Place(f"at steps before {at}", seam=seam, step=step), s < j
    yield from _lag_rules(lag, 0)
    for j in range(steps):
        seam = j if j and j % chunk == 0 else None
        yield Place(f"at step {j} alone", step=j, seam=seam), s == j
        yield Place(f"for outputs of step {j} alone", step=j, seam=seam), t == j
    yield Place("at the initial state alone", seam=0), s == INITIAL


def _lag_rules(lag: Ints, chunk: int) -> Iterator[tuple[Place, Bools]]:
    """Rules on the lag alone. In calls that start `lag` steps before the end, lags of at least a chunk cross its
    seam."""
    longest = int(lag.max())
    for d in range(chunk, longest + 1, chunk) if chunk else ():
        place = Place(f"at every lag that crosses the seam at step {d}", lag=d, seam=d)
        yield place, lag >= d
    for d in range(longest + 1):
        yield Place(f"at lag {d} alone", lag=d), lag == d
    # If several rules fit because some lags are negligible, the longest lag claims least.
    for d in range(longest, 0, -1):
        yield Place(f"at lags of {d} and more", lag=d), lag >= d
    for d in range(1, longest + 1):
        yield Place(f"at lags below {d}", lag=0), lag < d


def _multiples(chunk: int, steps: int) -> str:
    marks = [str(j) for j in range(chunk, steps, chunk)]
    return ", ".join(marks if len(marks) < 5 else [*marks[:3], "...", marks[-1]])
