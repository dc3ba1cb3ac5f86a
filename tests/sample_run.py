"""Small runs to write and read: numbers that a reader can tell from any others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter

LAYER = "rnn.l0"


@cache
def content(step: int, rank: int = 0, lags: int = 12) -> tuple[Measurement, ...]:
    """Numbers that follow from step and rank alone, so that a reader can tell whether they are theirs."""
    rng = np.random.default_rng([step, rank])
    profile = np.log(0.9) * np.arange(lags)[:, None] + np.zeros((lags, 6))
    return (
        Measurement.of("credit_profile", profile, LAYER),
        Measurement.of("adjoint_norm", rng.standard_normal((lags, 4)), LAYER),
        Measurement.of(
            "contribution_norm",
            rng.standard_normal((2, lags)),
            LAYER,
            {"parameter": ("weight_ih", "weight_hh")},
        ),
        Measurement.of("valid_samples", np.full(lags, 3), LAYER),
        Measurement.of("loss", 1.0 + step + 100 * rank),
    )


def recording(step: int, rank: int = 0, lags: int = 12, **facts: Any) -> Recording:
    return Recording(step, rank=rank, measurements=content(step, rank, lags), **facts)


def same(one: Recording, other: Recording) -> bool:
    """Whether all numbers are equal, bit for bit."""
    keys = [[(m.name, m.layer) for m in r.measurements] for r in (one, other)]
    return keys[0] == keys[1] and all(
        a.values.dtype == b.values.dtype and a.values.tobytes() == b.values.tobytes()
        for a, b in zip(one.measurements, other.measurements, strict=True)
    )


Write = Callable[..., Path]


def writes_below(folder: Path) -> Write:
    """A function that writes a run of some steps below a folder and returns its directory."""

    def write(
        steps: Iterable[int] = range(0, 100, 10),
        name: str = "run",
        close: bool = True,
        rank: int = 0,
        provenance: dict[str, Any] | None = None,
        lags: int = 12,
        **options: Any,
    ) -> Path:
        writer = RunWriter(folder / name, provenance, rank, durable=False, **options)
        for step in steps:
            assert writer.append(recording(step, rank, lags))
        if close:
            writer.close()
        return folder / name

    return write


def segment_of(run: Path) -> Path:
    """The one segment of a run."""
    (found,) = (run / "recordings").glob("r*.tar")
    return found
