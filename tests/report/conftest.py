"""Runs of every edge case, each written once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import report_runs

from rnndiag.report.context import Context
from rnndiag.report.write_report import report_context
from rnndiag.store.measurement import Measurement

STEPS = (0, 10, 20)
T = 12
Change = Callable[[Measurement, int], Measurement | None]


def not_finite(m: Measurement, step: int) -> Measurement:
    """Step 10 blew up."""
    if step != 10 or m.name in ("valid_samples", "chunk_size", "history_step"):
        return m
    if m.name == "nonfinite_adjoints":
        return replace(m, values=m.values + 3)
    return replace(m, values=np.full(m.values.shape, np.nan))


def zeros(m: Measurement, step: int) -> Measurement:
    """From lag 5 on there is exactly nothing; linear quantities are zero altogether."""
    if m.name == "credit_profile":
        return replace(m, values=np.where(np.arange(len(m.values))[:, None] < 5, m.values, -np.inf))
    if m.name == "credit_matrix":
        u, s = np.indices(m.values.shape)
        return replace(m, values=np.where(u - s >= 5, -np.inf, m.values))
    if m.name.startswith("product"):
        return replace(m, values=np.full(m.values.shape, -np.inf))
    kept = m.name in ("valid_samples", "chunk_size", "history_step") or m.coordinates.get("token")
    return m if kept else replace(m, values=np.zeros(m.values.shape))


def missing(m: Measurement, step: int) -> Measurement | None:
    """Only the loss was measured."""
    return m if m.name in ("loss", "valid_samples") else None


def many_to_one(m: Measurement, step: int) -> Measurement:
    """The loss enters at the last output only."""
    if m.name != "credit_matrix":
        return m
    last = np.arange(len(m.values)) == len(m.values) - 1
    return replace(m, values=np.where(last[:, None] | np.isnan(m.values), m.values, -np.inf))


CASES: dict[str, dict[str, object]] = {
    "full": {},
    "one_step": {"T": 1},
    "one_recording": {"steps": (10,)},
    "not_finite": {"edit": not_finite},
    "zeros": {"edit": zeros},
    "nothing": {"steps": ()},
    "missing": {"edit": missing, "notes": {"not_measured": {"lyapunov": "switched off"}}},
    "many_to_one": {"edit": many_to_one},
}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a case's run."""
    written: dict[str, Path] = {}

    def of(case: str) -> Path:
        if case not in written:
            folder = tmp_path_factory.mktemp("runs") / case
            options: dict[str, object] = {"steps": STEPS, "T": T, **CASES[case]}
            written[case] = report_runs.write(folder, **options)
        return written[case]

    return of


@pytest.fixture(scope="session")
def context_of(made: Callable[[str], Path]) -> Callable[[str], Context]:
    """A case's run with its findings."""
    return lambda case: report_context(made(case))
