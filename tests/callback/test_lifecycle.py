"""Fits that end early, come twice, go on from a checkpoint or have nothing to record, and copies of the callback."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import fits
import lightning.pytorch as L
import pytest
import torch
from fits import Net, assert_same, fit
from lightning.pytorch.callbacks import Callback
from torch import nn

import rnndiag
from rnndiag.recorder.faults import RnndiagWarning


class Failing(Net):
    """Raises in the middle of its third step."""

    error: type[BaseException] = RuntimeError

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.global_step == 2:
            raise self.error("the user's own")
        return loss


class Interrupted(Failing):
    error = KeyboardInterrupt


def hooks_of(module: nn.Module) -> int:
    found = 0
    for part in module.modules():
        found += len(part._forward_hooks) + len(part._forward_pre_hooks)
    return found + sum(len(p._backward_hooks or ()) for p in module.parameters())


def train_steps(run: Any) -> list[int]:
    return run.steps_of("train").tolist()


@pytest.mark.parametrize("kind", [Failing, Interrupted])
def test_an_exception_stays_as_it_is(kind: Any, diagnostics: Any) -> None:
    callback, made = diagnostics(), []

    def make() -> Any:
        made.append(kind())
        return made[0]

    expected = SystemExit if kind is Interrupted else RuntimeError
    with pytest.raises(expected) as caught:
        fit(make, [callback])
    if kind is Failing:
        assert str(caught.value) == "the user's own"
    assert hooks_of(made[0]) == 0
    run = rnndiag.open_run(callback.run_dir)
    assert train_steps(run) == [0, 1]
    assert run.status.word != "running"
    assert not run.problems


def test_no_recurrent_layer_is_one_sentence(diagnostics: Any, capsys: Any) -> None:
    class Plain(Net):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = None
            self.head = nn.Linear(fits.INPUTS, 1)

        def forward(self, x: Any) -> Any:
            return self.head(x)

    callback = diagnostics()
    with pytest.warns(RnndiagWarning, match="Plain has no recurrent layer") as caught:
        fit(Plain, [callback])
    assert sum(issubclass(warning.category, RnndiagWarning) for warning in caught) == 1
    (recording,) = rnndiag.open_run(callback.run_dir)
    assert "steps=[...]" in recording.notes["nothing_recorded"]
    assert recording.layers == ()
    printed = capsys.readouterr().out
    assert "No recurrence of Plain was recorded" in printed


def test_a_loss_that_no_step_returns_is_not_one_that_is_not_finite(diagnostics: Any) -> None:
    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    callback = diagnostics()
    fit(Manual, [callback])
    run = rnndiag.open_run(callback.run_dir)
    assert all(r.get("loss") is None and r.get("history_loss") is None for r in run.recordings)
    findings = rnndiag.check(run, config={"checks": {"min_recordings": 1}})
    assert {one.status for one in findings if one.check == "nonfinite"} == {"pass"}


def test_a_layer_made_late_or_swapped_is_seen(diagnostics: Any) -> None:
    class Late(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def on_train_epoch_start(self) -> None:
            self.rnn = nn.GRU(fits.INPUTS, fits.HIDDEN, batch_first=True)
            self.named = nn.ModuleDict({f"epoch{self.current_epoch}": self.rnn})

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = torch.optim.SGD(self.rnn.parameters(), 0.1)
            self.manual_backward((self(batch[0]) - batch[1]).square().mean())
            optimizer.step()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.head.parameters(), 0.1)

    callback = diagnostics()
    fit(Late, [callback], steps=-1, max_epochs=2)
    run = rnndiag.open_run(callback.run_dir)
    assert {r.verdict for r in run.recordings if r.phase == "train"} == {"exact"}
    assert train_steps(run) == list(range(2 * fits.STEPS))


def test_a_second_fit_takes_a_second_directory(diagnostics: Any, tmp_path: Path) -> None:
    callback = diagnostics("exp")
    fit(Net, [callback])
    assert callback.run_dir == tmp_path / "exp"
    with pytest.warns(RnndiagWarning, match="exp holds a run already; this one is written to"):
        fit(Net, [callback], steps=2)
    assert callback.run_dir == tmp_path / "exp-2"
    assert train_steps(rnndiag.open_run(tmp_path / "exp")) == [0, 1, 2, 3]
    assert train_steps(rnndiag.open_run(tmp_path / "exp-2")) == [0, 1]


def test_one_trainer_that_fits_on_goes_on_in_its_run(diagnostics: Any) -> None:
    callback = diagnostics()
    module = Net()
    trainer = L.Trainer(**fits.QUIET, max_epochs=1, callbacks=[callback])
    trainer.fit(module, fits.loader())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, fits.loader())
    run = rnndiag.open_run(callback.run_dir)
    assert train_steps(run) == list(range(2 * fits.STEPS))
    assert len(run.starts) == 2


# the fit without the callback resumes from the checkpoint that has it
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_resuming_goes_on_and_replaces_what_is_recorded_again(
    diagnostics: Any, tmp_path: Path
) -> None:
    class Save(Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    first = str(tmp_path / "0.ckpt")
    callback = diagnostics("exp")
    fit(Net, [callback, Save()], steps=6)
    saved = torch.load(first, weights_only=True)["callbacks"]
    assert saved[callback.state_key]["run_dir"] == str(tmp_path / "exp")
    again = diagnostics("exp")
    again._ordinal = callback._ordinal  # what a new process would count
    ours = fit(Net, [again], steps=8, ckpt_path=first)
    theirs = fit(Net, [], steps=8, ckpt_path=first)
    assert_same(ours, theirs)
    assert again.run_dir == tmp_path / "exp"
    run = rnndiag.open_run(tmp_path / "exp")
    assert train_steps(run) == list(range(8))
    assert run.starts[1]["resumed_from_step"] == fits.STEPS
    assert run.superseded >= 2


def test_copies_and_pickles_write_the_same_run(diagnostics: Any) -> None:
    callback = diagnostics(measures=["contributions"])
    training = pickle.loads(pickle.dumps(copy.deepcopy(callback)))
    fit(Net, [training])
    assert training.run_dir == callback.run_dir
    assert len(train_steps(rnndiag.open_run(callback.run_dir))) == fits.STEPS
    after = pickle.loads(pickle.dumps(training))
    assert set(after.__dict__) <= {name for name in vars(callback) if name.startswith("_")}
    assert after._fit is None


@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")  # torch 2.4's own
def test_a_copy_made_in_the_middle_of_a_step_holds_nothing(diagnostics: Any) -> None:
    sizes: list[int] = []

    class Copying(Callback):
        def on_after_backward(self, trainer: Any, module: Any) -> None:
            sizes.append(len(pickle.dumps(callback)))
            copied = copy.deepcopy(module.rnn)
            assert hooks_of(pickle.loads(pickle.dumps(copied))) == hooks_of(copied)
            trainer.callbacks[0].state_dict()

    callback = diagnostics(measures=["contributions"])
    fit(Net, [callback, Copying()])
    assert max(sizes) < 4000


def test_two_instances_record_side_by_side(diagnostics: Any, tmp_path: Path) -> None:
    one, two = diagnostics("one"), diagnostics("two")
    same = [diagnostics("one", strict=False) for _ in range(2)]
    assert one.state_key != two.state_key
    assert same[0].state_key != same[1].state_key
    ours = fit(Net, [one, two])
    assert_same(ours, fit(Net))
    for name in ("one", "two"):
        run = rnndiag.open_run(tmp_path / name)
        assert {r.verdict for r in run.recordings if r.phase == "train"} == {"exact"}


def test_predict_alone_leaves_nothing(diagnostics: Any) -> None:
    callback = diagnostics()
    trainer = L.Trainer(**fits.QUIET, callbacks=[callback])
    trainer.predict(Net(), fits.loader(2, shuffle=False))
    assert not callback.run_dir.exists()


def test_callback_in_hyperparameters_and_checkpoints(diagnostics: Any, tmp_path: Path) -> None:
    class Keeping(Net):
        def __init__(self, callbacks: Any = None) -> None:
            super().__init__()
            self.save_hyperparameters()

    callback = diagnostics(measures=["contributions"])
    made: list[Any] = []

    def make() -> Any:
        made.append(Keeping([callback]))
        return made[0]

    fit(make, [callback])
    made[0].trainer.save_checkpoint(tmp_path / "end.ckpt")
    loaded = torch.load(tmp_path / "end.ckpt", weights_only=False)
    (kept,) = loaded["hyper_parameters"]["callbacks"]
    assert kept.run_dir == callback.run_dir


def test_a_learning_rate_search_before_the_fit(diagnostics: Any, tmp_path: Path) -> None:
    from lightning.pytorch.tuner import Tuner

    class Tuned(Net):
        lr = 1e-3

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), self.lr)

    callback = diagnostics("exp", measures=["contributions"])
    options = {**fits.QUIET, "default_root_dir": tmp_path, "max_steps": 4}
    trainer = L.Trainer(**options, callbacks=[callback])
    module = Tuned()
    Tuner(trainer).lr_find(module, fits.loader(), num_training=4)
    trainer.fit(module, fits.loader())
    run = rnndiag.open_run(callback.run_dir)
    assert train_steps(run) == [0, 1, 2, 3]
    assert not (tmp_path / "exp-2").exists()


def test_data_without_a_length(diagnostics: Any) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            draw = torch.Generator().manual_seed(0)
            while True:
                yield torch.randn(5, 3, generator=draw), torch.randn(5, 1, generator=draw)

    def data() -> Any:
        return torch.utils.data.DataLoader(Stream(), 4)

    callback = diagnostics(budget=0.03, measures=["contributions"])
    assert_same(fit(Net, [callback], data=data(), steps=6), fit(Net, [], data=data(), steps=6))
    assert 0 in train_steps(rnndiag.open_run(callback.run_dir))


def test_a_recorder_that_cannot_start_leaves_the_fit_alone(
    diagnostics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise OSError("planted")

    monkeypatch.setattr("rnndiag.recorder.fit.schedule_for", fail)
    with pytest.warns(RnndiagWarning, match="the start of the recorder failed: OSError: planted"):
        ours = fit(Net, [diagnostics(strict=False)])
    assert_same(ours, fit(Net))


def test_a_moment_that_fails_leaves_the_fit_alone(
    diagnostics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise AttributeError("planted")

    monkeypatch.setattr(
        "rnndiag.recorder.facts.lightning_loop.LightningLoop.batches", property(fail)
    )
    with pytest.warns(RnndiagWarning, match="batch_started"):
        ours = fit(Net, [diagnostics(strict=False)])
    assert_same(ours, fit(Net))
