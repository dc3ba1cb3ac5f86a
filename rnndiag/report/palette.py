"""Colours of lines and matrices in the light and dark theme, and matrices as palette PNGs.

The palette indices of such a PNG are the data: 0 is 'no path', 1 'exactly zero', 2 'not finite', 3 'below the range',
and 4 to 255 are values on one fixed range. The script of the page reads values back from the indices, so the page holds
no second copy of the numbers.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from rnndiag.report.figure_data import Matrix

TONES: dict[str, tuple[str, str]] = {
    "main": ("#0072b2", "#56b4e9"),
    "second": ("#a84600", "#e69f00"),
    "third": ("#00664b", "#2fc29a"),
    "baseline": ("#6b7280", "#9aa4b2"),
    "bound": ("#8a3a6c", "#d893bd"),
    "limit": ("#9a4a00", "#f0a84b"),
    "bad": ("#b3006b", "#ff7ac0"),
}
"""Tone -> colour on the light and on the dark page (Okabe-Ito, darkened or lightened to 3:1 against the page)."""

DASHES: dict[str, str] = {
    "main": "",
    "second": "9 3",
    "third": "2.5 2.5",
    "baseline": "5 4",
    "bound": "11 3 3 3",
    "limit": "4 3",
    "bad": "1 2",
}
"""Tone -> dash pattern of its lines, so that lines differ in more than colour."""

PAGE = ("#ffffff", "#14171c")
TEXT = ("#1a1d21", "#e7eaee")
QUIET = ("#545b66", "#a8b0bc")
GRID = ("#e3e6ea", "#2b313a")
FRAME = ("#8a919c", "#78818e")

_NAMED = {"page": PAGE, "text": TEXT, "quiet": QUIET, "grid": GRID, "frame": FRAME, **TONES}
"""Names of the colours in the stylesheet."""

NO_PATH, ZERO, NOT_FINITE, BELOW, FIRST = 0, 1, 2, 3, 4
SPECIAL = {
    NO_PATH: "#7a838f",
    ZERO: "#8f8f8f",
    NOT_FINITE: "#e6007e",
    BELOW: "#001a40",
}

FAINT = 20
"""Opacity of 'no path', of 255: a shade of the page behind it, light or dark."""

_CIVIDIS = (
    "00224e 00306f 123570 2a3f6d 3c4a6b 4a546c 575d6d 636770 707173 7d7b78 8a8678 979077 a59c74 b3a770 c2b369 "
    "d1bf61 e0cc55 f0d945 fee838"
)
_VIK = (
    "001261 022b72 034481 125f92 3a7da9 6b9ec1 9cbfd5 cbdbe4 ebe5e0 ecd3c5 dfb198 d0916b c37243 b05022 8f2c0c 731506 "
    "590008"
)


def _ramp(stops: str, count: int) -> np.ndarray:
    """(count, 3) RGB colours interpolated between the stops."""
    known = np.array([[int(s[i : i + 2], 16) for i in (0, 2, 4)] for s in stops.split()], float)
    at = np.linspace(0, len(known) - 1, count)
    columns = [np.interp(at, np.arange(len(known)), known[:, k]) for k in range(3)]
    table: np.ndarray = np.rint(np.stack(columns, 1)).astype(np.uint8)
    return table


def colours(diverging: bool = False) -> np.ndarray:
    """The whole palette, (256, 3) RGB."""
    table = np.zeros((256, 3), np.uint8)
    for index, colour in SPECIAL.items():
        table[index] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    table[FIRST:] = _ramp(_VIK if diverging else _CIVIDIS, 256 - FIRST)
    return table


def indices(matrix: Matrix) -> np.ndarray:
    """Matrix values -> palette indices, uint8. -inf of a logarithm is exactly zero, NaN is 'no path'."""
    values = np.asarray(matrix.values, float)
    span = (matrix.high - matrix.low) or 1.0
    with np.errstate(all="ignore"):
        level = np.rint((values - matrix.low) / span * (255 - FIRST)) + FIRST
        found = np.clip(np.nan_to_num(level, nan=0, posinf=255, neginf=0), FIRST, 255)
    found = np.where(values < matrix.low, BELOW if matrix.log else FIRST, found)
    found = np.where(np.isneginf(values), ZERO, found)
    found = np.where(np.isposinf(values), NOT_FINITE, found)
    return np.where(np.isnan(values), NO_PATH, found).astype(np.uint8)


def png(picture: np.ndarray, table: np.ndarray) -> bytes:
    """An 8-bit palette PNG of (rows, columns) indices, first row on top. Equal input gives equal bytes."""
    height, width = picture.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), picture], 1)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, body)
        for kind, body in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            (b"PLTE", table.tobytes()),
            (b"tRNS", bytes([FAINT])),
            (b"IDAT", zlib.compress(rows.tobytes(), 9)),
            (b"IEND", b""),
        )
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _variables(theme: int) -> str:
    return ";".join(f"--{name}:{colours[theme]}" for name, colours in _NAMED.items())


def stylesheet(rules: str) -> str:
    """The stylesheet: colours of both themes as variables, classes that recolour the SVG, and the page's own rules."""
    marks = "".join(
        f".s-{name}{{stroke:var(--{name})}}.f-{name}{{fill:var(--{name})}}" for name in _NAMED
    )
    return (
        f":root{{color-scheme:light dark;{_variables(0)}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{_variables(1)}}}}}"
        f"@media print{{:root{{{_variables(0)}}}}}"
        f"{marks}\n{rules}"
    )
