"""Every cause from numbers made for it: when it is named, in which order, and what its remedy sets."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from diagnosed_runs import (
    HALF,
    RECORDED,
    SHUT,
    T,
    diagnosed,
    elman,
    falling_losses,
    layer,
    profile,
    relu,
    stuck_losses,
    write,
)

import rnndiag
from rnndiag.health.diagnosis import CAUSES, KNOBS, STATES
from rnndiag.health.diagnosis.diagnose_run import diagnosis_of
from rnndiag.health.diagnosis.features import features_of
from rnndiag.health.diagnosis.recorded import Recorded
from rnndiag.health.diagnosis.registry import RULES

SGD = {"optimizer": "SGD", "rate": 0.05}


def preflight(check: str) -> dict[int, Any]:
    finding = {
        "check": f"preflight: {check}",
        "status": "fail",
        "message": "so it is",
        "layer": "rnn.l0",
    }
    return {0: {"preflight": [finding]}}


def broken_at(step: int, finite: bool) -> dict[str, Any]:
    losses = stuck_losses()
    losses[step:] = np.nan
    note = {"kind": "gradient", "step": step, "sentence": "so it is", "batch_finite": finite}
    return {"losses": losses, "notes": {step: {"black_box": note}}}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str, str, Any]] = {
    "swapped": (
        layer(),
        {"notes": preflight("time and batch swapped")},
        "time_and_batch_swapped",
        "batch_first",
        True,
    ),
    "not carried": (
        layer(),
        {"notes": preflight("state not carried")},
        "state_not_carried",
        "carry_state",
        True,
    ),
    "padding": (
        layer(),
        {"notes": preflight("padding counts")},
        "reads_padding",
        "read_last_valid_step",
        True,
    ),
    "bad data": (layer(), broken_at(100, False), "nonfinite", "skip_nonfinite_batches", True),
    "no reason": (layer(), broken_at(100, True), "nonfinite", "gradient_clip_val", 1.0),
    "wild, then nan": (
        layer(update_ratio=[0.5, 0.1]),
        broken_at(100, True),
        "learning_rate_too_high",
        "learning_rate",
        1e-4,
    ),
    "grows, then nan": (
        elman(credit_profile=profile(1.3)),
        {**broken_at(100, True), "cell": "elman_tanh"},
        "exploding",
        "recurrent_weight",
        "orthogonal",
    ),
    "low rate": (
        layer(update_ratio=1e-5),
        {"model": {"other_update_ratio": 1e-5}},
        "learning_rate_too_low",
        "learning_rate",
        5.0,
    ),
    "low rate under SGD": (
        layer(update_ratio=1e-5),
        {**SGD, "model": {"other_update_ratio": 1e-5}},
        "learning_rate_too_low",
        "optimizer",
        "adam",
    ),
    "clipped": (
        layer(update_ratio=1e-4),
        {**SGD, "clip": 0.01, "model": {"stepped_gradient_norm": 0.01}},
        "clipped_away",
        "gradient_clip_val",
        1.0,
    ),
    "high rate": (
        layer(update_ratio=[0.5, 0.1]),
        {},
        "learning_rate_too_high",
        "learning_rate",
        1e-4,
    ),
    "far targets": (
        layer(noise=3.0, full_gradient_norm=4.0, weight_norm=5.0),
        {"losses": 1e4 * stuck_losses(), "model": {"loss": 1e4}},
        "targets_out_of_scale",
        "standardise_targets",
        True,
    ),
    "off-centre inputs": (
        layer(gate_high=np.array([0.9, 0.0, 0.9]), input_spread=20.0, input_mean=300.0),
        {},
        "saturated",
        "standardise_inputs",
        True,
    ),
    "saturated gates": (
        layer(gate_high=np.array([0.9, 0.0, 0.9]), input_spread=20.0),
        {},
        "saturated",
        "input_scale",
        0.05,
    ),
    "saturated units": (
        elman(saturated_units=0.6, activation_derivative=np.full((T, 4), 0.1)),
        {"cell": "elman_tanh"},
        "saturated",
        "recurrent_weight",
        "orthogonal",
    ),
    "dead": (relu(dead_units=0.9), {"cell": "elman_relu"}, "dead_units", "bias", 0.0),
    "died": (
        relu(dead_units=[0.1, 0.9], update_ratio=1e-3),
        {"cell": "elman_relu"},
        "dead_units",
        "bias",
        0.0,
    ),
    "exploding": (
        relu(credit_profile=profile(1.3)),
        {"cell": "elman_relu"},
        "exploding",
        "recurrent_weight",
        "identity",
    ),
    "shut": (
        layer(gate_mean=SHUT),
        {},
        "forget_gates_shut",
        "forget_bias",
        round(math.log(T - 1), 1),
    ),
    "forgets": (
        layer(gate_mean=HALF, credit_profile=profile(0.5)),
        {},
        "forget_gates_shut",
        "forget_bias",
        round(math.log(T - 1), 1),
    ),
    "too short": (layer(), {"config": {"needs": 40}}, "window_too_short", "window", 41),
    "cut before the need": (
        layer(),
        {"config": {"needs": 20}, "model": {"window_in_use": 14.0}},
        "window_too_short",
        "window",
        21,
    ),
    "contracts": (
        elman(credit_profile=profile(0.3)),
        {"cell": "elman_tanh"},
        "contracting_recurrence",
        "recurrent_weight",
        "orthogonal",
    ),
    "contracts later": (
        elman(credit_profile=[profile(0.99), profile(0.5)]),
        {"cell": "elman_tanh"},
        "contracting_recurrence",
        "recurrent_weight",
        "orthogonal",
    ),
    "decayed": (
        layer(weight_growth=[1.0, 0.6]),
        {"weight_decay": 0.1},
        "weights_decayed",
        "weight_decay",
        0.0,
    ),
    "perhaps high": (
        layer(update_ratio=[0.15, 0.01]),
        {},
        "learning_rate_too_high",
        "learning_rate",
        3.3e-4,
    ),
    "perhaps low": (
        layer(update_ratio=5e-4),
        {"model": {"other_update_ratio": 5e-4}},
        "learning_rate_too_low",
        "learning_rate",
        0.1,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_cause_is_named_first_with_a_remedy_that_a_program_can_apply(
    case: str, tmp_path: Path
) -> None:
    own, options, cause, knob, value = CASES[case]
    found = rnndiag.diagnose(write(tmp_path / "run", {"rnn.l0": own}, **options))
    first = found.causes[0]
    assert first.name == cause
    assert first.remedy is not None
    assert (first.remedy.knob, first.remedy.value) == (knob, pytest.approx(value))
    assert knob in KNOBS
    assert first.sentence in found.headline
    assert all(one.step in RECORDED or case in ("bad data", "no reason") for one in first.evidence)


def test_credit_that_is_exactly_zero_is_told_without_a_rate_per_step(tmp_path: Path) -> None:
    gone = profile(1.0)
    gone[1:] = -np.inf
    own = relu(credit_profile=[profile(0.99), gone])
    found = rnndiag.diagnose(write(tmp_path / "run", {"rnn.l0": own}, cell="elman_relu"))
    assert found.causes[0].name == "contracting_recurrence"
    assert "nothing of the credit in rnn.l0 is left" in found.causes[0].sentence
    assert "nan" not in found.headline


def test_all_names_are_those_of_the_contract(tmp_path: Path) -> None:
    assert {rule.cause for rule in RULES} <= set(CAUSES)
    assert {CASES[case][2] for case in CASES} >= {rule.cause for rule in RULES} - {
        "frozen_or_unused",
        "not_trusted",
        "needs_more_memory",
        "loss_asks_for_no_more",
    }
    found = rnndiag.diagnose(write(tmp_path / "run", {"rnn.l0": layer()}))
    assert found.state in STATES


def test_clipping_is_no_fault_under_an_optimizer_that_does_not_care(tmp_path: Path) -> None:
    clipped = {"clip": 0.01, "model": {"stepped_gradient_norm": 0.01}}
    own = layer(update_ratio=1e-3)
    adam = diagnosed(tmp_path / "a", own, **clipped)
    assert "clipped_away" not in [cause.name for cause in adam.causes]
    sgd = diagnosed(tmp_path / "b", own, **SGD, **clipped)
    assert sgd.causes[0].name == "clipped_away"


def test_two_faults_come_in_the_order_in_which_they_act(tmp_path: Path) -> None:
    own = layer(update_ratio=[0.5, 0.1], gate_mean=SHUT, weight_growth=[1.0, 0.5])
    found = diagnosed(tmp_path, own, weight_decay=0.1)
    names = [cause.name for cause in found.causes]
    assert names == ["learning_rate_too_high", "forget_gates_shut", "weights_decayed"]
    assert found.causes[1].remedy is not None
    assert found.causes[2].remedy is None  # it may go with the first


def test_needs_makes_a_conditional_cause_certain(tmp_path: Path) -> None:
    run = write(tmp_path / "run", {"rnn.l0": layer(gate_mean=HALF, credit_profile=profile(0.5))})
    guess = rnndiag.diagnose(run).causes[0]
    assert guess.confidence == "medium"
    assert "If the task needs more than 2 steps" in guess.sentence
    sure = rnndiag.diagnose(run, needs=20).causes[0]
    assert sure.confidence == "high"
    assert "If" not in sure.sentence
    assert "20 steps back" in sure.sentence
    assert sure.remedy is not None
    assert sure.remedy.value == pytest.approx(round(math.log(19), 1))
    near = rnndiag.diagnose(run, needs=2)  # 10^-0.6 of the credit is left there
    assert near.causes[0].name == "cannot_tell"


def test_needs_may_be_given_in_the_time_unit_of_the_run(tmp_path: Path) -> None:
    config = {"time_unit": ["h", 0.5], "stride": 2, "needs": "40 h"}
    found = diagnosed(tmp_path, layer(), config=config)
    assert found.causes[0].name == "window_too_short"
    assert found.causes[0].remedy is not None
    assert found.causes[0].remedy.value == 41


def test_a_cut_window_names_the_chunk_and_what_lies_behind_it(tmp_path: Path) -> None:
    chunk = layer(valid_samples=np.full(5, 8.0), credit_profile=profile(0.97, 5), seam_share=0.6)
    carried = write(tmp_path / "a", {"rnn.l0": chunk})
    first = rnndiag.diagnose(carried).causes[0]
    assert first.name == "window_too_short"
    assert first.remedy is not None
    assert first.remedy.value == 25
    assert "cut every 5 steps" in first.sentence
    assert "60 %" in first.sentence
    calls = {f"rnn.l0#{k}" if k else "rnn.l0": chunk for k in range(6)}
    within = rnndiag.diagnose(write(tmp_path / "b", calls)).causes[0]
    assert within.remedy is not None
    assert within.remedy.value == 30


def test_recordings_that_fail_their_proof_come_before_what_rests_on_them(tmp_path: Path) -> None:
    found = diagnosed(tmp_path / "a", layer(gate_mean=SHUT), verdict="inexact")
    assert found.state == "not_trusted"
    assert found.causes[0].name == "not_trusted"
    # a proof over numbers that are not finite fails as well, and says nothing of the recorder
    counts = np.ones(T)
    spoilt = diagnosed(tmp_path / "b", layer(nonfinite_states=counts), verdict="inexact")
    assert spoilt.state == "stuck"


def test_a_bidirectional_layer_is_judged_by_the_direction_that_reaches(tmp_path: Path) -> None:
    short = layer(gate_mean=HALF, credit_profile=profile(0.5))
    run = write(tmp_path / "run", {"rnn.l0": short, "rnn.l0.reverse": layer(gate_mean=HALF)})
    assert rnndiag.diagnose(run).causes[0].name == "cannot_tell"
    both = write(tmp_path / "both", {"rnn.l0": short, "rnn.l0.reverse": short})
    assert rnndiag.diagnose(both).causes[0].name == "forget_gates_shut"


def test_a_stack_is_judged_by_its_own_credit_and_the_swing_of_its_top(tmp_path: Path) -> None:
    short = layer(gate_mean=HALF, credit_profile=profile(0.5), swing=5.0)
    stacked = {0: {"stacks": {"rnn.l0..l1": ["rnn.l0", "rnn.l1"]}}}
    whole = {"credit_profile": profile(0.97)}
    top = layer(swing=0.01)
    found = rnndiag.diagnose(
        write(
            tmp_path / "run", {"rnn.l0": short, "rnn.l1": top, "rnn.l0..l1": whole}, notes=stacked
        )
    )
    assert found.state == "stuck"
    assert found.causes[0].name == "cannot_tell"


def test_a_warm_up_is_judged_by_its_largest_step(tmp_path: Path) -> None:
    found = diagnosed(tmp_path, layer(update_ratio=[1e-4, 0.5]), losses=falling_losses(1.386, 3.0))
    assert (found.state, found.causes[0].name) == ("diverged", "learning_rate_too_high")
    assert found.causes[0].evidence[0].step == 100


@pytest.mark.parametrize(
    ("lead", "cause", "value"),
    [("needed_beyond", "needs_more_memory", 32), ("nothing_found", "loss_asks_for_no_more", None)],
)
def test_a_measured_need_of_memory_is_a_cause_of_a_model_that_does_not_learn(
    tmp_path: Path, lead: str, cause: str, value: int | None
) -> None:
    groups = (
        SimpleNamespace(high=31, significant=True),
        SimpleNamespace(high=63, significant=False),
    )
    need: Any = SimpleNamespace(
        lead=lead, groups=groups, beyond=20, sentence="So it is.", layer="rnn.l0", loss=1.0
    )
    features = features_of(Recorded(write(tmp_path / "run", {"rnn.l0": layer()})))
    first = diagnosis_of(replace(features, needs_measured=(need,))).causes[0]
    assert (first.name, first.sentence, first.layer) == (cause, "So it is.", "rnn.l0")
    assert (first.remedy and first.remedy.value) == value


def test_a_recording_alone_tells_faults_of_structure_only(tmp_path: Path) -> None:
    run = write(tmp_path / "run", {"rnn.l0": layer()}, notes=preflight("time and batch swapped"))
    found = rnndiag.diagnose(run.first)
    assert (found.state, found.causes[0].name) == ("broken", "time_and_batch_swapped")
    plain = rnndiag.diagnose(run.last)
    assert plain.state == "cannot_tell"


def test_few_steps_are_too_early_to_say_anything(tmp_path: Path) -> None:
    found = diagnosed(tmp_path, layer(), losses=stuck_losses(steps=12))
    assert found.state == "cannot_tell"
    assert "too few" in found.headline


def test_a_run_of_an_earlier_version_has_no_facts_and_no_false_cause(tmp_path: Path) -> None:
    own = {
        k: v for k, v in layer().items() if k in ("credit_profile", "valid_samples", "gate_mean")
    }
    found = diagnosed(tmp_path, own, recurrent={"x": {}})
    assert [cause.name for cause in found.causes] == ["cannot_tell"]


def test_diagnosis_is_plain_data(tmp_path: Path) -> None:
    plain = diagnosed(tmp_path, layer(gate_mean=SHUT)).as_json()
    assert plain["causes"][0]["remedy"]["knob"] == "forget_bias"
    assert plain["causes"][0]["evidence"][0]["step"] == 0


def test_a_layer_that_sees_one_step_only_is_told_that_it_has_no_memory(tmp_path: Path) -> None:
    one_step = layer(valid_samples=np.full(1, 8.0), credit_profile=profile(1.0, 1))
    (cause,) = diagnosed(tmp_path / "1", one_step).causes
    assert (cause.name, cause.confidence) == ("state_not_carried", "medium")
    carried = {**one_step, "seam_share": 0.1}  # of chunks of one step
    assert diagnosed(tmp_path / "2", carried).causes[0].name == "cannot_tell"
