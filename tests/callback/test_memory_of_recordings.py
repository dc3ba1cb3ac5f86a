"""What a recording may hold in memory: measures look at fewer sequences, or are refused, and the run says so."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fits import Net, assert_same, fit, loader
from torch import nn

import rnndiag
from rnndiag.engine import cpu_buffers
from rnndiag.errors import BadArgument, NotSupported
from rnndiag.health import exit_code
from rnndiag.recorder.faults import RnndiagWarning
from rnndiag.recorder.measures import Extent, Subject
from rnndiag.recorder.measures.lags import lags
from rnndiag.recorder.measures.memory import (
    FREED,
    LEAST_BYTES,
    MARGIN,
    allowed,
    kept_by_autograd,
    sequences_that_fit,
)


def subject_of(cell: str, max_memory: float | None) -> Subject:
    """One backward pass through a layer of 24 units, 60 steps, 16 sequences."""
    torch.manual_seed(0)
    model = nn.Module()
    model.rnn = getattr(nn, cell)(12, 24)
    with rnndiag.probe(model) as probe:
        model.rnn(torch.randn(60, 16, 12))[0].square().mean().backward()
    return Subject(tuple(probe.layer_runs), extent=Extent(None, max_memory=max_memory))


def peak_of(action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """Most bytes that torch's CPU allocator had handed out at once, over the start."""
    monkeypatch.setattr(cpu_buffers, "LARGE_BYTES", sys.maxsize)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        action()
    live = peak = 0
    for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def test_the_default_is_a_quarter_of_what_autograd_keeps_and_64_mb_at_least() -> None:
    runs = subject_of("LSTM", None).runs
    kept = kept_by_autograd(runs)
    assert kept == 60 * 16 * (4 * 24 + 2 * 24 + 12) * 4
    assert allowed(runs, None) == FREED * kept + LEAST_BYTES
    assert allowed(runs * 1000, None) == 1000 * kept * (FREED + MARGIN)
    assert allowed(runs, 1000.0) == FREED * kept + 1000


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_a_lag_sweep_looks_at_as_many_sequences_as_fit(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, free = subject_of(cell, 1.0), subject_of(cell, None)
    limit = allowed(bound.runs, 1.0)
    assert peak_of(lambda: list(lags(bound, bound.runs[0])), monkeypatch) <= limit
    assert "lag sweep: 3 of 16 sequences, for want of memory" in bound.sampling["rnn.l0"]
    assert peak_of(lambda: list(lags(free, free.runs[0])), monkeypatch) > limit
    assert "for want of memory" not in free.sampling.get("rnn.l0", "")


def test_a_sequence_that_does_not_fit_is_refused_in_a_sentence() -> None:
    runs = subject_of("RNN", None).runs
    assert sequences_that_fit("x", 6.0, runs, limit=1e12, most=16) == 16
    with pytest.raises(NotSupported, match=r"x of one sequence takes about .* max_memory allows"):
        sequences_that_fit("x", 6.0, runs, limit=100.0, most=16)


def test_refused_contributions_leave_the_run_unproved_and_training_alone(tmp_path: Path) -> None:
    callback = rnndiag.GradientDiagnostics(
        tmp_path / "run", every_n_steps=1, report=False, max_memory=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", RnndiagWarning)
        ours = fit(Net, [callback], steps=8, data=loader(8))
    assert_same(ours, fit(Net, steps=8, data=loader(8)))
    run = rnndiag.open_run(tmp_path / "run")
    assert "credit_profile" not in run.quantities
    assert "max_memory allows" in run.outlines[0].notes["not_measured"]["contributions"]
    found = rnndiag.check(run)
    assert exit_code(found) == 3
    assert any("max_memory allows" in one.message for one in found if one.status == "not_judged")


def test_max_memory_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="max_memory is 0"):
        rnndiag.GradientDiagnostics(tmp_path, max_memory=0)
