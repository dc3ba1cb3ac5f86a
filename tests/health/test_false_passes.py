"""Runs of which something was not judged: none of them may pass (exit code 0)."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closed_form_runs import PROVENANCE, measurements, of_model
from fits import Net, fit, loader

import rnndiag
from rnndiag.cli import main
from rnndiag.errors import CannotJudge
from rnndiag.health import exit_code
from rnndiag.health.finding import Finding
from rnndiag.recorder.measures import MEASURES
from rnndiag.store.ending import reason_of
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter

MakeRun = Callable[..., rnndiag.Run]
REACH = {"checks": {"reach": {"min": 10}}}


def of(findings: list[Finding], check: str, layer: str | None = None) -> Finding:
    found = [one for one in findings if one.check == check and layer in (None, one.layer)]
    assert len(found) == 1, [(one.check, one.layer, one.status, one.message) for one in findings]
    return found[0]


def record(writer: RunWriter, step: int, decay: float = 0.95, **facts: Any) -> bool:
    found = (*measurements("rnn.l0", decay), *of_model())
    return writer.append(Recording(step, verdict="exact", measurements=found, **facts))


# a


def test_a_run_in_which_every_measure_failed_is_not_judged(tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> object:
        raise ZeroDivisionError("planted")

    patch = pytest.MonkeyPatch()
    for measure in MEASURES.values():
        for part in ("of_layer", "of_all"):
            if getattr(measure, part) is not None:
                patch.setitem(vars(measure), part, broken)
    callback = rnndiag.GradientDiagnostics(tmp_path / "run", every_n_steps=1, report=False)
    with pytest.warns(UserWarning, match="planted"):
        fit(Net, [callback], steps=8, data=loader(8))
    patch.undo()
    run = rnndiag.open_run(tmp_path / "run")
    assert not {"credit_profile", "residual", "nonfinite_states"} & set(run.quantities)
    found = rnndiag.check(run)
    assert of(found, "coverage").status == "not_judged"
    assert "planted" in of(found, "coverage").message
    assert exit_code(found) == 3


def test_a_layer_of_which_nothing_was_judged_is_named(make_run: MakeRun) -> None:
    empty = dict.fromkeys(
        ("nonfinite_states", "nonfinite_adjoints", "credit_profile", "residual", "gradient_norm")
    )
    found = rnndiag.check(make_run(layer_changes=lambda i: empty))
    assert of(found, "coverage", "rnn.l0").status == "not_judged"
    assert exit_code(found) == 3


# b


def test_recordings_lost_to_a_full_disk_are_counted_and_not_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(tmp_path / "run", PROVENANCE)
    for step in range(10):
        assert record(writer, step)
    plain = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for step in range(10, 60):
        if writer.wants(step):
            assert not record(writer, step)
    monkeypatch.setattr(os, "fsync", plain)
    writer.close(final_step=59)
    run = rnndiag.open_run(tmp_path / "run")
    (end,) = run.endings
    assert (end.dropped, end.first_dropped, end.last_dropped) == (50, 10, 59)
    assert any("50 recordings were dropped (steps 10 to 59)" in str(p) for p in run.problems)
    found = rnndiag.check(run, config=REACH)
    assert of(found, "reach").status == "pass"
    assert of(found, "damage").status == "not_judged"
    assert "50 recordings were dropped from step 10 on" in " ".join(of(found, "damage").details)
    assert exit_code(found) == 3


def test_a_run_whose_size_limit_was_reached_is_not_passed(tmp_path: Path) -> None:
    callback = rnndiag.GradientDiagnostics(
        tmp_path / "run", every_n_steps=1, max_bytes=400_000, report=False, black_box=False
    )
    fit(Net, [callback], steps=60, data=loader(60))
    run = rnndiag.open_run(tmp_path / "run")
    (end,) = run.endings
    assert end.dropped > 0
    assert end.final_step == 59
    assert "size limit" in end.why_dropped
    assert exit_code(rnndiag.check(run, config={"checks": {"reach": {"min": 1}}})) == 3


def test_the_message_of_the_size_limit_names_the_option(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RunWriter(tmp_path / "run", max_bytes=50_000, durable=False) as writer:
        for step in range(40):
            record(writer, step)
    assert "larger max_bytes" in caplog.text


# c


def test_a_number_that_was_measured_only_before_the_window_is_not_judged(
    make_run: MakeRun,
) -> None:
    run = make_run(count=60, layer_changes=lambda i: {} if i < 10 else {"credit_profile": None})
    found = rnndiag.check(run, config=REACH)
    assert of(found, "reach").status == "not_judged"
    assert exit_code(found) == 3
    shown = of(rnndiag.check(run), "reach")
    assert shown.status == "note"
    assert "measured last at step 180" in " ".join(shown.details)


def test_a_stale_stable_exponent_excuses_no_growing_credit(make_run: MakeRun) -> None:
    stable = np.array([[-0.1, 0.0, 0.0]])

    def changes(i: int) -> Mapping[str, Any]:
        return {"lyapunov_exponents": stable if i == 0 else None}

    found = rnndiag.check(make_run(decay=1.3, layer_changes=changes))
    assert of(found, "exploding").status == "note"
    assert "λ_1 was measured last at step 0" in of(found, "exploding").message


def test_what_the_recorder_gave_up_is_in_the_run(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", PROVENANCE)
    for step in range(10):
        record(writer, step)
    fault = "the recorder (batch_started) failed: ZeroDivisionError: planted."
    writer.close(final_step=60, gave_up={"the recorder (batch_started)": fault})
    run = rnndiag.open_run(tmp_path / "run")
    assert any("planted" in str(problem) for problem in run.problems)
    found = rnndiag.check(run)
    assert of(found, "damage").status == "not_judged"
    assert exit_code(found) == 3


def test_a_fit_whose_recorder_gave_up_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = rnndiag.GradientDiagnostics(tmp_path / "run", every_n_steps=1, report=False)

    class Breaking(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 6 and callback._fit is not None:
                callback._fit.schedule = None  # type: ignore[assignment]

    with warnings.catch_warnings(record=True) as told, caplog.at_level("INFO", "rnndiag"):
        warnings.simplefilter("always")
        fit(Breaking, [callback], steps=20, data=loader(20))
    assert len([one for one in told if "AttributeError" in str(one.message)]) == 1
    assert "failed 3 times in a row and is left out" in caplog.text
    run = rnndiag.open_run(tmp_path / "run")
    (end,) = run.endings
    assert end.gave_up
    assert end.final_step is not None
    assert end.final_step > run.steps[-1]
    assert exit_code(rnndiag.check(run)) == 3


# d


def test_a_check_measured_for_one_of_two_layers_is_not_passed(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", PROVENANCE) as writer:
        for step in range(20):
            second = measurements("rnn.l1", 0.95, credit_profile=None)
            found = (*measurements("rnn.l0", 0.95), *second, *of_model())
            writer.append(Recording(step, verdict="exact", measurements=found))
    found = rnndiag.check(tmp_path / "run", config=REACH)
    assert of(found, "reach", "rnn.l0").status == "pass"
    assert of(found, "reach", "rnn.l1").status == "not_judged"
    assert exit_code(found) == 3


def test_a_layer_that_only_the_provenance_names_is_not_passed(tmp_path: Path) -> None:
    layers = {name: {"cell": "tanh", "hidden": 8} for name in ("rnn.l0", "rnn.l1")}
    with RunWriter(tmp_path / "run", {**PROVENANCE, "model": {"layers": layers}}) as writer:
        for step in range(20):
            record(writer, step)
    found = rnndiag.check(tmp_path / "run", config=REACH)
    assert of(found, "reach", "rnn.l1").status == "not_judged"
    assert exit_code(found) == 3


def test_calls_of_one_recurrence_without_a_gradient_are_excused(tmp_path: Path) -> None:
    silent = {
        "credit_profile": np.full((1, 6), np.nan),
        "adjoint_norm": np.zeros((60, 4)),
        "window_bias": np.full(60, np.nan),
    }
    with RunWriter(tmp_path / "run", PROVENANCE) as writer:
        for step in range(20):
            first = measurements("rnn.l0", 0.95, **silent)
            found = (*first, *measurements("rnn.l0#2", 0.95), *of_model())
            writer.append(Recording(step, verdict="exact", measurements=found))
    assert exit_code(rnndiag.check(tmp_path / "run", config=REACH)) == 0


# e


@pytest.mark.parametrize(
    "facts",
    [
        {"verdict": "unverified"},
        {"verdict": "unverified", "reasons": {"rnn.l0": "no weight received a gradient"}},
    ],
)
def test_recordings_without_a_proof_are_not_judged(
    make_run: MakeRun, facts: Mapping[str, Any]
) -> None:
    found = rnndiag.check(make_run(recording=lambda i: facts))
    assert of(found, "proof").status == "not_judged"
    assert exit_code(found) == 3


def test_a_proof_that_raised_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(sys.modules["rnndiag.recorder.measures.take"], "_judge", broken)
    callback = rnndiag.GradientDiagnostics(tmp_path / "run", every_n_steps=1, report=False)
    with pytest.warns(UserWarning, match="planted"):
        fit(Net, [callback], steps=8, data=loader(8))
    assert exit_code(rnndiag.check(tmp_path / "run")) == 3


# f


def test_a_baseline_that_shares_no_check_is_not_a_pass(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("one", count=20)
    old = rnndiag.health.read_baseline
    assert main(["baseline", str(run.path), "-o", str(tmp_path / "base.json")]) == 0
    made = old(tmp_path / "base.json")
    bare = make_run(
        "bare",
        count=20,
        layer_changes=lambda i: dict.fromkeys(
            ("credit_profile", "window_bias", "spectral_radius", "lyapunov_exponents")
        ),
    )
    assert exit_code(rnndiag.check(bare, made)) == 3
    other = rnndiag.health.Baseline({"unknown": {"rnn.l0": (1.0,)}}, made.fingerprint, ("a",))
    found = rnndiag.check(run, other)
    assert of(found, "baseline").status == "not_judged"
    assert "share no check" in of(found, "baseline").message
    assert exit_code(found) == 3


@pytest.mark.parametrize("verdict", ["inexact", "unverified"])
def test_a_baseline_run_without_a_proof_is_refused(make_run: MakeRun, verdict: str) -> None:
    old = make_run("old", recording=lambda i: {"verdict": verdict})
    with pytest.raises(CannotJudge, match="cannot be a baseline"):
        rnndiag.check(make_run("new"), old.path)


def test_seeds_of_different_programs_are_not_judged_together(make_run: MakeRun) -> None:
    one, two = make_run("one"), make_run("two", layers=("rnn.l0", "rnn.l1"))
    for runs in ([one, two], [two, one]):
        found = rnndiag.check(runs)
        assert of(found, "seeds").status == "not_judged"
        assert exit_code(found) == 3


# g


class Interrupted(Net):
    """Raises at the tenth batch."""

    fault: BaseException = ZeroDivisionError("planted")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 10:
            raise self.fault
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(ZeroDivisionError("planted"), "ZeroDivisionError"), (KeyboardInterrupt(), "interrupted")],
)
def test_a_fit_that_was_cut_short_is_not_judged_unless_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: BaseException, reason: str
) -> None:
    callback = rnndiag.GradientDiagnostics(tmp_path / "run", every_n_steps=1, report=False)

    def make() -> Net:
        net = Interrupted()
        net.fault = fault
        return net

    with pytest.raises((type(fault), SystemExit)):
        fit(make, [callback], steps=20, data=loader(20))
    run = rnndiag.open_run(tmp_path / "run")
    assert (run.status.word, run.status.reason) == ("ended early", reason)
    assert exit_code(rnndiag.check(run)) == 3
    assert main(["check", str(run.path)]) == 3
    assert reason in capsys.readouterr().out
    assert main(["check", str(run.path), "--unfinished"]) == 0


def test_sigterm_is_named(tmp_path: Path) -> None:
    named = type("SIGTERMException", (SystemExit,), {})
    assert reason_of(named()) == "SIGTERM"
    with RunWriter(tmp_path / "run", PROVENANCE) as writer:
        for step in range(10):
            record(writer, step)
        writer.close("SIGTERM", cut_short=True)
    assert str(rnndiag.open_run(tmp_path / "run").status) == "ended early, SIGTERM"


# h


def test_a_rank_without_a_file_is_named_and_not_passed(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", PROVENANCE, world_size=2) as writer:
        for step in range(10):
            record(writer, step)
    run = rnndiag.open_run(tmp_path / "run")
    assert any("rank 1 of 2 has no readable file" in str(problem) for problem in run.problems)
    assert exit_code(rnndiag.check(run)) == 3


def test_a_rank_that_ends_early_is_named_and_not_passed(tmp_path: Path) -> None:
    for rank, count in ((0, 20), (1, 12)):
        with RunWriter(tmp_path / "run", PROVENANCE, rank=rank, world_size=2) as writer:
            for step in range(count):
                record(writer, step, rank=rank)
    run = rnndiag.open_run(tmp_path / "run")
    told = [str(problem) for problem in run.problems]
    assert any("rank 1 lacks 8 recordings" in text and "steps 12 to 19" in text for text in told)
    assert exit_code(rnndiag.check(run)) == 3


def test_an_accident_that_one_rank_recorded_by_itself_is_no_missing_recording(
    tmp_path: Path,
) -> None:
    for rank, count in ((0, 13), (1, 12)):
        with RunWriter(tmp_path / "run", PROVENANCE, rank=rank, world_size=2) as writer:
            for step in range(count):
                notes = {"black_box": {"sentence": "a jump"}} if step == 12 else {}
                record(writer, step, rank=rank, notes=notes)
    assert rnndiag.open_run(tmp_path / "run").problems == ()


# i


def test_a_credit_profile_of_nan_is_neither_finite_nor_stable(make_run: MakeRun) -> None:
    nothing = {"credit_profile": np.full((60, 6), np.nan)}
    found = rnndiag.check(make_run(layer_changes=lambda i: nothing))
    assert of(found, "nonfinite", "rnn.l0").status == "fail"
    assert of(found, "exploding").status == "note"
    assert exit_code(found) == 1


def test_a_configured_bound_is_not_judged_by_nan(make_run: MakeRun) -> None:
    nothing = {"spectral_radius": np.array([np.nan])}
    run = make_run(layer_changes=lambda i: nothing)
    found = rnndiag.check(run, config={"checks": {"spectral_radius": {"max": 2}}})
    assert of(found, "spectral_radius").status == "not_judged"
    assert exit_code(found) == 3


# j


def test_absolute_bounds_are_judged_whatever_the_fingerprint_says(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = make_run("old", decay=0.95)
    base = str(tmp_path / "base.json")
    assert main(["baseline", str(old.path), "-o", base]) == 0
    cut = make_run(
        "cut",
        decay=0.5,
        layers=("rnn.l0#1", "rnn.l0#2"),
        model_changes=lambda i: {"window_in_use": np.array(5.0)},
    )
    found = rnndiag.check(cut, base, REACH)
    assert {one.status for one in found if one.check == "reach"} == {"fail"}
    assert exit_code(found) == 1
    told = of(found, "baseline")
    assert told.status == "not_judged"
    assert told.remedy.startswith("Look for")
    capsys.readouterr()
    assert main(["check", str(cut.path), "--baseline", base]) == 3
    out = capsys.readouterr().out
    assert out.index("Look for") < out.index("comparable_across")


def test_a_missing_baseline_hides_no_failure(make_run: MakeRun, tmp_path: Path) -> None:
    short = make_run(decay=0.5)
    found = rnndiag.check(short, tmp_path / "absent.json", REACH)
    assert exit_code(found) == 1
    with pytest.raises(CannotJudge, match="cannot be read"):
        rnndiag.check(short, tmp_path / "absent.json")


def test_structural_faults_are_told_of_a_run_that_is_too_short(make_run: MakeRun) -> None:
    fault = Finding("preflight: order", "fail", "rnn.l0", message="time and batch are swapped")
    notes = {"notes": {"preflight": [fault.as_json()]}}
    found = rnndiag.check(make_run(count=2, recording=lambda i: notes))
    assert exit_code(found) == 1
    assert of(found, "gate").status == "not_judged"


# k


def test_min_recordings_counts_the_values_that_a_check_rests_on(make_run: MakeRun) -> None:
    def rare(i: int) -> Mapping[str, Any]:
        return {} if i in (55, 59) else {"credit_profile": None}

    run = make_run(count=60, layer_changes=rare)
    found = rnndiag.check(run, config=REACH)
    assert of(found, "reach").status == "not_judged"
    assert "2 of the 12 recordings in its window" in of(found, "reach").message
    assert exit_code(found) == 3
    few = {"checks": {"reach": {"min": 10, "min_recordings": 2}}}
    assert exit_code(rnndiag.check(run, config=few)) == 0


def test_one_value_that_is_not_finite_fails_however_few_there_are(make_run: MakeRun) -> None:
    def once(i: int) -> Mapping[str, Any]:
        bad = {"nonfinite_states": np.full(60, 1.0)} if i == 3 else {"nonfinite_states": None}
        return {**bad, "nonfinite_adjoints": None, "gradient_norm": None, "credit_profile": None}

    found = rnndiag.check(make_run(layer_changes=once))
    assert of(found, "nonfinite", "rnn.l0").status == "fail"
