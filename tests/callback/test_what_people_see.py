"""Scalars on the trainer's logger, one screen at the end, labels, units, the summary of clipping, and nothing else."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import fits
import lightning.pytorch as L
import numpy as np
import pytest
import torch
from fits import Net, fit
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger

import rnndiag
from rnndiag.recorder.facts.clipping import ClippingSummary, word
from rnndiag.recorder.facts.history import StepFacts


def two_layers() -> Net:
    return Net(num_layers=2)


def logged_names(root: Path) -> set[str]:
    (file,) = root.rglob("metrics.csv")
    with file.open() as lines:
        return {name for name in next(csv.reader(lines)) if name.startswith("rnndiag/")}


def test_six_scalars_of_the_worst_layer_reach_the_logger(diagnostics: Any, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "logs")
    fit(two_layers, [diagnostics()], logger=logger, log_every_n_steps=1)
    names = logged_names(tmp_path / "logs")
    layers = {name.split("/")[1] for name in names}
    assert layers <= {"rnn.l0", "rnn.l1"}
    kinds = {name.split("/")[2] for name in names}
    assert kinds <= {"reach", "decay", "window", "lambda1", "rho", "residual"}
    assert {"reach", "window", "residual"} <= kinds


def test_all_scalars_where_they_are_asked_for(diagnostics: Any, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "logs")
    fit(two_layers, [diagnostics(log="all")], logger=logger, log_every_n_steps=1)
    layers = {name.split("/")[1] for name in logged_names(tmp_path / "logs")}
    assert layers == {"rnn.l0", "rnn.l1"}


def test_no_scalars_where_they_are_not_wanted(diagnostics: Any, tmp_path: Path) -> None:
    seen: list[str] = []

    class Logger(DummyLogger):
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            seen.extend(metrics)

    fit(Net, [diagnostics(log="none")], logger=Logger(), log_every_n_steps=1)
    assert not [name for name in seen if name.startswith("rnndiag")]
    assert "loss" in seen


def test_reach_on_the_logger_is_that_of_the_run(diagnostics: Any) -> None:
    seen: dict[str, float] = {}

    class Logger(DummyLogger):
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            seen.update(metrics)

    callback = diagnostics(every_n_steps=100)
    fit(Net, [callback], logger=Logger())
    run = rnndiag.open_run(callback.run_dir)
    assert seen["rnndiag/rnn.l0/reach"] == pytest.approx(run.reach(0.9, "rnn.l0"))
    assert seen["rnndiag/rnn.l0/window"] == run.window(0.1, "rnn.l0").steps
    exponents = run["lyapunov_exponents", "rnn.l0"].sel(part_stat="value").values[-1]
    assert seen["rnndiag/rnn.l0/lambda1"] == pytest.approx(exponents.max())


SCREEN = r"""rnndiag: 4 recordings, steps 0-3, 2 layers, T = 7
  CANNOT TELL
  The loss went from [\d.]+ to [\d.]+ in 4 steps(?s:.*?)
  steps 0 to 3:
  layer +reach   gain/step   window \(10 %\)   rho\(W\)   not finite   proof
  rnn.l0 +[\d.]+ +[\d.]+ +\d+ +[\d.]+ +0 +\de-\d+
  rnn.l1 +[\d.]+ +[\d.]+ +\d+ +[\d.]+ +0 +\de-\d+
  rnn.l0..l1 +[\d.]+ +[\d.]+ +\d+ +- +0 +-
  90 % of the credit of rnn.l0..l1 lies within \d of 7 steps \([\d.]+ h\)\.
  rnn.l0..l1: (?:A window of \d \([\d.]+ h\)|Nothing shorter than all 7)(?s:.*?); you hold(?s:.*?)\.
  cost [\d.]+ % of training time, \d+ kB in \S+
  rnndiag report \S+ --open
