"""Positions and labels of the ticks of an axis, and numbers as text."""

from __future__ import annotations

import math

import numpy as np

from rnndiag.report.figure_data import Axis

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(exponent: float) -> str:
    """A power of ten as text, such as `10⁻⁴`."""
    return "10" + str(round(exponent)).translate(_SUPERSCRIPT)


def ten_to(exponent: float) -> float:
    """10 ** exponent, with the exponent limited to ±300, since stored numbers may exceed the range of floats."""
    return float(10.0 ** min(300.0, max(-300.0, float(exponent))))


def number(value: float) -> str:
    """A number with 3 significant digits, without an exponent between 1e-3 and 1e5."""
    if value != value:
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return f"{value:.3g}" if size < 1000 else f"{value:.0f}"


def place(axis: Axis, values: np.ndarray | float) -> np.ndarray:
    """Map values to 0..1 along the axis; NaN for values that are not on it (not finite, or at most 0 if
    logarithmic)."""
    with np.errstate(all="ignore"):
        raw = np.asarray(values, float)
        if axis.scale == "linear":
            low, high, at = axis.low, axis.high, raw
        else:
            low, high = math.log(axis.low), math.log(axis.high)
            at = np.where(raw > 0, np.log(np.where(raw > 0, raw, 1.0)), np.nan)
        share = (at - low) / ((high - low) or 1.0)
    return np.where(np.isfinite(share), share, np.nan)


def ticks(axis: Axis, most: int = 7) -> list[tuple[float, str]]:
    """At most about `most` tick values with their labels."""
    if axis.names:
        every = max(1, math.ceil(len(axis.names) / most))
        return [(float(i), name) for i, name in enumerate(axis.names) if i % every == 0]
    if axis.scale == "log2":
        first, last = math.ceil(math.log2(axis.low)), math.floor(math.log2(axis.high))
        every = max(1, math.ceil((last - first + 1) / most))
        return [(2.0**e, number(2.0**e)) for e in range(first, last + 1, every)]
    if axis.scale == "log10":
        first = math.ceil(math.log10(axis.low) - 1e-9)
        last = math.floor(math.log10(axis.high) + 1e-9)
        if last - first < 2:
            return _within_decades(axis, most)
        every = max(1, math.ceil((last - first + 1) / most))
        return [(10.0**e, power_of_ten(e)) for e in range(first, last + 1, every)]
    cells = axis.low % 1 == axis.high % 1 == 0.5  # of a matrix, whose centres are whole numbers
    return _worded(_few(axis.low, axis.high, most, 1.0 if cells else 0.0))


def _within_decades(axis: Axis, most: int) -> list[tuple[float, str]]:
    """1, 2 and 5 of each power, or round values if there are fewer than two of those; none too close together."""
    start = math.floor(math.log10(axis.low))
    stop = math.ceil(math.log10(axis.high))
    usual = [_clean(m * 10.0**e) for e in range(start, stop + 1) for m in (1, 2, 5)]
    found = [v for v in usual if axis.low <= v <= axis.high]
    if len(found) < 2:
        found = [v for v in _few(axis.low, axis.high, min(4, most)) if v > 0]
    kept: list[float] = []
    for value in found:
        if not kept or float(place(axis, value) - place(axis, kept[-1])) >= 0.9 / (most + 1):
            kept.append(value)
    kept = kept[:: 1 + (len(kept) > most + 1)]
    return _worded(kept)


def _worded(values: list[float]) -> list[tuple[float, str]]:
    """Values with their labels; of values with equal labels only the first is kept."""
    words: dict[str, float] = {}
    for value in values:
        words.setdefault(number(value), value)
    return [(value, word) for word, value in words.items()]


def _few(low: float, high: float, most: int, least: float = 0.0) -> list[float]:
    """Round values between low and high, at most `most` of them and `least` apart."""
    span = high - low
    if not span > 1e-5 * max(abs(low), abs(high)) or not math.isfinite(span):
        return [low]  # all would have the same label
    unit = 10.0 ** math.floor(math.log10(span / max(1, most)))
    for step in (unit * m for m in (1, 2, 2.5, 5, 10, 20, 25, 50)):
        first = math.ceil(low / step - 1e-9)
        count = math.floor(high / step + 1e-9) - first + 1
        if count <= most and step >= least:
            return [_clean((first + i) * step) for i in range(count)]
    return [low]


def _clean(value: float) -> float:
    """The number without binary rounding error: 0.30000000000000004 becomes 0.3."""
    return float(f"{value:.12g}")
