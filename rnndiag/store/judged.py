"""Selects the recordings that are judged: `last 20%`, `last 10`, `all`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import ceil

import numpy as np

from rnndiag.errors import BadConfig

DEFAULT_WINDOW, AT_LEAST = "last 20%", 5
_LAST = re.compile(r"last\s+([0-9]+(?:\.[0-9]+)?)\s*(%?)")


def judged_steps(
    steps: Sequence[int] | np.ndarray, window: str = DEFAULT_WINDOW, at_least: int = AT_LEAST
) -> np.ndarray:
    """The steps judged: the window's, but at least the last `at_least`; all of them where there are fewer."""
    known = np.unique(np.asarray(steps, np.int64))
    found = _LAST.fullmatch(window.strip())
    if window.strip() == "all":
        count = known.size
    elif found is None or float(found[1]) <= 0 or (found[2] and float(found[1]) > 100):
        raise BadConfig(
            f"The window of judged recordings {window!r} is not understood.",
            "Write 'last 20%', 'last 10' or 'all'.",
        )
    else:
        count = ceil(float(found[1]) * (known.size / 100 if found[2] else 1) - 1e-9)
    return known[max(0, known.size - max(count, at_least)) :]
