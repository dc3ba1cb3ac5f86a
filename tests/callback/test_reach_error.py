"""How closely a sampled reach is known: stored with the recording, and told wherever the reach is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rnndiag
from rnndiag.cli import main
from rnndiag.recorder.measures.lags import lags
from rnndiag.recorder.measures.measure import Subject
from rnndiag.recorder.output.screen import screen
from rnndiag.recorder.pass_subject import record_passes
from rnndiag.report.context import Context
from rnndiag.report.layers import layer_rows
from rnndiag.report.strip import tiles
from rnndiag.run.run import open_run
from rnndiag.stats.time_words import TimeWords
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter


def recorded(last_only: bool = False, T: int = 70, B: int = 40) -> Recording:
    torch.manual_seed(0)
    model = nn.LSTM(3, 6)
    with rnndiag.probe(model) as probe:
        out, _ = model(torch.randn(T, B, 3))
        out = out[-1:] if last_only else out
        (out - torch.randn_like(out)).square().mean().backward()
    return record_passes(probe.backward_passes, ("contributions", "lags"))


@pytest.mark.parametrize("last_only", [False, True])
def test_a_recording_holds_it(last_only: bool, sampled: None) -> None:
    found = recorded(last_only)
    error = float(found["reach_error", "l0"].values)
    outputs, of_outputs = found["lag_samples", "l0"].values[2:4]
    assert (outputs < of_outputs) == (error > 0) == (not last_only)
    assert math.isfinite(error)


def test_a_recording_of_everything_has_no_error() -> None:
    assert float(recorded(T=12, B=4)["reach_error", "l0"].values) == 0.0


@pytest.mark.parametrize("steps", [5, 70])
def test_lags_that_no_loss_can_reach_are_not_stored(steps: int, sampled: None) -> None:
    """Of losses at the first steps alone, or of a sample without the last step: they are no numbers that went wrong."""
    torch.manual_seed(0)
    model = nn.LSTM(3, 6)
    with rnndiag.probe(model) as probe:
        out, _ = model(torch.randn(70, 40, 3))
        out[:steps].square().mean().backward()
    profile = record_passes(probe.backward_passes, ("lags",))["credit_profile", "l0"].values
    assert 1 < len(profile) <= steps
    assert np.isfinite(profile).all()


def test_it_is_told_wherever_the_reach_is(
    tmp_path: Path, sampled: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunWriter(tmp_path / "run") as writer:
        writer.append(recorded())
    run = open_run(tmp_path / "run")
    found = run.reach()
    assert found.error > 0.01 * found
    assert "±" in found.text
    assert math.isnan(run.reach(0.5).error)
    context = Context(run)
    tile = tiles(context)[0]
    assert f"{tile.value.removesuffix(' steps')} {tile.remark.split(',')[0]}" == found.text
    assert layer_rows(context)[0].reach == f"{found.text} of 70"
    assert found.text in screen(run, 0.01, TimeWords())
    assert main(["show", str(tmp_path / "run")]) == 0
    assert f"reach {found.text}" in capsys.readouterr().out


def test_a_sweep_takes_the_adjoints_that_are_there_and_asks_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = nn.LSTM(3, 6)
    with rnndiag.probe(model) as probe:
        model(torch.randn(9, 4, 3))[0].square().mean().backward()
    (run,) = probe.layer_runs
    subject = Subject((run,))
    assert subject.made_already(run) is None
    ((adj, _),) = subject.analyses
    assert subject.made_already(run) is adj
    assert Subject((run,), made={run.name: adj}).made_already(run) is adj
    assert subject.made_already(run.select([0])) is None
    monkeypatch.setattr(Subject, "analyses", property(lambda _: 1 / 0))
    measured = {one.name: one for one in lags(Subject((run,)), run)}
    assert np.isfinite(measured["credit_profile"].values[0]).all()
