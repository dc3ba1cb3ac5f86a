"""rnndiag.Recorder in loops written by hand: training stays as it is, and the run is the callback's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import fits
import lightning.pytorch as L
import numpy as np
import pytest
import torch
from callback.plain_loops import LOOPS, STEPS, Net, NoRecorder, batches, mse, train
from torch import Tensor, nn

import rnndiag
from rnndiag.errors import BadArgument
from rnndiag.recorder.faults import RnndiagWarning
from rnndiag.recorder.settings import Options


@pytest.mark.parametrize("case", LOOPS)
def test_loop_trains_to_the_same_bits_and_records_its_steps(case: str, tmp_path: Path) -> None:
    ours, stream = train(case, tmp_path / "run", measures=["contributions", "lags"])
    theirs, plain_stream = train(case, None)
    fits.assert_same(ours, theirs)
    assert torch.equal(stream, plain_stream)
    run = rnndiag.open_run(tmp_path / "run")
    assert run.steps_of("train").tolist() == LOOPS[case][2]
    assert run.status.word == "finished"
    recordings = [r for r in run.recordings if r.phase == "train"]
    assert {r.verdict for r in recordings} == {"exact"}, recordings[0].reasons
    assert not any("errors" in r.notes for r in run.recordings)


@pytest.mark.parametrize("case", ["plain", "accumulated", "chunks"])
def test_defaults_record_too(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(case, tmp_path / "run", every_n_steps=None, report=True, screen=True)
    run = rnndiag.open_run(tmp_path / "run")
    assert run.steps_of("train")[0] == 0
    assert (tmp_path / "run" / "report.html").exists()
    assert "rnndiag" in capsys.readouterr().out


class Lit(L.LightningModule):
    """The plain loop as a Lightning module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = model.rnn, model.head

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.head(self.rnn(batch[0])[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


def test_recorder_and_callback_store_the_same_numbers(tmp_path: Path, diagnostics: Any) -> None:
    mine, _ = train("plain", tmp_path / "mine")
    torch.manual_seed(7)
    model = Net()
    callback = diagnostics("theirs", screen=False)
    L.Trainer(**fits.QUIET, max_epochs=1, callbacks=[callback]).fit(
        Lit(model), torch.utils.data.DataLoader(batches(), batch_size=None, shuffle=False)
    )
    fits.assert_same(mine, model)
    one, other = rnndiag.open_run(tmp_path / "mine"), rnndiag.open_run(callback.run_dir)
    assert one.steps_of("train").tolist() == other.steps_of("train").tolist()
    timed = {"overhead_seconds", "overhead_share"}
    for ours, theirs in zip(one.recordings, other.recordings, strict=True):
        # only a program's own clipping is looked for in a loop, so that no threshold is known
        assert set(ours.quantities) >= set(theirs.quantities) - {"clip_threshold"}
        for measurement in theirs.measurements:
            if measurement.name not in timed:
                found = ours[measurement.name, measurement.layer].values
                np.testing.assert_array_equal(found, measurement.values, measurement.name)


def test_history_knows_loss_norm_and_own_clipping_of_every_step(tmp_path: Path) -> None:
    losses, norms = [], []
    torch.manual_seed(7)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    limit = 0.35
    with rnndiag.Recorder(
        model,
        tmp_path / "run",
        optimizer,
        schedule=lambda step: step == 5,
        strict=True,
        report=False,
        screen=False,
    ) as recorder:
        for batch in batches():
            with recorder.step() as step:
                loss = mse(model, batch)
                step.backward(loss)
                norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), limit)))
            losses.append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
    recording = rnndiag.open_run(tmp_path / "run").at(5)
    assert recording["history_step"].values.tolist() == list(range(STEPS))
    np.testing.assert_allclose(recording["history_loss"].values, losses, rtol=1e-6)
    np.testing.assert_allclose(recording["history_gradient_norm"].values, norms, rtol=1e-5)
    clipped_steps = [norm > limit for norm in norms]
    assert len(set(clipped_steps)) == 2
    assert recording["history_clipped"].values.astype(bool).tolist() == clipped_steps


@pytest.mark.parametrize("factor", [0.25, 1024.0])
def test_scale_of_the_loss_is_seen_and_divided_out(factor: float, tmp_path: Path) -> None:
    def gradient(scale: float, name: str) -> np.ndarray:
        torch.manual_seed(7)
        model = Net()
        with (
            rnndiag.Recorder(
                model, tmp_path / name, every_n_steps=1, strict=True, report=False, screen=False
            ) as recorder,
            recorder.step() as step,
        ):
            step.backward(mse(model, batches()[0]), backward=lambda loss: (loss * scale).backward())
        return rnndiag.open_run(tmp_path / name).at(0)["gradient_norm", "rnn.l0"].values

    np.testing.assert_allclose(gradient(factor, "scaled"), gradient(1.0, "plain"), rtol=1e-6)


def test_an_accident_between_recordings_is_recorded(tmp_path: Path) -> None:
    torch.manual_seed(7)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with rnndiag.Recorder(
        model,
        tmp_path / "run",
        optimizer,
        schedule=lambda step: step == 0,
        strict=True,
        report=False,
        screen=False,
    ) as recorder:
        for number, (x, y) in enumerate(batches(30)):
            with recorder.step() as step:
                step.backward(mse(model, (x, y * (1e4 if number == 25 else 1))))
            optimizer.step()
            optimizer.zero_grad()
    run = rnndiag.open_run(tmp_path / "run")
    assert run.steps_of("train").tolist() == [0, 25]
    told = run.at(25).notes["black_box"]
    assert (told["kind"], told["layer"]) == ("jump", "rnn.l0")


