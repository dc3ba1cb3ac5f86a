"""Finds places for labels in a picture: beside what they name, clear of curves, points and other labels.

All lengths are in the units of the picture (pixels of an SVG, points in matplotlib); the size of a text is estimated
from its number of letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

OVER_LABEL, OVER_EDGE, OVER_CURVE = 100.0, 50.0, 1.0
"""Penalties of a place: over another label, beyond the edge, over a curve or a point. The smallest penalty wins."""


@dataclass(frozen=True)
class Place:
    """A candidate position of a label: the anchor of its text, and the box that the text covers."""

    x: float
    y: float
    anchor: str
    """start, middle or end: which part of the text lies at x."""
    left: float
    right: float
    low: float
    high: float

    @classmethod
    def of(cls, x: float, y: float, anchor: str, width: float, height: float) -> Place:
        """The place of a text with its middle line at height y."""
        left = x - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
        return cls(x, y, anchor, left, left + width, y - height / 2, y + height / 2)


class LabelPlaces:
    """Stores what is drawn, and chooses the place of each further label.

    Args:
        left: Left end of the picture; labels stay within all four ends.
        right: Right end.
        low: Least y.
        high: Greatest y.
    """

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self._ends = left, right, low, high
        self._curves: list[tuple[np.ndarray, np.ndarray]] = []
        self._boxes: list[tuple[Place, float]] = []

    def add_curve(self, x: np.ndarray, y: np.ndarray) -> None:
        """A curve that labels should not cover. NaN is a gap."""
        known = np.isfinite(x)
        self._curves.append((x[known], y[known]))

    def add_point(self, x: float, y: float, radius: float) -> None:
        """A dot that labels should not cover."""
        self._boxes.append((Place.of(x, y, "middle", 2 * radius, 2 * radius), OVER_CURVE))

    def choose(self, candidates: Iterable[Place]) -> Place:
        """The candidate with the smallest penalty, the first of equal ones; later labels avoid it."""
        given = list(candidates)
        best = min([*given, *map(self._moved_in, given)], key=self._badness)
        self._boxes.append((best, OVER_LABEL))
        return best

    def _moved_in(self, place: Place) -> Place:
        """The place moved sideways to lie between both edges."""
        left, right, _, _ = self._ends
        by = max(0.0, left - place.left) + min(0.0, right - place.right)
        return replace(place, x=place.x + by, left=place.left + by, right=place.right + by)

    def _badness(self, place: Place) -> float:
        left, right, low, high = self._ends
        beyond = place.left < left or place.right > right or place.low < low or place.high > high
        boxes = sum(
            weight
            for box, weight in self._boxes
            if place.left < box.right
            and place.right > box.left
            and place.low < box.high
            and place.high > box.low
        )
        return OVER_EDGE * beyond + boxes + OVER_CURVE * sum(self._crossed(place))

    def _crossed(self, place: Place) -> Iterable[bool]:
        at = np.linspace(place.left, place.right, 9)
        for x, y in self._curves:
            if x.size > 1 and np.ptp(x) < 1e-6:  # an upright line
                yield bool(place.left < x[0] < place.right)
            elif x.size:
                there = np.interp(at, x, y, left=np.nan, right=np.nan)
                yield bool(np.any((there > place.low) & (there < place.high)))


def clusters(x: Sequence[float], y: Sequence[float], near: float) -> list[list[int]]:
    """Indices of points that lie nearer than `near` to the first point of their group; they share one label."""
    found: list[list[int]] = []
    for k, (a, b) in enumerate(zip(x, y, strict=True)):
        for group in found:
            if np.hypot(a - x[group[0]], b - y[group[0]]) < near:
                group.append(k)
                break
        else:
            found.append([k])
    return found


def around(x: float, y: float, gap: float, width: float, height: float) -> list[Place]:
    """Places to the right and left of a point, above and below it, and at its corners."""
    side, up = gap + 2, gap + height / 2
    return [
        Place.of(x + side, y, "start", width, height),
        Place.of(x - side, y, "end", width, height),
        Place.of(x, y - up, "middle", width, height),
        Place.of(x, y + up, "middle", width, height),
        *(
            Place.of(x + h * side, y + v * up * n, anchor, width, height)
            for n in (1, 2, 3)
            for v in (-1, 1)
            for h, anchor in ((1, "start"), (-1, "end"))
        ),
    ]
