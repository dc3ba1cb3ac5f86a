"""Accidents are recorded whatever the schedule says, and named: layer, time step, gate."""

from __future__ import annotations

from typing import Any

import fits
import pytest
import torch
from fits import HIDDEN, Net, assert_same, fit

import rnndiag

AT = 3
"""The step of the accident."""


class GateBreaks(Net):
    """From its second time step on, gate g of unit 2 in layer l1 is inf - inf."""

    def __init__(self) -> None:
        super().__init__(num_layers=2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == AT:
            row = 2 * HIDDEN + 2
            with torch.no_grad():
                self.rnn.bias_ih_l1[: 2 * HIDDEN] = 50.0  # i and f open
                self.rnn.bias_ih_l1[3 * HIDDEN :] = 50.0  # o open
                self.rnn.bias_ih_l1[row] = 3e38
                self.rnn.bias_hh_l1[row] = 3e38
                self.rnn.weight_hh_l1[row] = 0.0
                self.rnn.weight_hh_l1[row, 2] = -3e38
                self.rnn.weight_hh_l1[row, 1] = -3e38
                self.rnn.weight_hh_l1[row, 0] = -3e38
                self.rnn.bias_ih_l1[2 * HIDDEN : 2 * HIDDEN + 2] = 50.0
        return super().training_step(batch, batch_idx)


class InputBreaks(Net):
    """Sequence 1 has an infinite input at time step 4."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == AT:
            batch = [batch[0].clone(), batch[1]]
            batch[0][1, 4, 2] = torch.inf
        return super().training_step(batch, batch_idx)


class LossBreaks(Net):
    """The loss is finite, and its gradient is not at time step 4 of sequence 2."""

    def __init__(self) -> None:
        super().__init__("GRU")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        out = self.rnn(batch[0])[0]
        loss = self.head(out).square().mean()
        if self.global_step == AT:
            loss = loss + (out[2, 4] * 0.0).abs().sqrt().sum()
        return loss


class Explodes(Net):
    """A relu net whose state overflows going forward."""

    def __init__(self) -> None:
        super().__init__("RNN", nonlinearity="relu")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == AT:
            with torch.no_grad():
                self.rnn.weight_hh_l0.fill_(1e30)
                self.rnn.bias_hh_l0.fill_(1.0)
                self.rnn.weight_ih_l0.zero_()
                self.rnn.bias_ih_l0.zero_()
        return super().training_step(batch, batch_idx)


EXPECTED: dict[type[Net], dict[str, Any]] = {
    GateBreaks: {"layer": "rnn.l1", "what": "states", "time": 1, "gate": "g", "unit": 2},
    InputBreaks: {"layer": "rnn.l0", "what": "inputs", "time": 4, "sample": 1, "unit": 2},
    LossBreaks: {"layer": "rnn.l0", "what": "direct gradient", "time": 4, "sample": 2},
    Explodes: {"layer": "rnn.l0", "what": "states", "time": 2},
}


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_the_place_of_an_accident_is_named(kind: Any, diagnostics: Any) -> None:
    callback = diagnostics(every_n_steps=100)
    ours = fit(kind, [callback], steps=6, max_epochs=2)
    theirs = fit(kind, [], steps=6, max_epochs=2)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
    run = rnndiag.open_run(callback.run_dir)
    assert run.steps_of("train").tolist() == [0, AT]
    told = run.at(AT).notes["black_box"]
    assert told["step"] == AT
    assert {key: told.get(key) for key in EXPECTED[kind]} == EXPECTED[kind], told["sentence"]
    assert f"time step {EXPECTED[kind]['time']}" in told["sentence"]
    assert EXPECTED[kind]["layer"] in told["sentence"]


def test_a_jump_is_recorded_and_its_largest_part_named(diagnostics: Any) -> None:
    class Jumps(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            out = self.rnn(batch[0])[0]
            loss = self.head(out).square().mean()
            return loss + 1e3 * out[:, 5].sum() if self.global_step == 20 else loss

    callback = diagnostics(every_n_steps=100, measures=["contributions"])
    assert_same(fit(Jumps, [callback], steps=22), fit(Jumps, [], steps=22))
    run = rnndiag.open_run(callback.run_dir)
    assert run.steps_of("train").tolist() == [0, 20]
    told = run.at(20).notes["black_box"]
    assert told["kind"] == "jump"
    assert told["norm"] > 20 * told["usual_norm"]
    assert told["time"] in (4, 5)
    history = run["history_gradient_norm", "model"]
    before = history.values[1][~(history.values[1] != history.values[1])]
    assert len(before) == 20  # the story before the accident: every step since the recording at 0
    assert before[-1] == pytest.approx(told["norm"])


def test_without_the_black_box_nothing_is_watched_between(diagnostics: Any) -> None:
    callback = diagnostics(every_n_steps=100, black_box=False)
    fit(InputBreaks, [callback], steps=6, max_epochs=2)
    assert rnndiag.open_run(callback.run_dir).steps_of("train").tolist() == [0]


def test_accidents_in_a_row_are_recorded_once(diagnostics: Any) -> None:
    callback = diagnostics(every_n_steps=1000, measures=["contributions"])
    fit(Explodes, [callback], steps=3 * fits.STEPS)
    assert rnndiag.open_run(callback.run_dir).steps_of("train").tolist() == [0, AT]


def test_a_jump_just_before_does_not_hide_a_batch_that_holds_nan(diagnostics: Any) -> None:
    class JumpsThenBreaks(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 24:
                batch[0][1, 4, 2] = torch.nan
            out = self.rnn(batch[0])[0]
            loss = self.head(out).square().mean()
            return loss + 1e3 * out[:, 5].sum() if self.global_step == 20 else loss

    callback = diagnostics(every_n_steps=100)
    fit(JumpsThenBreaks, [callback], steps=30)
    run = rnndiag.open_run(callback.run_dir)
    told = {step: run.at(step).notes["black_box"] for step in (20, 24)}
    assert [told[20]["kind"], told[24]["kind"]] == ["jump", "gradient"]
    assert told[24]["batch_finite"] is False
    assert run.steps_of("train").tolist() == [
        0,
        20,
        24,
    ]  # the NaN of every step after it is no news
    assert rnndiag.diagnose(run).causes[0].remedy.knob == "skip_nonfinite_batches"