def test_exception_in_the_loop_stays_and_the_run_says_so(tmp_path: Path) -> None:
    def loop(recorder: Any) -> None:
        with recorder:
            with recorder.step() as step:
                step.backward(mse(model, batches()[0]))
            raise ZeroDivisionError

    model = Net()
    recorder = rnndiag.Recorder(model, tmp_path / "run", every_n_steps=1, report=False)
    with pytest.raises(ZeroDivisionError):
        loop(recorder)
    assert "closed" in repr(recorder)
    run = rnndiag.open_run(tmp_path / "run")
    assert run.status.reason == "ZeroDivisionError"


def test_nothing_stays_attached(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    recorder = rnndiag.Recorder(
        model, tmp_path / "run", optimizer, every_n_steps=1, report=False, screen=False
    )
    with recorder, recorder.step() as step:
        step.backward(mse(model, batches()[0]))
    assert not {**optimizer._optimizer_step_pre_hooks, **optimizer._optimizer_step_post_hooks}
    for module in model.modules():
        assert not {**module._forward_hooks, **module._forward_pre_hooks}
    for parameter in model.parameters():
        assert not parameter._backward_hooks
    assert "closed" in repr(recorder)
    copy.deepcopy(model)
    with pytest.raises(BadArgument, match="closed"):
        recorder.step()


def test_a_second_training_goes_to_a_directory_of_its_own(tmp_path: Path) -> None:
    train("plain", tmp_path / "run", measures=["contributions"])
    with pytest.warns(RnndiagWarning, match="holds a run already"):
        train("plain", tmp_path / "run", measures=["contributions"])
    assert rnndiag.open_run(tmp_path / "run-2").status.word == "finished"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": 3}, "was given a int"),
        ({"optimizer": object()}, "no torch optimizer"),
        ({"optimizer": []}, "empty list"),
        ({"total_steps": 0}, "total_steps is 0"),
        ({"loss_scale": 2.0}, "`loss_scale` is 2.0"),
        ({"every": 3}, "no option 'every'"),
        ({"budget": 0.0}, "budget is 0.0"),
        ({"measures": ["lag"]}, "no measure 'lag'"),
    ],
)
def test_arguments_that_make_no_sense(arguments: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadArgument) as caught:
        rnndiag.Recorder(**{"model": Net(), "dirpath": tmp_path, **arguments})
    assert words in str(caught.value)
    assert caught.value.remedy


def test_options_are_those_of_the_callback() -> None:
    import inspect

    taken = set(inspect.signature(rnndiag.GradientDiagnostics.__init__).parameters) - {
        "self",
        "dirpath",
    }
    # the need is measured on validation batches, which only a Trainer has
    assert set(Options.__annotations__) == taken - {"need"}


def test_probes_of_one_model_count_their_steps(tmp_path: Path) -> None:
    model = Net()
    with rnndiag.RunWriter(tmp_path / "run") as writer:
        for batch in batches(6):
            with rnndiag.probe(model) as probe:
                mse(model, batch).backward()
            assert writer.append(probe.recording)
    assert rnndiag.open_run(tmp_path / "run").steps.tolist() == [0, 1, 2, 3, 4, 5]
    with rnndiag.probe(model, step=40) as probe:
        mse(model, batches(1)[0]).backward()
    assert probe.recording.step == 40


def test_writer_says_that_a_step_is_recorded_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recording = rnndiag.Recording(step=3)
    with rnndiag.RunWriter(tmp_path / "run") as writer:
        for _ in range(3):
            writer.append(recording)
    said = [record.getMessage() for record in caplog.records]
    assert len([one for one in said if "step 3 (train) was recorded twice" in one]) == 1


class _Wrapper:
    """As the optimizers of Fabric and Accelerate hold the torch one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def test_wrapped_optimizer_counts_steps(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with rnndiag.Recorder(
        model,
        tmp_path / "run",
        _Wrapper(optimizer),
        every_n_steps=2,
        report=False,
        screen=False,
        strict=True,
    ) as recorder:
        for batch in batches():
            with recorder.step() as step:
                step.backward(mse(model, batch))
            optimizer.step()
            optimizer.zero_grad()
    assert rnndiag.open_run(tmp_path / "run").steps_of("train").tolist() == [0, 2, 4]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric(precision: str, tmp_path: Path) -> None:
    from lightning.fabric import Fabric

    def run(recorded: bool) -> nn.Module:
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        torch.manual_seed(7)
        model = Net("GRU")
        wrapped, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters(), 1e-2))
        recorder: Any = NoRecorder()
        if recorded:
            recorder = rnndiag.Recorder(
                wrapped,
                tmp_path / "run",
                optimizer,
                every_n_steps=2,
                report=False,
                screen=False,
                strict=True,
            )
        with recorder:
            for batch in batches():
                with recorder.step() as step:
                    step.backward(mse(wrapped, batch), backward=fabric.backward)
                optimizer.step()
                optimizer.zero_grad()
        return model

    fits.assert_same(run(True), run(False))
    found = rnndiag.open_run(tmp_path / "run")
    assert found.steps_of("train").tolist() == [0, 2, 4]
    assert found.layers == ("rnn.l0",)
    assert {r.verdict for r in found.recordings if r.phase == "train"} == {"exact"}
