"""The stylesheet, with the colours of the palette filled in for the light and the dark page."""

from __future__ import annotations

from rnndiag.report.palette import FRAME, GRID, PAGE, QUIET, TEXT, TONES

_NAMED = {"page": PAGE, "text": TEXT, "quiet": QUIET, "grid": GRID, "frame": FRAME, **TONES}


def _variables(theme: int) -> str:
    return ";".join(f"--{name}:{colours[theme]}" for name, colours in _NAMED.items())


def stylesheet(rules: str) -> str:
    """CSS variables of both themes, classes that recolour the SVG, and the page's own rules."""
    marks = "".join(
        f".s-{name}{{stroke:var(--{name})}}.f-{name}{{fill:var(--{name})}}" for name in _NAMED
    )
    return (
        f":root{{color-scheme:light dark;{_variables(0)}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{_variables(1)}}}}}"
        f"@media print{{:root{{{_variables(0)}}}}}"
        f"{marks}\n{rules}"
    )
