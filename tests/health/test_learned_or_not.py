"""When a run counts as learned, learning, stuck or diverged, from numbers made for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from diagnosed_runs import (
    HALF,
    SHUT,
    diagnosed,
    falling_losses,
    layer,
    profile,
    relu,
    stuck_losses,
    write,
)

import rnndiag


def test_a_stuck_model_with_nothing_wrong_is_not_called_healthy(tmp_path: Path) -> None:
    found = diagnosed(tmp_path, layer())
    assert found.state == "stuck"
    assert [cause.name for cause in found.causes] == ["cannot_tell"]
    assert "ealthy" not in found.headline
    assert "needs=" in found.headline
    assert "as if it did not see its input" in found.headline


def test_a_learned_model_gets_no_cause_whatever_its_numbers(tmp_path: Path) -> None:
    bad = layer(
        gate_mean=SHUT,
        update_ratio=[0.5, 0.1],
        swing=0.05,
        gate_high=np.array([0.9, 0.0, 0.9]),
        credit_profile=profile(0.5),
    )
    found = diagnosed(tmp_path, bad, losses=falling_losses(1.386, 0.02))
    assert found.state == "learned"
    assert found.causes == ()
    assert found.healthy
    assert found.headline.startswith("Healthy, learned")


def test_a_learning_model_is_told_what_was_so_at_the_start_only_if_it_still_is(
    tmp_path: Path,
) -> None:
    falling = falling_losses(1.386, 0.6, settled=1.0)
    repaired = diagnosed(tmp_path / "a", layer(gate_mean=[SHUT, HALF], swing=0.3), losses=falling)
    assert (repaired.state, repaired.causes) == ("learning", ())
    still = diagnosed(tmp_path / "b", layer(gate_mean=SHUT, swing=0.3), losses=falling)
    assert (still.state, still.causes[0].name) == ("learning", "forget_gates_shut")
    assert still.headline.startswith("Learning: ")


def test_a_loss_that_rose_is_diverged_and_one_that_lost_what_it_had_too(tmp_path: Path) -> None:
    rose = diagnosed(tmp_path / "a", layer(), losses=falling_losses(1.386, 4.0))
    assert rose.state == "diverged"
    lost = np.concatenate([falling_losses(1.386, 0.1, 0.3, 200), stuck_losses(1.0, 200)])
    again = diagnosed(tmp_path / "b", layer(), losses=lost)
    assert again.state == "diverged"
    assert "its best was" in again.headline


def test_a_model_that_lost_what_it_had_at_spikes_of_its_gradient_is_told_to_clip(
    tmp_path: Path,
) -> None:
    lost = np.concatenate([falling_losses(1.386, 0.1, 0.3, 200), stuck_losses(1.0, 200)])
    note = {"kind": "jump", "norm": 40.0, "usual_norm": 0.5, "layer": "rnn.l0"}
    notes = {step: {"black_box": {**note, "step": step}} for step in (200, 300)}
    found = diagnosed(tmp_path, layer(), losses=lost, notes=notes)
    assert (found.state, found.causes[0].name) == ("diverged", "exploding")
    assert found.causes[0].remedy is not None
    assert (found.causes[0].remedy.knob, found.causes[0].remedy.value) == ("gradient_clip_val", 1.0)


def test_a_loss_at_rest_above_zero_is_told_so_and_no_alarm(tmp_path: Path) -> None:
    found = diagnosed(tmp_path, layer(swing=0.3), losses=falling_losses(3.0, 2.0))
    assert (found.state, found.at_rest, found.causes) == ("learned", True, ())
    assert found.headline.startswith("At rest")


def test_no_headline_is_healthy_where_the_loss_has_not_moved(tmp_path: Path) -> None:
    for swing in (0.01, 0.3, 2.0):
        found = diagnosed(tmp_path / str(swing), layer(swing=swing))
        assert found.state == "stuck"
        assert not found.healthy


def test_chance_tells_a_model_that_ignores_its_input(tmp_path: Path) -> None:
    run = write(tmp_path / "run", {"rnn.l0": layer(swing=900.0)}, losses=falling_losses(1e5, 208.0))
    assert rnndiag.diagnose(run).state == "learned"
    assert rnndiag.diagnose(run, chance=200.0).state == "stuck"


def test_a_net_that_explodes_and_falls_to_a_constant_has_not_learned(tmp_path: Path) -> None:
    """A squared loss of 16 that is 0.34 after a few steps: that of always answering the mean."""
    states = relu(credit_profile=profile(1.2), swing=0.5)
    losses = np.concatenate([falling_losses(16.0, 0.36, steps=12), falling_losses(0.36, 0.34)])
    found = diagnosed(tmp_path, states, losses=losses, cell="elman_relu")
    assert (found.state, found.causes[0].name) == ("stuck", "exploding")
    learns = falling_losses(16.0, 0.01, 0.7)
    states["credit_profile"] = [profile(1.2), profile(1.0)]
    assert diagnosed(tmp_path / "2", states, losses=learns, cell="elman_relu").state == "learned"


def test_a_monitored_metric_stands_beside_the_loss(tmp_path: Path) -> None:
    model = {"monitored_metric": [0.25, 0.9]}
    losses = falling_losses(1.4, 0.01, 0.2)
    found = diagnosed(tmp_path, layer(swing=0.5), losses=losses, model=model)
    assert found.state == "learned"
    assert "(the monitored metric from 0.25 at step 0 to 0.9 at step 399)" in found.headline


def test_an_accuracy_that_rose_contradicts_a_loss_that_stands_still(tmp_path: Path) -> None:
    monitored = {"monitor": "val_acc", "monitor_mode": "max"}
    rose = {"monitored_metric": [0.25, 0.9]}
    found = diagnosed(tmp_path / "1", layer(), model=rose, trainer=monitored)
    assert (found.state, found.at_rest) == ("learned", True)
    assert "(val_acc from 0.25 at step 0 to 0.9 at step 399)" in found.headline
    stays = {"monitored_metric": [0.25, 0.3]}
    found = diagnosed(tmp_path / "2", layer(), model=stays, trainer=monitored)
    assert found.state == "stuck"
    monitored["monitor_mode"] = "min"
    found = diagnosed(
        tmp_path / "3", layer(), model={"monitored_metric": [9.0, 1.0]}, trainer=monitored
    )
    assert found.state == "stuck"


def test_a_net_that_explodes_to_the_end_has_not_learned(tmp_path: Path) -> None:
    """A loss that falls from 10^5 to 10 of itself, while every first-order number is large."""
    states = relu(credit_profile=profile(1.2), swing=50.0)
    found = diagnosed(tmp_path / "1", states, losses=falling_losses(1e5, 10.0), cell="elman_relu")
    assert (found.state, found.causes[0].name) == ("stuck", "exploding")
    falls = falling_losses(1e5, 10.0, 1.0)
    found = diagnosed(tmp_path / "2", states, losses=falls, cell="elman_relu")
    assert (found.state, found.causes[0].name) == ("learning", "exploding")
