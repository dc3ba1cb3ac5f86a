"""F11: states along held-out text on their two principal components, labelled by the last token."""

from __future__ import annotations

import numpy as np

from rnndiag.report.context import Context
from rnndiag.report.figure_data import Axis, Dots, FigureData, Panel, Table, Tone
from rnndiag.report.figures.figure import absent, figure

TONES: tuple[Tone, ...] = ("main", "second", "third", "bound", "limit", "bad")
MOST = 400


@figure("F11", "Memory", "What does memory hold?", newest=("state_map",))
def make(context: Context) -> FigureData:
    """One panel per layer, at most four."""
    layers = context.run.layers_of("state_map")[:4]
    if not layers:
        return absent(context.nothing("state_map"))
    panels, rows = [], []
    for layer in layers:
        found = _newest(context, layer)
        if found is None:
            continue
        points, labels = found
        panels.append(_panel(layer, points, labels))
        rows.append((layer, str(len(points)), f"{_ordered_by_suffix(points, labels):.2f}"))
    if not panels:
        return absent(context.nothing("state_map"))
    return FigureData(
        _finding(rows),
        "Each dot is the state after one token of held-out text, on the layer's two largest principal components; dots "
        "of one tone end in the same token. A number near 1 in the table says that the last token orders the states.",
        tuple(panels),
        Table(("layer", "states", "share of variance between last tokens"), tuple(rows), (1, 2)),
    )


def _newest(context: Context, layer: str) -> tuple[np.ndarray, tuple[str, ...]] | None:
    newest = context.last("state_map", layer)
    if newest is None:
        return None
    points = np.asarray(newest.values, float)
    labels = newest.coordinates.get("token", tuple(str(k) for k in range(len(points))))
    good = np.isfinite(points).all(1)
    if not good.any():
        return None
    kept = np.flatnonzero(good)[:MOST]
    return points[kept], tuple(labels[k] for k in kept)


def _last(label: str) -> str:
    return label[-1:] if label else ""


def _panel(layer: str, points: np.ndarray, labels: tuple[str, ...]) -> Panel:
    ends = [_last(label) for label in labels]
    common = [
        end
        for end, _ in sorted(((e, ends.count(e)) for e in set(ends)), key=lambda p: (-p[1], p[0]))
    ]
    kept = np.array(ends)
    named = common[: len(TONES)]
    span = np.minimum(1e300, np.abs(points).max(0) * 1.1 + 1e-9)
    clouds = [
        Dots(points[kept == end, 0], points[kept == end, 1], f"ends in {end!r}", tone)
        for end, tone in zip(named, TONES, strict=False)
    ]
    others = ~np.isin(kept, named)
    if others.any():
        clouds.append(Dots(points[others, 0], points[others, 1], "ends otherwise", "baseline"))
    return Panel(
        Axis("first component", -float(span[0]), float(span[0])),
        Axis("second component", -float(span[1]), float(span[1])),
        layer,
        dots=tuple(clouds),
    )


def _ordered_by_suffix(points: np.ndarray, labels: tuple[str, ...]) -> float:
    """Share of the variance between groups of states with the same last token; 1: the state depends on it alone."""
    total = float(((points - points.mean(0)) ** 2).sum())
    ends = np.array([_last(label) for label in labels])
    within = sum(
        float(((group - group.mean(0)) ** 2).sum())
        for end in set(ends)
        for group in [points[ends == end]]
    )
    return 1.0 - within / total if total > 0 else 0.0


def _finding(rows: list[tuple[str, str, str]]) -> str:
    told = "; ".join(f"{layer} {share}" for layer, _, share in rows)
    return f"Share of the states' variance that the last token explains: {told}."
