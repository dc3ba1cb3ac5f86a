"""The data of a figure as JSON, rounded to a stated precision, for golden tests and the gallery."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from rnndiag.report.figure_data import FigureData

DIGITS = 4
"""Significant digits that are kept: float32 sums differ between machines in the sixth or so."""


def figure_json(data: FigureData, digits: int = DIGITS) -> dict[str, Any]:
    """All data of a figure in plain types; numbers that are not finite become "nan", "inf" or "-inf"."""
    plain: dict[str, Any] = _plain(data, digits)
    return plain


def _plain(value: Any, digits: int) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name), digits)
            for field in dataclasses.fields(value)
        }
    if isinstance(value, np.ndarray):
        return _plain(value.tolist(), digits)
    if isinstance(value, list | tuple):
        return [_plain(entry, digits) for entry in value]
    if isinstance(value, float | np.floating):
        return rounded(float(value), digits)
    return int(value) if isinstance(value, np.integer) else value


def rounded(value: float, digits: int = DIGITS) -> float | str:
    """The number rounded to `digits` significant digits; "nan", "inf" or "-inf" if it is not finite."""
    if not math.isfinite(value):
        return str(value)
    return 0.0 if value == 0 else float(f"{value:.{digits - 1}e}")
