"""Between two looks whole batches are left alone; what is recorded and told does not change by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from fits import BATCH, QUIET, Net, loader

import rnndiag
from rnndiag.recorder.replay.seams import BATCHES_WITHOUT_STATE
from rnndiag.recorder.schedule.examined_steps import ExaminedSteps

STEPS, EVERY = 60, 12


@pytest.fixture(autouse=True)
def _looks_at_every_twelfth_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a long fit of short steps has them after its trial."""
    begin = ExaminedSteps.__init__

    def settled(self: ExaminedSteps, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        self.every, self._settled = EVERY, True

    monkeypatch.setattr(ExaminedSteps, "__init__", settled)


def fit(folder: Path, data: Any, **options: Any) -> tuple[rnndiag.Run, list[bool]]:
    """The run, and of every batch whether it was left alone."""
    callback = rnndiag.GradientDiagnostics(folder, screen=False, report=False, **options)
    alone: list[bool] = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            alone.append(callback._fit is not None and callback._fit.skips_batch)

    torch.manual_seed(0)
    trainer = L.Trainer(**QUIET, max_steps=STEPS, max_epochs=1, callbacks=[callback, Look()])
    trainer.fit(Net("GRU"), data)
    return rnndiag.open_run(folder), alone


def test_scheduled_steps_are_recorded_and_most_others_left_alone(tmp_path: Path) -> None:
    run, alone = fit(tmp_path / "run", loader(STEPS), every_n_steps=25)
    assert run.steps_of("train").tolist() == [0, 25, 50]
    assert sum(alone) > STEPS / 2
    assert not any(alone[step] for step in (0, 12, 24, 25, 36, 48, 50))
    (end,) = run.endings
    assert (end.final_step, end.cut_short) == (STEPS - 1, False)
    looked_at = np.unique(run["history_step", "model"].values)
    assert {12, 24, 36, 48} <= set(looked_at[np.isfinite(looked_at)].astype(int).tolist())


def test_the_end_is_known_where_the_last_batches_are_left_alone(tmp_path: Path) -> None:
    run, alone = fit(tmp_path / "run", loader(STEPS), every_n_steps=1000)
    assert alone[-3]
    assert run.endings[0].final_step == STEPS - 1


def test_a_loss_that_is_not_finite_wakes_the_recorder(tmp_path: Path) -> None:
    data = loader(STEPS, shuffle=False)
    data.dataset.tensors[0][31 * BATCH : 32 * BATCH] = torch.nan
    run, alone = fit(tmp_path / "run", data, every_n_steps=1000)
    assert alone[31]
    assert not alone[32]
    told = [one.notes["black_box"] for one in run.recordings if "black_box" in one.notes]
    assert told[0]["step"] == 32
    assert told[0]["batch_finite"] is False


def test_weights_are_those_of_a_fit_without_it(tmp_path: Path) -> None:
    nets = []
    for callbacks in (
        [],
        [rnndiag.GradientDiagnostics(tmp_path, every_n_steps=25, screen=False, report=False)],
    ):
        torch.manual_seed(0)
        nets.append(Net("GRU"))
        trainer = L.Trainer(**QUIET, max_steps=STEPS, max_epochs=1, callbacks=callbacks)
        trainer.fit(nets[-1], loader(STEPS))
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_schedule_of_ones_own_is_asked_once_a_step_and_followed(
    tmp_path: Path, accumulate: int
) -> None:
    asked: list[int] = []

    def wanted(step: int) -> bool:
        asked.append(step)
        return step in (0, 27, 41)

    callback = rnndiag.GradientDiagnostics(
        tmp_path / "run", schedule=wanted, screen=False, report=False, strict=True
    )
    torch.manual_seed(0)
    trainer = L.Trainer(
        **QUIET, max_steps=STEPS, callbacks=[callback], accumulate_grad_batches=accumulate
    )
    trainer.fit(Net("GRU"), loader(STEPS * accumulate))
    assert asked == list(range(STEPS))
    assert rnndiag.open_run(tmp_path / "run").steps_of("train").tolist() == [0, 27, 41]


def test_a_schedule_of_ones_own_leaves_batches_alone_once_no_state_is_carried(
    tmp_path: Path,
) -> None:
    run, alone = fit(tmp_path / "run", loader(STEPS), schedule=lambda step: step in (0, 45))
    assert run.steps_of("train").tolist() == [0, 45]
    assert not any(alone[:BATCHES_WITHOUT_STATE])
    assert alone[BATCHES_WITHOUT_STATE + 1 :].count(False) < 15


def test_a_schedule_that_raises_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wanted(step: int) -> bool:
        if step > 30:
            raise ValueError("no plan beyond step 30")
        return step == 0

    with pytest.warns(UserWarning, match="the schedule failed: ValueError: no plan") as seen:
        run, _ = fit(tmp_path / "run", loader(STEPS), schedule=wanted)
    assert len([one for one in seen if "the schedule" in str(one.message)]) == 1
    assert run.steps_of("train").tolist() == [0]


def test_no_hook_stays_on_a_layer_between_two_looks(tmp_path: Path) -> None:
    hooks: list[tuple[bool, int]] = []
    callback = rnndiag.GradientDiagnostics(
        tmp_path / "run", every_n_steps=1000, screen=False, report=False
    )

    class Count(L.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            own = [m for m in module.modules() if isinstance(m, torch.nn.RNNBase)]
            hooks.append(
                (callback._fit.skips_batch, sum(len(m._forward_hooks) for m in own))  # type: ignore[union-attr]
            )

    torch.manual_seed(0)
    trainer = L.Trainer(**QUIET, max_steps=STEPS, callbacks=[callback, Count()])
    trainer.fit(Net("GRU"), loader(STEPS))
    assert [n for n, (alone, count) in enumerate(hooks) if alone and count] == []
    assert hooks[2 * EVERY][1] == 1
