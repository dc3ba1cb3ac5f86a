"""Steps between recordings are looked at as often as a third of the budget pays for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import rnndiag
from rnndiag.recorder.schedule import light_looks
from rnndiag.recorder.schedule.light_looks import SHARE, TRIAL_FROM, TRIAL_STEPS, LightLooks


def looked_at(looks: LightLooks, own: float, hidden: float, step: float, steps: int) -> list[int]:
    """A training whose steps take `step` seconds, `hidden` more where looked at, besides `own` of the recorder."""
    found = []
    for number in range(steps):
        looked = looks.at(number)
        looks.plain_step(looked, step + hidden * looked, own if looked else 0.0)
        if looked:
            found.append(number)
    return found


def test_every_step_is_looked_at_where_that_is_paid_for() -> None:
    told: list[str] = []
    found = looked_at(LightLooks(0.03, told.append), 5e-5, 0.0, 0.02, 1000)
    assert set(range(1000)) - set(found) == set(range(TRIAL_FROM + 1, TRIAL_FROM + TRIAL_STEPS, 2))
    assert not told


@pytest.mark.parametrize(("own", "hidden"), [(1e-4, 0.0), (5e-5, 1e-4), (0.0, 2e-4)])
def test_short_steps_are_looked_at_every_so_often(own: float, hidden: float) -> None:
    told: list[str] = []
    looks = LightLooks(0.03, told.append)
    found = looked_at(looks, own, hidden, 1e-3, 4000)
    assert looks.every == math.ceil((own + hidden) / (SHARE * 0.03 * 1e-3))
    late = [number for number in found if number >= 2000]
    assert len(late) * (own + hidden) <= SHARE * 0.03 * 2000 * 1e-3
    (sentence,) = told
    assert f"every {looks.every}th step" in sentence or f"every {looks.every}" in sentence


def test_noise_between_steps_costs_no_looks() -> None:
    told: list[str] = []
    looks = LightLooks(0.03, told.append)
    draw = torch.Generator().manual_seed(0)
    for number in range(TRIAL_FROM + TRIAL_STEPS + 1):
        seconds = 0.01 * (1 + 0.2 * float(torch.rand(1, generator=draw)))
        looks.plain_step(looks.at(number), seconds, 2e-5)
    assert looks.every == 1


def train(recorder: Any, model: nn.Module, optimizer: Any, spoil: int) -> None:
    for number in range(12):
        x = torch.full((2, 5, 3), math.inf if number == spoil else 1.0)
        with recorder.step() as step:
            step.backward(model(x)[0].square().mean())
        optimizer.step()
        optimizer.zero_grad()


def test_a_loss_that_is_not_finite_is_followed_up_between_looks(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fifth step is looked at; the loss of step 6 is infinite, so step 7 is looked at and recorded."""
    monkeypatch.setattr(light_looks.LightLooks, "at", lambda self, step: step % 5 == 0)
    torch.manual_seed(0)
    model = nn.RNN(3, 4, nonlinearity="relu", batch_first=True)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with rnndiag.Recorder(
        model,
        tmp_path / "run",
        optimizer,
        schedule=lambda step: step == 0,
        report=False,
        screen=False,
        strict=True,
    ) as recorder:
        train(recorder, model, optimizer, spoil=6)
    run = rnndiag.open_run(tmp_path / "run")
    assert run.steps_of("train").tolist() == [0, 7]
    assert run.at(7).notes["black_box"]["kind"] == "gradient"
    assert run.at(7)["history_step"].values.tolist() == [5, 7]
