"""Runs that measured something of what a check asks for, but not all of it: none of them may pass (exit code 0)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closed_form_runs import PROVENANCE, measurements, of_model

import rnndiag
from rnndiag.cli import main
from rnndiag.errors import BadConfig, CannotJudge
from rnndiag.health import exit_code
from rnndiag.health.evaluate import ends_early
from rnndiag.health.finding import Finding
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter

MakeRun = Callable[..., rnndiag.Run]
Changes = Callable[[int], Mapping[str, Any]]


def reach(**bounds: Any) -> Mapping[str, Any]:
    return {"checks": {"reach": {"min": 10, **bounds}}}


def unjudged(found: list[Finding], check: str, layer: str | None = None) -> Finding:
    """The finding that says why the check was not judged; the whole is no pass."""
    assert exit_code(found) == 3
    named = [one for one in found if one.check == check and layer in (None, one.layer)]
    (one,) = [one for one in named if one.status == "not_judged"]
    return one


def write(
    folder: Path,
    layers: Callable[[int], Mapping[str, Mapping[str, Any]]],
    ranks: int = 1,
    count: int = 50,
    **facts: Any,
) -> Path:
    """A run whose recordings hold the layers, with changes, that `layers` gives for their index."""
    for rank in range(ranks):
        with RunWriter(folder, PROVENANCE, rank=rank, world_size=ranks, durable=False) as writer:
            for i in range(count):
                found = [
                    m for name, ch in layers(i).items() for m in measurements(name, 0.95, **ch)
                ]
                content = (*found, *of_model())
                writer.append(
                    Recording(20 * i, rank=rank, verdict="exact", measurements=content, **facts)
                )
    return folder


def without_profile(when: Callable[[int], bool]) -> Changes:
    return lambda i: {"credit_profile": None} if when(i) else {}


@pytest.mark.parametrize(
    ("steps", "early"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], False),
        ([0, 1, 2, 3, 4, 5, 6], True),
        ([0, 3, 6], False),  # every third recording: one more may come
        ([0, 3], False),
        ([0, 2], True),
        ([9], False),
        ([0], True),
    ],
)
def test_what_ends_early_is_told_from_what_is_measured_rarely(
    steps: list[int], early: bool
) -> None:
    assert ends_early(np.array(steps), np.arange(10)) is early


# a quantity, or a layer, that stops


@pytest.mark.parametrize("window", ["all", "last 20%", "last 30"])
def test_a_quantity_that_stops_before_its_window_ends_is_not_judged(
    make_run: MakeRun, window: str
) -> None:
    run = make_run(layer_changes=without_profile(lambda i: i >= 46))
    why = unjudged(rnndiag.check(run, config=reach(window=window)), "reach")
    assert "it was measured last at step 900" in why.message
    assert "ends at step 980" in why.message


def test_a_quantity_measured_in_every_third_recording_is_judged(make_run: MakeRun) -> None:
    run = make_run(layer_changes=without_profile(lambda i: i % 3 > 0))
    assert exit_code(rnndiag.check(run, config=reach(min_recordings=3))) == 0


def test_a_layer_that_is_recorded_no_more_is_named_without_any_configuration(
    tmp_path: Path,
) -> None:
    both = {"rnn.l0": {}, "rnn.l1": {}}
    run = write(tmp_path / "run", lambda i: both if i < 10 else {"rnn.l0": {}})
    found = rnndiag.check(run)
    assert "measured last at step 180" in unjudged(found, "nonfinite", "rnn.l1").message
    assert unjudged(found, "coverage", "rnn.l1")


def test_lags_that_stop_for_one_of_two_layers_are_not_passed(tmp_path: Path) -> None:
    def layers(i: int) -> Mapping[str, Mapping[str, Any]]:
        return {"rnn.l0": {}, "rnn.l1": {"credit_profile": None} if i >= 45 else {}}

    found = rnndiag.check(write(tmp_path / "run", layers), config=reach())
    assert unjudged(found, "reach", "rnn.l1")
    assert [one.status for one in found if one.check == "reach" and one.layer == "rnn.l0"] == [
        "pass"
    ]


def test_further_calls_of_one_recurrence_may_stop(tmp_path: Path) -> None:
    run = write(
        tmp_path / "run", lambda i: {"rnn.l0": {}, "rnn.l0#2": {}} if i < 10 else {"rnn.l0": {}}
    )
    assert exit_code(rnndiag.check(run, config=reach())) == 0


@pytest.mark.parametrize("check", ["spectral_radius", "spectral_drift"])
@pytest.mark.parametrize("count", [5, 50])
def test_weights_at_the_beginning_say_nothing_of_the_end(
    make_run: MakeRun, check: str, count: int
) -> None:
    run = make_run(count=count, layer_changes=lambda i: {"spectral_radius": None} if i else {})
    config = {"checks": {check: {"max": 2, "window": "all"}}}
    unjudged(rnndiag.check(run, config=config), check)


def test_weights_of_every_fifth_recording_are_judged(make_run: MakeRun) -> None:
    run = make_run(count=10, layer_changes=lambda i: {"spectral_radius": None} if i % 5 else {})
    checks = {name: {"max": 2} for name in ("spectral_radius", "spectral_drift")}
    assert exit_code(rnndiag.check(run, config={"checks": checks})) == 0


def test_weights_at_the_beginning_and_the_end_are_judged(make_run: MakeRun) -> None:
    run = make_run(layer_changes=lambda i: {"spectral_radius": None} if 0 < i < 49 else {})
    checks = {name: {"max": 2} for name in ("spectral_radius", "spectral_drift")}
    assert exit_code(rnndiag.check(run, config={"checks": checks})) == 0


# numbers of which only a part is known


def test_a_reach_beyond_the_measured_lags_passes_no_larger_minimum(make_run: MakeRun) -> None:
    level = np.zeros((20, 6))  # 20 of 60 lags, none smaller than the first
    run = make_run(layer_changes=lambda i: {"credit_profile": level})
    assert exit_code(rnndiag.check(run, config=reach(min=15))) == 0
    why = unjudged(rnndiag.check(run, config=reach(min=40)), "reach")
    assert "known to lie above 20 only, and the limit is 40" in why.message


def test_one_gate_that_is_not_a_number_leaves_no_balance_to_judge(make_run: MakeRun) -> None:
    gates = np.ones((4, 60))
    gates[3] = np.nan
    run = make_run(layer_changes=lambda i: {"gate_contribution_norm": gates})
    found = rnndiag.check(run, config={"checks": {"imbalance": {"max": 0.9}}})
    assert unjudged(found, "imbalance", "rnn.l0")


def test_an_infinite_residual_is_no_proof(make_run: MakeRun) -> None:
    run = make_run(layer_changes=lambda i: {"residual": np.array([1e-7, np.inf])})
    assert unjudged(rnndiag.check(run), "residual")


def test_a_norm_that_is_not_a_number_is_not_counted_as_unclipped(make_run: MakeRun) -> None:
    nothing = {"total_gradient_norm": np.array(np.nan), "clip_threshold": np.array(1.0)}
    run = make_run(model_changes=lambda i: nothing)
    checks = {"clip_share": {"max": 0.5}, "nonfinite": {"level": "off"}}
    unjudged(rnndiag.check(run, config={"checks": checks}), "clip_share")


def test_recordings_of_another_phase_are_not_judged_in_place_of_training(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", PROVENANCE, durable=False) as writer:
        for i in range(50):
            changes = {"credit_profile": None} if i % 2 else {}
            found = (*measurements("rnn.l0", 0.95, **changes), *of_model())
            phase = "train" if i % 2 else "val"
            writer.append(Recording(20 * i, phase=phase, verdict="exact", measurements=found))
    unjudged(rnndiag.check(tmp_path / "run", config=reach(window="all")), "reach")


def test_a_quantity_that_one_of_two_ranks_lacks_is_not_judged(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for rank in range(2):
        changes = {"credit_profile": None} if rank else {}
        with RunWriter(folder, PROVENANCE, rank=rank, world_size=2, durable=False) as writer:
            for step in range(20):
                found = (*measurements("rnn.l0", 0.95, **changes), *of_model())
                writer.append(Recording(step, rank=rank, verdict="exact", measurements=found))
    why = unjudged(rnndiag.check(folder, config=reach()), "reach")
    assert "by every rank" in why.message
    whole = write(tmp_path / "whole", lambda i: {"rnn.l0": {}}, ranks=2)
    assert exit_code(rnndiag.check(whole, config=reach())) == 0


# configurations that judge less than they seem to


@pytest.mark.parametrize("check", ["imbalance", "nonfinite", "reach"])
@pytest.mark.parametrize("layers", [["encoder.*"], ["rnn.l0", "encoder.*"]])
def test_a_pattern_that_matches_no_layer_is_named(
    tmp_path: Path, check: str, layers: list[str]
) -> None:
    run = write(tmp_path / "run", lambda i: {"rnn.l0": {}, "rnn.l1": {}})
    checks = {check: {"min": -1, "max": 1e6, "layers": layers}}
    why = unjudged(rnndiag.check(run, config={"checks": checks}), check, "")
    assert "no layer matches encoder.*" in why.message


def test_a_check_of_the_whole_model_takes_no_layers(make_run: MakeRun) -> None:
    config = {"checks": {"grad_spikes": {"max": 10, "layers": ["rnn.*"]}}}
    with pytest.raises(BadConfig, match="a number of the whole model"):
        rnndiag.check(make_run(), config=config)


@pytest.mark.parametrize("bounds", [{"change": "10%"}, {"level": "warn"}, {"window": "all"}])
def test_a_check_without_a_limit_needs_a_baseline(
    make_run: MakeRun, bounds: Mapping[str, Any]
) -> None:
    run, config = make_run(), {"checks": {"reach": bounds}}
    assert "neither min nor max" in unjudged(rnndiag.check(run, config=config), "reach").message
    assert exit_code(rnndiag.check(run, make_run("old"), config)) == 0


@pytest.mark.parametrize("table", ["tools.rnndiag", "tool.rnn-diag", "tool.rnndiags"])
def test_a_configuration_without_its_table_is_refused_where_it_is_named(
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    table: str,
) -> None:
    run = make_run()
    file = tmp_path / "pyproject.toml"
    file.write_text(f"[{table}.checks.reach]\nmin = 1000\n")
    assert main(["check", str(run.path), "--config", str(file)]) == 2
    assert "has no table [tool.rnndiag]" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)  # found, and not named: only what looks like the table is refused
    assert main(["check", str(run.path)]) == (0 if table.startswith("tools") else 2)


# baselines and endings


def test_a_run_that_was_killed_or_lost_recordings_is_no_baseline(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = RunWriter(tmp_path / "killed", PROVENANCE, durable=False)
    lossy = RunWriter(tmp_path / "lossy", PROVENANCE, durable=False)
    for writer in (killed, lossy):
        for step in range(20):
            found = (*measurements("rnn.l0", 0.95), *of_model())
            writer.append(Recording(step, verdict="exact", measurements=found))
    killed._let_go()
    lossy.drop(20, "the disk was full")
    lossy.close()
    new = make_run()
    for folder, why in ((killed.path, "not finished"), (lossy.path, "the disk was full")):
        with pytest.raises(CannotJudge, match=f"cannot be a baseline.*{why}"):
            rnndiag.check(new, folder)
        assert main(["baseline", str(folder), "-o", str(tmp_path / "b.json")]) == 3
    assert not (tmp_path / "b.json").exists()
    words = ["baseline", str(killed.path), "-o", str(tmp_path / "b.json")]
    assert main([*words, "--unfinished"]) == 0


def test_the_size_limit_drops_what_the_stretched_interval_would_have_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = RunWriter(tmp_path / "run", PROVENANCE, max_bytes=300_000, durable=False)
    for step in range(400):
        if writer.wants(step):
            found = (*measurements("rnn.l0", 0.95), *of_model())
            writer.append(Recording(step, verdict="exact", measurements=found))
    assert writer.budget.factor == 8
    stored = writer.last_step
    writer.close(final_step=399)
    run = rnndiag.open_run(tmp_path / "run")
    (end,) = run.endings
    assert stored is not None
    assert end.dropped == (399 - stored) // 8
    assert exit_code(rnndiag.check(run)) == 3
