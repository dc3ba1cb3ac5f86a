"""Shapes of points: one for each tone, so that points can be told apart without colour."""

from __future__ import annotations

from rnndiag.report.palette import TONES

HATCH = 7.0
"""Distance of hatching lines in pixels."""

_OUTLINES: dict[str, str] = {
    "second": "M{l:.1f} {t:.1f}H{r:.1f}V{b:.1f}H{l:.1f}Z",
    "third": "M{x:.1f} {t:.1f}L{r:.1f} {b:.1f}H{l:.1f}Z",
    "bound": "M{x:.1f} {t:.1f}L{r:.1f} {y:.1f}L{x:.1f} {b:.1f}L{l:.1f} {y:.1f}Z",
    "limit": "M{x:.1f} {b:.1f}L{r:.1f} {t:.1f}H{l:.1f}Z",
    "bad": "M{l:.1f} {t:.1f}L{r:.1f} {y:.1f}L{l:.1f} {b:.1f}Z",
}
"""Tone -> path around (x, y) with left l, right r, top t, bottom b; the other tones are circles."""


def shape(form: str, x: float, y: float, radius: float, tone: str, more: str = "") -> str:
    """One point in the shape of the tone `form`, coloured as `tone`."""
    paint = f'fill="{TONES[tone][0]}" class="f-{tone}"{more}'
    if form not in _OUTLINES:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" {paint}/>'
    sides = {"l": x - radius, "r": x + radius, "t": y - radius, "b": y + radius}
    return f'<path d="{_OUTLINES[form].format(x=x, y=y, **sides)}" {paint}/>'


def hatching(left: float, right: float, top: float, bottom: float, tone: str) -> str:
    """Slanted lines over a rectangle, in pixels."""
    height, strokes, start = bottom - top, [], left - (bottom - top)
    while start < right:
        a, b = max(left, start), min(right, start + height)
        if b > a:
            strokes.append(
                f"M{a:.1f} {bottom - (a - start):.1f}L{b:.1f} {bottom - (b - start):.1f}"
            )
        start += HATCH
    return f'<path d="{"".join(strokes)}" stroke="{TONES[tone][0]}" stroke-opacity="0.55" class="s-{tone}"/>'
