"""repr and notebook HTML of probes, recordings and recorders; figures and advice of a single recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fits
import pytest
import torch
from torch import nn

import rnndiag
from rnndiag.errors import BadArgument


@pytest.fixture(scope="module")
def probe() -> Any:
    torch.manual_seed(0)
    rnn = nn.LSTM(3, 5)
    with rnndiag.probe(rnn) as found:
        assert "watching" in repr(found)
        rnn(torch.randn(12, 4, 3))[0].square().mean().backward()
    assert "nothing looked at yet" in repr(found)
    assert "nothing looked at yet" in found._repr_html_()
    assert found.recording.verdict == "exact"
    return found


def test_probe_and_recording_say_what_they_hold(probe: Any) -> None:
    assert repr(probe) == f"<probe of LSTM: {probe.recording!r}>"
    html = probe._repr_html_()
    assert html == probe.recording._repr_html_()
    assert "credit_profile" in html
    assert "<td" in html


def test_measurement_shows_meaning_and_range(probe: Any) -> None:
    html = probe.recording["credit_profile", "l0"]._repr_html_()
    assert "lag 12" in html
    assert rnndiag.Measurement.of("loss", float("nan"))._repr_html_().count("<tr>") == 2


def test_names_in_html_are_escaped() -> None:
    recording = rnndiag.Recording(
        step=0, measurements=(rnndiag.Measurement.of("reach_error", 1.0, "<script>"),)
    )
    assert "<script>" not in recording._repr_html_()
    assert "<script>" not in recording["reach_error", "<script>"]._repr_html_()


def test_figures_advice_and_diagnosis_take_a_recording(probe: Any) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot as plt

    drawn = rnndiag.plot.reach(probe)
    again = rnndiag.plot.reach(probe.recording)
    assert len(drawn.lines) == len(again.lines) > 0
    plt.close("all")
    advised = rnndiag.advice(probe.recording)
    assert advised is not None
    assert advised.name == "l0"
    assert advised.length == 12
    assert rnndiag.diagnose(probe.recording).headline


def test_what_holds_no_recording_is_refused() -> None:
    with pytest.raises(BadArgument, match="int holds no recording"):
        rnndiag.advice(3)
    with pytest.raises(BadArgument, match="Module holds no recording"):
        rnndiag.plot.reach(nn.Module())


def test_callback_and_recorder_say_how_far_they_are(diagnostics: Any, tmp_path: Path) -> None:
    callback = diagnostics(measures=["contributions", "lags"], screen=False)
    assert "nothing recorded yet" in repr(callback)
    assert "nothing recorded yet" in callback._repr_html_()
    fits.fit(fits.Net, [callback])
    assert repr(callback) == f"<rnndiag.GradientDiagnostics in {str(callback.run_dir)!r}: recorded>"
    assert "4 recordings" not in repr(callback)
    assert "recordings" in callback._repr_html_()
    model = nn.GRU(3, 5)
    recorder = rnndiag.Recorder(
        model, tmp_path / "own", every_n_steps=1, report=False, screen=False
    )
    assert "not started" in repr(recorder)
    with recorder, recorder.step() as step:
        assert step.recorded
        assert "recorded" in repr(step)
        step.backward(model(torch.randn(6, 2, 3))[0].sum())
    # The run also holds a recording of the end of the fit, which is of no training step.
    assert [one.phase for one in rnndiag.open_run(recorder.run_dir).recordings] == ["train", "end"]
    assert "closed: 1 recording in" in repr(recorder)
    assert "<table>" in recorder._repr_html_()
