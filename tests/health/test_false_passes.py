"""Runs of which something was not judged: none of them may pass (exit code 0)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closed_form_runs import PROVENANCE, finding_of, measurements, of_model, record
from fits import Net, fit, loader

import rnndiag
from rnndiag.cli import main
from rnndiag.errors import CannotJudge
from rnndiag.health import exit_code
from rnndiag.health.finding import Finding
from rnndiag.recorder.measures import MEASURES
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter

MakeRun = Callable[..., rnndiag.Run]
REACH = {"checks": {"reach": {"min": 10}}}


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
    assert finding_of(found, "coverage").status == "not_judged"
    assert "planted" in finding_of(found, "coverage").message
    assert exit_code(found) == 3


def test_a_layer_of_which_nothing_was_judged_is_named(make_run: MakeRun) -> None:
    empty = dict.fromkeys(
        ("nonfinite_states", "nonfinite_adjoints", "credit_profile", "residual", "gradient_norm")
    )
    found = rnndiag.check(make_run(layer_changes=lambda i: empty))
    assert finding_of(found, "coverage", "rnn.l0").status == "not_judged"
    assert exit_code(found) == 3


def test_a_number_that_was_measured_only_before_the_window_is_not_judged(
    make_run: MakeRun,
) -> None:
    run = make_run(count=60, layer_changes=lambda i: {} if i < 10 else {"credit_profile": None})
    found = rnndiag.check(run, config=REACH)
    assert finding_of(found, "reach").status == "not_judged"
    assert exit_code(found) == 3
    shown = finding_of(rnndiag.check(run), "reach")
    assert shown.status == "note"
    assert "measured last at step 180" in " ".join(shown.details)


def test_a_stale_stable_exponent_excuses_no_growing_credit(make_run: MakeRun) -> None:
    stable = np.array([[-0.1, 0.0, 0.0]])

    def changes(i: int) -> Mapping[str, Any]:
        return {"lyapunov_exponents": stable if i == 0 else None}

    found = rnndiag.check(make_run(decay=1.3, layer_changes=changes))
    assert finding_of(found, "exploding").status == "note"
    assert "λ_1 was measured last at step 0" in finding_of(found, "exploding").message


def test_a_check_measured_for_one_of_two_layers_is_not_passed(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", PROVENANCE) as writer:
        for step in range(20):
            second = measurements("rnn.l1", 0.95, credit_profile=None)
            found = (*measurements("rnn.l0", 0.95), *second, *of_model())
            writer.append(Recording(step, verdict="exact", measurements=found))
    found = rnndiag.check(tmp_path / "run", config=REACH)
    assert finding_of(found, "reach", "rnn.l0").status == "pass"
    assert finding_of(found, "reach", "rnn.l1").status == "not_judged"
    assert exit_code(found) == 3


def test_a_layer_that_only_the_provenance_names_is_not_passed(tmp_path: Path) -> None:
    layers = {name: {"cell": "tanh", "hidden": 8} for name in ("rnn.l0", "rnn.l1")}
    with RunWriter(tmp_path / "run", {**PROVENANCE, "model": {"layers": layers}}) as writer:
        for step in range(20):
            record(writer, step)
    found = rnndiag.check(tmp_path / "run", config=REACH)
    assert finding_of(found, "reach", "rnn.l1").status == "not_judged"
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
    assert finding_of(found, "proof").status == "not_judged"
    assert exit_code(found) == 3


def test_a_proof_that_raised_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(sys.modules["rnndiag.recorder.measures.take"], "_set_verdict", broken)
    callback = rnndiag.GradientDiagnostics(tmp_path / "run", every_n_steps=1, report=False)
    with pytest.warns(UserWarning, match="planted"):
        fit(Net, [callback], steps=8, data=loader(8))
    assert exit_code(rnndiag.check(tmp_path / "run")) == 3


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
    assert finding_of(found, "baseline").status == "not_judged"
    assert "share no check" in finding_of(found, "baseline").message
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
        assert finding_of(found, "seeds").status == "not_judged"
        assert exit_code(found) == 3


def test_a_credit_profile_of_nan_is_neither_finite_nor_stable(make_run: MakeRun) -> None:
    nothing = {"credit_profile": np.full((60, 6), np.nan)}
    found = rnndiag.check(make_run(layer_changes=lambda i: nothing))
    assert finding_of(found, "nonfinite", "rnn.l0").status == "fail"
    assert finding_of(found, "exploding").status == "note"
    assert exit_code(found) == 1


def test_a_configured_bound_is_not_judged_by_nan(make_run: MakeRun) -> None:
    nothing = {"spectral_radius": np.array([np.nan])}
    run = make_run(layer_changes=lambda i: nothing)
    found = rnndiag.check(run, config={"checks": {"spectral_radius": {"max": 2}}})
    assert finding_of(found, "spectral_radius").status == "not_judged"
    assert exit_code(found) == 3


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
    told = finding_of(found, "baseline")
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
    assert finding_of(found, "gate").status == "not_judged"


def test_min_recordings_counts_the_values_that_a_check_rests_on(make_run: MakeRun) -> None:
    def rare(i: int) -> Mapping[str, Any]:
        return {} if i in (55, 59) else {"credit_profile": None}

    run = make_run(count=60, layer_changes=rare)
    found = rnndiag.check(run, config=REACH)
    assert finding_of(found, "reach").status == "not_judged"
    assert "2 of the 12 recordings in its window" in finding_of(found, "reach").message
    assert exit_code(found) == 3
    few = {"checks": {"reach": {"min": 10, "min_recordings": 2}}}
    assert exit_code(rnndiag.check(run, config=few)) == 0


def test_one_value_that_is_not_finite_fails_however_few_there_are(make_run: MakeRun) -> None:
    def once(i: int) -> Mapping[str, Any]:
        bad = {"nonfinite_states": np.full(60, 1.0)} if i == 3 else {"nonfinite_states": None}
        return {**bad, "nonfinite_adjoints": None, "gradient_norm": None, "credit_profile": None}

    found = rnndiag.check(make_run(layer_changes=once))
    assert finding_of(found, "nonfinite", "rnn.l0").status == "fail"