"""


def test_one_screen_at_the_end(diagnostics: Any, capsys: Any) -> None:
    callback = diagnostics(time_unit=("h", 2), stride=3)
    fit(two_layers, [callback], enable_progress_bar=True)
    printed = capsys.readouterr().out
    shown = printed[printed.index("rnndiag:") :]
    assert re.fullmatch(SCREEN, shown), shown
    steps = float(re.search(r"lies within (\d) of", shown)[1])  # type: ignore[index]
    hours = float(re.search(r"\(([\d.]+) h\)", shown)[1])  # type: ignore[index]
    assert abs(hours - 6 * steps) <= 3.1  # the reach is rounded to steps, its hours are not


def test_screen_is_printed_whatever_the_progress_bar_is_set_to(
    diagnostics: Any, capsys: Any
) -> None:
    for bar in (False, True):
        fit(Net, [diagnostics(f"bar-{bar}")], enable_progress_bar=bar)
        assert "rnndiag: 4 recordings" in capsys.readouterr().out
    fit(Net, [diagnostics("silent", screen=False)])
    printed = capsys.readouterr()
    assert "rnndiag" not in printed.out + printed.err


def test_an_accident_and_clipping_are_on_the_screen(diagnostics: Any, capsys: Any) -> None:
    class Broken(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 2:
                batch = [batch[0] * torch.inf, batch[1]]
            return super().training_step(batch, batch_idx)

    options = {"enable_progress_bar": True, "gradient_clip_val": 1e-3}
    fit(Broken, [diagnostics(measures=["contributions"])], **options)
    printed = capsys.readouterr().out
    assert "The gradient norm is nan at step 2. The input of rnn.l0 is not finite first" in printed
    assert "a step limiter" in printed


def test_labels_name_time_steps_and_sequences(diagnostics: Any) -> None:
    class Both(Net):
        def __init__(self) -> None:
            super().__init__(bidirectional=True)

    def labels(batch: Any) -> dict[str, list[str]]:
        return {"time": [f"t{k}" for k in range(fits.LENGTH)], "sequence": list("abcd")}

    callback = diagnostics(labels=labels, measures=["contributions"], every_n_steps=100)
    fit(Both, [callback])
    notes = rnndiag.open_run(callback.run_dir).first.notes
    names = [f"t{k}" for k in range(fits.LENGTH)]
    assert notes["labels"] == {"rnn.l0": names, "rnn.l0.reverse": names[::-1]}
    assert notes["sequences"] == list("abcd")


def test_labels_that_fail_cost_nothing_else(diagnostics: Any) -> None:
    callback = diagnostics(labels=lambda batch: batch["text"], strict=False, measures=["gates"])
    with pytest.warns(UserWarning, match="labels failed: TypeError"):
        fit(Net, [callback])
    run = rnndiag.open_run(callback.run_dir)
    assert len(run.steps_of("train")) == fits.STEPS
    assert any("labels failed" in e for r in run.recordings for e in r.notes.get("errors", ()))


def test_who_causes_the_gradient_is_named(diagnostics: Any) -> None:
    class Loud(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            out = self.rnn(batch[0])[0]
            return out.square().mean() + 50 * out[2, 4].sum()

    callback = diagnostics(measures=["contributions"], every_n_steps=100)
    fit(Loud, [callback])
    first = rnndiag.open_run(callback.run_dir).first
    assert first["sequence_index"].values[0] == 2
    assert first["sequence_peak_time"].values[0] == 4
    assert first.notes["sequence_share"][0] > 0.99
    squares = first["sequence_gradient_norm"].values ** 2
    np.testing.assert_allclose(squares / squares.sum(), first.notes["sequence_share"], rtol=1e-5)


def test_every_step_is_in_the_ring(diagnostics: Any) -> None:
    callback = diagnostics(every_n_steps=3, measures=["contributions"])
    norms: list[float] = []

    class Listen(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            grads = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
            norms.append(float(torch.cat(grads).norm()))

    fit(Net, [callback, Listen()], steps=8, gradient_clip_val=0.2)
    run = rnndiag.open_run(callback.run_dir)
    found: dict[int, tuple[float, float]] = {}
    for recording in run.recordings:
        if "history_step" in recording:
            columns = [
                recording[name].values.tolist()
                for name in ("history_step", "history_gradient_norm", "history_clipped")
            ]
            found |= {int(step): (norm, cut) for step, norm, cut in zip(*columns, strict=True)}
    assert list(found) == list(range(8))
    assert [norm for norm, _ in found.values()] == pytest.approx(norms, rel=1e-5)
    assert [bool(cut) for _, cut in found.values()] == [norm > 0.2 for norm in norms]
    stories = [s for r in run.recordings for s in r.notes.get("clipping", ())]
    assert [s["steps"] for s in stories] == [4, 4]
    assert stories[0]["share"] == pytest.approx(np.mean([norm > 0.2 for norm in norms[:4]]))
    assert stories[1]["median"] == pytest.approx(np.median(norms[4:]), rel=1e-5)


def test_the_word_for_clipping() -> None:
    assert word(0.0) == "safety net"
    assert word(0.5) == "step limiter"
    summary = ClippingSummary()
    for step in range(100):
        summary.add(StepFacts(step, norm=float(step), clip_at=98.5))
    summary.end_epoch(0)
    (told,) = summary.drain()
    assert told["share"] == pytest.approx(0.01)
    assert told["p90"] == pytest.approx(np.percentile(np.arange(100), 90))
    assert told["word"] == "safety net"
