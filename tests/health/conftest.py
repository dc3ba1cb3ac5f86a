"""Runs made by closed forms: a credit profile a^d has its reach, decay and window bias on paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from closed_form_runs import PROVENANCE, measurements, of_model

from rnndiag.run.run import Run, open_run
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter

Decays = Callable[[int], Mapping[str, float]]


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """`make_run("a", decay=0.9)`: 50 recordings, steps 0, 20, ...; changes are functions of the recording's index."""

    def make(
        name: str = "run",
        decay: float | Callable[[int], float] = 0.95,
        count: int = 50,
        layers: Sequence[str] = ("rnn.l0",),
        layer_changes: Callable[[int], Mapping[str, Any]] = lambda i: {},
        model_changes: Callable[[int], Mapping[str, Any]] = lambda i: {},
        recording: Callable[[int], Mapping[str, Any]] = lambda i: {},
        provenance: Mapping[str, Any] = PROVENANCE,
    ) -> Run:
        with RunWriter(tmp_path / name, dict(provenance), durable=False) as writer:
            for i in range(count):
                factor = decay(i) if callable(decay) else decay
                found = [
                    m for layer in layers for m in measurements(layer, factor, **layer_changes(i))
                ]
                facts = {"verdict": "exact", **recording(i)}
                writer.append(
                    Recording(
                        step=20 * i, measurements=(*found, *of_model(**model_changes(i))), **facts
                    )
                )
        return open_run(tmp_path / name)

    return make
