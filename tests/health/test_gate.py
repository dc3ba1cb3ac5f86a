"""The gate on runs whose numbers are known on paper."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from closed_form_runs import finding_of

import rnndiag
from rnndiag.errors import BadConfig, CannotJudge
from rnndiag.health.finding import Finding
from rnndiag.health.gate import look
from rnndiag.health.outcome import exit_code, verdict
from rnndiag.run.run import Run

MakeRun = Callable[..., Run]


def reach_on_paper(a: float, lags: int, share: float = 0.9) -> float:
    """The n with (1 - a^n) = share (1 - a^D), linear within the step, as the definition has it."""
    cumulated = np.cumsum(a ** np.arange(lags))
    target = share * cumulated[-1]
    lag = int(np.searchsorted(cumulated, target))
    return lag + (target - (cumulated[lag - 1] if lag else 0.0)) / a**lag


def test_a_healthy_run_passes_and_its_numbers_are_those_on_paper(make_run: MakeRun) -> None:
    found = rnndiag.check(make_run(decay=0.9))
    assert exit_code(found) == 0
    assert finding_of(found, "reach").value == pytest.approx(reach_on_paper(0.9, 60), rel=1e-5)
    assert finding_of(found, "decay").value == pytest.approx(0.9, rel=1e-5)
    assert finding_of(found, "lyapunov").value == pytest.approx(math.log(0.9), rel=1e-5)
    assert finding_of(found, "spectral_radius").value == pytest.approx(0.9, rel=1e-6)
    assert finding_of(found, "exploding").value == pytest.approx(1.0)
    assert finding_of(found, "reach").status == "note"
    assert "fine if the task needs no more" in finding_of(found, "reach").message


def test_the_headline_is_the_runs_own_reach(make_run: MakeRun) -> None:
    run = make_run(decay=lambda i: 0.9 + 0.0005 * i)
    assert finding_of(rnndiag.check(run), "reach").value == pytest.approx(
        float(run.reach(0.9)), rel=1e-9
    )


@pytest.mark.parametrize(
    ("bounds", "status"), [({"min": 20}, "fail"), ({"max": 20}, "pass"), ({"max": 5}, "fail")]
)
def test_bounds_are_two_sided(make_run: MakeRun, bounds: dict[str, float], status: str) -> None:
    found = rnndiag.check(make_run(decay=0.85), config={"checks": {"reach": bounds}})
    assert finding_of(found, "reach").status == status
    assert exit_code(found) == (1 if status == "fail" else 0)


def test_a_failure_says_since_when_what_was_before_and_what_moved_with_it(
    make_run: MakeRun,
) -> None:
    run = make_run(decay=lambda i: 0.95 if i < 17 else 0.85, layers=("rnn.l0", "rnn.l1"))
    one = finding_of(
        rnndiag.check(run, config={"checks": {"reach": {"min": 25}}}), "reach", "rnn.l0"
    )
    assert one.since_step == 340
    assert one.details[0] == "since step 340, before that 38.1"
    assert any(
        line.startswith("also spectral_radius of rnn.l0 fell 0.950 -> 0.850")
        for line in one.details
    )
    assert one.allowed == "at least 25"
    assert "fine if" not in one.message
    assert one.remedy


def test_level_warn_prints_but_does_not_fail_and_off_is_silent(make_run: MakeRun) -> None:
    run = make_run()
    warned = rnndiag.check(run, config={"checks": {"reach": {"min": 50, "level": "warn"}}})
    assert (finding_of(warned, "reach").status, exit_code(warned)) == ("warn", 0)
    off = rnndiag.check(run, config={"checks": {"reach": {"min": 50, "level": "off"}}})
    assert not [one for one in off if one.check.startswith("reach")]


def test_layers_limits_a_check_and_a_pattern_that_matches_nothing_is_not_a_pass(
    make_run: MakeRun,
) -> None:
    run = make_run(layers=("encoder.l0", "decoder.l0"))
    found = rnndiag.check(run, config={"checks": {"reach": {"min": 50, "layers": ["encoder.*"]}}})
    assert [one.layer for one in found if one.check == "reach"] == ["encoder.l0"]
    none = rnndiag.check(run, config={"checks": {"reach": {"min": 1, "layers": ["encodr.*"]}}})
    assert finding_of(none, "reach").status == "not_judged"
    assert exit_code(none) == 3


def test_a_check_that_was_asked_for_and_not_recorded_is_not_a_pass(make_run: MakeRun) -> None:
    run = make_run(layer_changes=lambda i: {"lyapunov_exponents": None})
    assert exit_code(rnndiag.check(run)) == 0
    found = rnndiag.check(run, config={"checks": {"lyapunov": {"max": 0.1}}})
    assert finding_of(found, "lyapunov").status == "not_judged"
    assert exit_code(found) == 3


def test_calls_that_no_loss_reaches_have_no_truncation_error(make_run: MakeRun) -> None:
    """The first chunks of a sequence with its loss at the end: 0 / 0 is no bias, and no fault."""
    nothing = {"window_bias": np.full(60, np.nan)}
    found = rnndiag.check(make_run(layer_changes=lambda i: nothing))
    assert finding_of(found, "truncation_error").status != "fail"
    assert "no gradient reaches it" in finding_of(found, "truncation_error").message


def test_a_layer_that_no_gradient_reaches_has_no_largest_part(make_run: MakeRun) -> None:
    nothing = np.zeros((4, 60))
    only_f = np.stack([nothing[0], np.ones(60), nothing[0], nothing[0]])
    config = {"checks": {"imbalance": {"max": 0.9}}}

    def found_of(name: str, norms: np.ndarray) -> Finding:
        run = make_run(name=name, layer_changes=lambda i: {"gate_contribution_norm": norms})
        return finding_of(rnndiag.check(run, config=config), "imbalance", "rnn.l0")

    quiet = found_of("quiet", nothing)
    assert quiet.status == "not_judged"
    assert "no gradient arrives at rnn.l0" in quiet.message
    assert found_of("loud", only_f).status == "fail"


def test_counts_that_are_not_finite_fail_without_a_warning(make_run: MakeRun) -> None:
    broken = {"nonfinite_states": np.array([np.inf, -np.inf])}
    found = rnndiag.check(make_run(layer_changes=lambda i: broken))
    assert finding_of(found, "nonfinite", "rnn.l0").status == "fail"


def test_a_heading_keeps_the_case_of_a_symbol(make_run: MakeRun) -> None:
    def growing(i: int) -> dict[str, object]:
        exponents = np.array([[0.1, 0.0, 0.0]])
        return {"spectral_radius": np.array([0.5 + 0.1 * i]), "lyapunov_exponents": exponents}

    drift = make_run(layer_changes=growing)
    told = [f for f in rnndiag.check(drift) if f.check == "spectral_drift"]
    assert verdict(told).sentence.startswith("ρ(W_hh)")


@pytest.mark.parametrize(
    ("exponents", "blocks", "odd"),
    [(0.1, 1, True), (-0.1, 1, False), (None, 1, True), (None, 4, False)],
)
def test_a_recurrence_that_grows_is_no_fault_while_it_is_stable(
    make_run: MakeRun, exponents: float | None, blocks: int, odd: bool
) -> None:
    def changes(i: int) -> dict[str, object]:
        found = None if exponents is None else np.array([[exponents, 0.0, 0.0]])
        return {
            "spectral_radius": np.full(blocks, 0.5 + 0.05 * i),
            "lyapunov_exponents": found,
        }

    found = finding_of(rnndiag.check(make_run(layer_changes=changes)), "spectral_drift")
    assert found.status == "note"
    assert ("Training blows the recurrence up" in found.remedy) is odd


def test_a_failed_proof_comes_before_a_failed_check(make_run: MakeRun) -> None:
    def recording(i: int) -> dict[str, object]:
        return {"verdict": "inexact", "reasons": {"rnn.l0": "the sum law fails"}} if i >= 45 else {}

    found = rnndiag.check(make_run(recording=recording), config={"checks": {"reach": {"min": 50}}})
    assert exit_code(found) == 3
    assert verdict(found).word == "NOT TO BE TRUSTED"
    early = rnndiag.check(
        make_run("early", recording=lambda i: {"verdict": "inexact"} if i < 3 else {})
    )
    assert exit_code(early) == 0, "recordings that are not judged need no proof"


def test_a_large_residual_is_distrust_and_not_a_failure(make_run: MakeRun) -> None:
    found = rnndiag.check(make_run(layer_changes=lambda i: {"residual": np.array([0.3, 1e-7])}))
    assert finding_of(found, "residual").status == "not_judged"
    assert exit_code(found) == 3


def test_too_few_recordings_say_so_and_how_to_judge_what_is_there(make_run: MakeRun) -> None:
    with pytest.raises(CannotJudge, match="3 recordings are readable, the checks need 5") as told:
        rnndiag.check(make_run(count=3))
    assert "--min-recordings 3" in told.value.remedy
    assert (
        exit_code(
            rnndiag.check(make_run("short", count=3), config={"checks": {"min_recordings": 3}})
        )
        == 0
    )
    assert [one for one in look(make_run("one", count=1)) if one.check == "reach"]


def test_nothing_checked_is_not_a_pass(make_run: MakeRun) -> None:
    off = {
        name: {"level": "off"}
        for name in ("nonfinite", "exploding", "residual", "damage", "unfinished")
    }
    with pytest.raises(CannotJudge, match="Nothing was checked"):
        rnndiag.check(make_run(), config={"checks": off})


def test_a_value_at_the_limit_is_printed_with_enough_digits(make_run: MakeRun) -> None:
    run = make_run(layer_changes=lambda i: {"spectral_radius": np.array([0.99999])})
    one = finding_of(
        rnndiag.check(run, config={"checks": {"spectral_radius": {"min": 1.0}}}), "spectral_radius"
    )
    assert one.status == "fail"
    assert float(one.text_value) < 1.0


def test_several_runs_are_judged_by_the_worst_and_all_are_named(make_run: MakeRun) -> None:
    runs = [make_run("a", decay=0.95), make_run("b", decay=0.8), make_run("c", decay=0.95)]
    one = finding_of(rnndiag.check(runs, config={"checks": {"reach": {"min": 20}}}), "reach")
    assert (one.status, one.run) == ("fail", "b")
    assert all(name in one.details[-1] for name in ("a 38.1", "b 10.3", "c 38.1"))


def test_without_configuration_only_what_is_wrong_for_everyone_fails(make_run: MakeRun) -> None:
    forgetful = rnndiag.check(make_run(decay=0.3))
    assert exit_code(forgetful) == 0
    heading = verdict(forgetful)
    assert (heading.word, heading.kind) == ("SHORT MEMORY", "fault")
    assert heading.sentence.startswith("90 % of the credit lies within 2 of 60 steps")
    assert verdict(rnndiag.check(make_run("fine", decay=0.95))).word == "NO FAULT FOUND"


@pytest.mark.parametrize(
    ("check", "layer_changes", "model_changes"),
    [
        ("nonfinite", {"nonfinite_states": np.eye(60)[7] * 12}, {}),
        ("nonfinite", {}, {"loss": np.array(np.nan)}),
        ("nonfinite", {}, {"total_gradient_norm": np.array(np.inf)}),
        ("dead_units", {"dead_units": np.array(0.9)}, {}),
    ],
)
def test_faults_for_everyone_fail(
    make_run: MakeRun, check: str, layer_changes: object, model_changes: object
) -> None:
    run = make_run(
        layer_changes=lambda i: layer_changes if i >= 40 else {},
        model_changes=lambda i: model_changes if i >= 40 else {},
    )
    found = rnndiag.check(run)
    failed = [one for one in found if one.status == "fail"]
    assert [one.check for one in failed] == [check]
    assert failed[0].since_step == 800


def test_growing_credit_explodes_only_where_the_dynamics_is_unstable(make_run: MakeRun) -> None:
    assert finding_of(rnndiag.check(make_run("up", decay=1.2)), "exploding").status == "fail"
    calm = {"lyapunov_exponents": np.array([[-0.1, 0.0, 0.0]])}
    assert (
        finding_of(
            rnndiag.check(make_run("calm", decay=1.2, layer_changes=lambda i: calm)), "exploding"
        ).status
        == "pass"
    )
    unknown = {"lyapunov_exponents": None}
    one = finding_of(
        rnndiag.check(make_run("unknown", decay=1.2, layer_changes=lambda i: unknown)), "exploding"
    )
    assert one.status == "fail"
    assert "λ_1 was not recorded" in " ".join(one.details)


def test_the_preflight_that_the_recorder_left_is_told(make_run: MakeRun) -> None:
    left = Finding(
        "preflight: batch mixing",
        "fail",
        "rnn.l0",
        message="a sample changes the others",
        remedy="Do this.",
    )
    notes = [left.as_json(), {"check": "odd"}, "nonsense", {"check": 3, "status": "fail"}]
    found = rnndiag.check(
        make_run(recording=lambda i: {"notes": {"preflight": notes}} if i == 0 else {})
    )
    assert finding_of(found, "preflight: batch mixing").message == left.message
    assert exit_code(found) == 1


def test_a_bad_configuration_is_refused_by_name(make_run: MakeRun) -> None:
    with pytest.raises(BadConfig, match="Did you mean 'reach'"):
        rnndiag.check(make_run(), config={"checks": {"raech": {"min": 3}}})
