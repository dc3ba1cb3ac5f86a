"""Faults of the recorder's own: told once with what to do, stored, survived; raised where strict."""

from __future__ import annotations

from typing import Any

import fits
import pytest
from fits import Net, assert_same, fit

import rnndiag
from rnndiag.errors import BadArgument
from rnndiag.recorder.faults import Faults, RnndiagWarning
from rnndiag.recorder.measures import MEASURES
from rnndiag.recorder.measures import measure as registry


@pytest.fixture
def broken_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("a planted fault")

    planted = registry.Measure("gates", MEASURES["gates"].cost, of_layer=fail)
    monkeypatch.setitem(MEASURES, "gates", planted)


@pytest.mark.usefixtures("broken_measure")
def test_a_fault_in_a_measure_is_told_stored_and_survived(diagnostics: Any) -> None:
    callback = diagnostics(strict=False, measures=["contributions", "gates"])
    with pytest.warns(RnndiagWarning) as told:
        ours = fit(Net, [callback])
    assert_same(ours, fit(Net))
    mine = [str(w.message) for w in told if issubclass(w.category, RnndiagWarning)]
    assert len(mine) == 1
    assert "measuring gates failed: ZeroDivisionError: a planted fault" in mine[0]
    assert "Training goes on." in mine[0]
    assert "strict=True" in mine[0]
    assert (
        "it failed before"
        in rnndiag.open_run(callback.run_dir).at(3).notes["not_measured"]["gates"]
    )
    run = rnndiag.open_run(callback.run_dir)
    assert run.steps_of("train").tolist() == [0, 1, 2, 3]
    assert {r.verdict for r in run.recordings if r.phase == "train"} == {"exact"}
    assert "a planted fault" in run.at(0).notes["not_measured"]["gates"]
    assert "a planted fault" in run.at(0).notes["errors"][0]
    assert "contribution_norm" in run.quantities


@pytest.mark.usefixtures("broken_measure")
def test_strict_raises(diagnostics: Any) -> None:
    with pytest.raises(ZeroDivisionError, match="a planted fault"):
        fit(Net, [diagnostics(strict=True)])


def test_warnings_as_errors_do_not_end_a_fit(
    diagnostics: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The tests' own configuration turns warnings into errors: what is told then goes to the log."""
    callback = diagnostics(strict=False, labels=lambda batch: 1 / 0)
    assert_same(fit(Net, [callback]), fit(Net))
    assert rnndiag.open_run(callback.run_dir).steps_of("train").tolist() == [0, 1, 2, 3]
    assert "ZeroDivisionError" in caplog.text


def test_a_directory_that_cannot_be_written(diagnostics: Any, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    callback = rnndiag.GradientDiagnostics(tmp_path / "file" / "run", every_n_steps=1, report=False)
    with pytest.warns(RnndiagWarning, match="cannot be written"):
        ours = fit(Net, [callback])
    assert_same(ours, fit(Net))


def test_a_schedule_that_fails(diagnostics: Any) -> None:
    def schedule(step: int) -> bool:
        if step == 1:
            raise KeyError("step 1")
        return True

    callback = diagnostics(strict=False, schedule=schedule, measures=["contributions"])
    with pytest.warns(RnndiagWarning, match="the schedule failed: KeyError"):
        fit(Net, [callback])
    assert rnndiag.open_run(callback.run_dir).steps_of("train").tolist() == [0, 2, 3]


def test_a_part_that_works_again_is_not_given_up() -> None:
    faults = Faults()
    for outcome in (False, False, True, False, False):
        with faults.guard("part"):
            if not outcome:
                raise ValueError("no")
    assert not faults.gave_up("part")
    with faults.guard("part"):
        raise ValueError("no")
    assert faults.gave_up("part")


def test_keyboard_interrupts_are_no_faults() -> None:
    with pytest.raises(KeyboardInterrupt), Faults().guard("part"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every_n_steps": 0}, "every_n_steps is 0"),
        ({"budget": 0.0}, "budget is 0.0"),
        ({"budget": None}, "budget is None"),
        ({"seam": "2"}, "seam is '2'"),
        ({"max_memory": -1}, "max_memory is -1"),
        ({"measures": ["lag"]}, "no measure 'lag'. Choose from: contributions"),
        ({"log": "some"}, "log is 'some'"),
        ({"every_n_steps": 2, "schedule": bool}, "Both every_n_steps and schedule"),
        ({"labels": "text"}, "labels is 'text'"),
        ({"time_unit": ("h",)}, "time_unit is"),
        ({"time_unit": ("h", 0)}, "time_unit is"),
        ({"jump": 1.0}, "jump is 1.0"),
        ({"samples": 0}, "samples is 0"),
        ({"stride": 0}, "stride is 0"),
    ],
)
def test_arguments_that_cannot_be_meant(options: Any, words: str, tmp_path: Any) -> None:
    with pytest.raises(BadArgument) as caught:
        rnndiag.GradientDiagnostics(tmp_path, **options)
    assert words in str(caught.value)
    assert caught.value.remedy


def test_steps_are_fit_for_the_helpers() -> None:
    assert fits.STEPS >= 4  # the third failure in a row and a step after it
