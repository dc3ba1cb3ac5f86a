"""Steps between recordings are looked at as often as a third of the budget pays for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

import rnndiag
from rnndiag.recorder.schedule import examined_steps
from rnndiag.recorder.schedule.examined_steps import (
    FAR,
    FRUGAL,
    NEAR,
    PLENTY,
    SHARE,
    TRIAL_FROM,
    TRIAL_STEPS,
    ExaminedSteps,
)


@dataclass
class Training:
    """Steps of `step` seconds; a look takes `own` of the recorder's seconds and `hidden` ones besides."""

    step: float
    own: float
    hidden: float = 0.0
    noise: float = 0.0
    total: int | None = None
    now: float = 0.0
    said: list[str] = field(default_factory=list)

    def run(self, steps: int, budget: float = 0.03) -> tuple[ExaminedSteps, list[int]]:
        """The selection after these steps, and the numbers of the steps that it examined."""
        examined = ExaminedSteps(budget, self.said.append, self.total, lambda: self.now)
        draw = torch.Generator().manual_seed(0)
        found = []
        for number in range(steps):
            looked = examined.at(number)
            assert examined.until_next(number) >= 1
            self.now += self.step * (1 + self.noise * float(torch.rand(1, generator=draw)))
            if looked:
                self.now += self.own + self.hidden
                found.append(number)
            examined.plain_step(looked, self.own if looked else 0.0)
        return examined, found


def test_every_step_is_looked_at_where_that_is_paid_for() -> None:
    training = Training(step=0.02, own=5e-5)
    _, found = training.run(1000)
    trial = set(range(TRIAL_FROM, TRIAL_FROM + TRIAL_STEPS))
    assert set(range(1000)) - set(found) <= trial
    assert not training.said


def test_the_trial_looks_at_every_fourth_and_twelfth_step_in_turns() -> None:
    _, found = Training(step=0.02, own=5e-5).run(TRIAL_FROM + 2 * (NEAR + FAR) + 1)
    in_trial = [number - TRIAL_FROM for number in found if number >= TRIAL_FROM]
    assert in_trial == [0, NEAR, NEAR + FAR, 2 * NEAR + FAR, 2 * (NEAR + FAR)]


def test_until_next_leads_to_the_next_look() -> None:
    examined = ExaminedSteps(0.03, print, clock=iter(range(10**6)).__next__)
    found = [number for number in range(TRIAL_FROM + TRIAL_STEPS) if examined.at(number)]
    again = ExaminedSteps(0.03, print, clock=iter(range(10**6)).__next__)
    for number in range(found[-1]):
        again.at(number)
        assert number + again.until_next(number) == next(look for look in found if look > number)


@pytest.mark.parametrize(("own", "hidden"), [(1e-4, 0.0), (5e-5, 1e-4), (1e-5, 7e-4)])
def test_short_steps_are_looked_at_every_so_often(own: float, hidden: float) -> None:
    training = Training(step=1e-3, own=own, hidden=hidden)
    examined, found = training.run(9000)
    assert examined.every == pytest.approx((own + hidden) / (SHARE * 0.03 * 1e-3), abs=1)
    late = [number for number in found if number >= 1000]
    assert len(late) * (own + hidden) <= 1.02 * SHARE * 0.03 * 8000 * 1e-3
    (sentence,) = training.said
    assert f"every {examined.every}" in sentence


def test_a_long_fit_is_looked_at_more_seldom() -> None:
    short, _ = Training(step=1e-3, own=1e-4, total=1000).run(1000)
    long, _ = Training(step=1e-3, own=1e-4, total=10**6).run(1000)
    between, _ = Training(step=1e-3, own=1e-4, total=20 * PLENTY).run(1000)
    assert (short.every, between.every) == (10, 20)
    assert long.every == pytest.approx(1e-4 / (FRUGAL * 0.03 * 1e-3), abs=1)


def test_noise_between_steps_costs_no_looks() -> None:
    examined, _ = Training(step=0.01, own=2e-5, noise=0.2).run(TRIAL_FROM + TRIAL_STEPS + 1)
    assert examined.every == 1


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
    monkeypatch.setattr(examined_steps.ExaminedSteps, "at", lambda self, step: step % 5 == 0)
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
