"""The key below a picture: the meaning of its lines, areas, points and colours."""

from __future__ import annotations

import base64
from html import escape

import numpy as np

from rnndiag.report.figure_data import Matrix, Panel
from rnndiag.report.palette import (
    DASHES,
    FIRST,
    NOT_FINITE,
    QUIET,
    SPECIAL,
    TEXT,
    TONES,
    ZERO,
    colours,
    indices,
    png,
)
from rnndiag.report.shapes import hatching, shape
from rnndiag.report.ticks import number, power_of_ten

WORDS = {ZERO: "exactly zero", NOT_FINITE: "not finite"}


def key(panel: Panel) -> list[tuple[str, str]]:
    """Pairs of a small SVG and its label. Empty if the panel has one line and nothing else."""
    found = [
        (_swatch(_stroke(line.tone) + shape("main", 11, 5, 3, line.tone) * line.dots), line.label)
        for line in panel.lines
        if line.label
    ]
    found += [
        (
            _swatch(
                hatching(0, 22, 0, 10, band.tone)
                if band.hatched
                else _filled(band.tone, band.strength)
            ),
            band.label,
        )
        for band in panel.bands
        if band.label and band.visible
    ]
    found += [(_swatch(shape(d.tone, 11, 5, 4, d.tone)), d.label) for d in panel.dots if d.label]
    found += [(_swatch(_index(k, one.tone)), one.label) for k, one in enumerate(panel.bubbles, 1)]
    if panel.allowed is not None:
        found.append((_swatch(_filled("third", 0.25)), "allowed by the checks"))
    if len(found) == 1 and not panel.matrices and panel.allowed is None:
        return []
    return found + _special(panel.matrices)


def _special(matrices: tuple[Matrix, ...]) -> list[tuple[str, str]]:
    """The special colours (not finite, zero, no path) used in the picture."""
    seen = {int(index) for matrix in matrices for index in np.unique(indices(matrix))}
    return [
        (_swatch(f'<rect width="22" height="10" fill="{SPECIAL[index]}"/>'), words)
        for index, words in WORDS.items()
        if index in seen
    ]


def _swatch(content: str) -> str:
    return f'<svg width="22" height="10" viewBox="0 0 22 10" aria-hidden="true">{content}</svg>'


def _index(k: int, tone: str) -> str:
    """The number of a bubble as shown beside it; bold for the highlighted one."""
    weight = "" if tone == "main" else ' font-weight="700"'
    return f'<text x="11" y="10" text-anchor="middle" font-size="12" fill="{TEXT[0]}" class="f-text"{weight}>{k}</text>'


def _stroke(tone: str) -> str:
    dash = f' stroke-dasharray="{DASHES[tone]}"' if DASHES[tone] else ""
    return (
        f'<line x1="0" y1="5" x2="22" y2="5" stroke="{TONES[tone][0]}" stroke-width="2" '
        f'class="s-{tone}"{dash}/>'
    )


def _filled(tone: str, strength: float) -> str:
    return (
        f'<rect width="22" height="10" fill="{TONES[tone][0]}" fill-opacity="{strength}" '
        f'class="f-{tone}"/>'
    )


def colour_bar(matrix: Matrix) -> str:
    """HTML of a matrix's colour key: a horizontal bar from its lowest to its highest value."""
    ramp = np.arange(FIRST, 256, dtype=np.uint8)[None]
    data = base64.b64encode(png(ramp, colours(matrix.diverging))).decode()
    words = power_of_ten if matrix.log else number
    low, high = escape(words(matrix.low)), escape(words(matrix.high))
    name = escape(matrix.label)
    text = f'font-size="12" fill="{QUIET[0]}" class="f-quiet"'
    return (
        f'<svg class="bar" viewBox="0 0 320 34" width="320" height="34" role="img" '
        f'aria-label="{name}: colours from {low} to {high}" font-family="system-ui, sans-serif">'
        f'<image x="4" y="4" width="312" height="10" preserveAspectRatio="none" href="data:image/png;base64,{data}"/>'
        f'<text x="4" y="29" {text}>{low}</text>'
        f'<text x="160" y="29" text-anchor="middle" {text}>{name}</text>'
        f'<text x="316" y="29" text-anchor="end" {text}>{high}</text></svg>'
    )
