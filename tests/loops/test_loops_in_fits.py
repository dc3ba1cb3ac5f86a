"""Loops in Lightning fits: recorded through the callback, and trained to the same weights, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fits
import lightning.pytorch as L
import pytest
import torch
from loops.listed_programs import PROGRAMS
from loops.odd_programs import EXACT, OPEN
from loops.programs.jumping import Jumping
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rnndiag
from rnndiag import Run

HERE = Path(__file__).parent


class FreeRunningLSTM(L.LightningModule):
    """An LSTM cell fed its own prediction, its state scaled at every other step."""

    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = not manual
        self.cell, self.head = nn.LSTMCell(4, 5), nn.Linear(5, 1)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 5)
        fed, total = x.new_zeros(len(x), 1), x.new_zeros(())
        for t in range(x.shape[1]):
            h, c = self.cell(torch.cat([x[:, t], fed], 1), (h * (0.9 if t % 2 else 1.0), c))
            fed = self.head(h)
            total = total + (fed - y[:, t]).square().mean()
        return total

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        if self.automatic_optimization:
            return self.loss(*batch)
        for x, y in zip(*(part.chunk(2) for part in batch), strict=True):
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(x, y))
            self.clip_gradients(optimizer, 0.5, "norm")
            optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-2)


def trained(module: L.LightningModule, callbacks: list[Any], **options: Any) -> list[Tensor]:
    L.seed_everything(2, verbose=False)
    trainer = L.Trainer(**fits.QUIET, max_epochs=1, callbacks=callbacks, **options)
    data = [torch.randn(8, 6, 3), torch.randn(8, 6, 1)]
    trainer.fit(module, DataLoader(TensorDataset(*data), batch_size=4))
    return [value.detach() for value in module.parameters()]


def recorded(
    make: Callable[[], L.LightningModule],
    diagnostics: Callable[..., Any],
    steps: Any = (),
    **options: Any,
) -> Run:
    """The run of a fit, whose weights are those of a fit without the callback."""
    torch.manual_seed(0)
    expected = trained(make(), [], **options)
    torch.manual_seed(0)
    callback = diagnostics(measures=("contributions", "lags"), preflight=False, steps=steps)
    found = trained(make(), [callback], **options)
    assert all(map(torch.equal, found, expected))
    return rnndiag.open_run(callback.run_dir)


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}],
    ids=["plain", "accumulated", "clipped", "bf16"],
)
def test_fed_back_loops_are_measured_under(
    options: dict[str, Any], diagnostics: Callable[..., Any]
) -> None:
    run = recorded(FreeRunningLSTM, diagnostics, **options)
    steps = run.steps_of("train")
    assert len(steps) == (1 if "accumulate_grad_batches" in options else 2)
    for step in steps:
        recording = run.at(int(step))
        assert recording.verdict == "exact", recording.reasons
        assert len(recording["window_bias", "cell"].values) == 7


def test_steps_under_manual_optimization_are_measured_each(
    diagnostics: Callable[..., Any],
) -> None:
    run = recorded(lambda: FreeRunningLSTM(manual=True), diagnostics)
    assert run.steps_of("train").tolist() == [0, 1, 2, 3]
    for recording in run.recordings:
        if recording.phase == "train":
            assert recording.verdict == "exact", recording.reasons
            assert len(recording["window_bias", "cell"].values) == 7


@pytest.mark.slow
def test_two_processes_measure_their_own_halves(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)])
    done = subprocess.run(
        [sys.executable, str(HERE / "train_loop_on_two_ranks.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = (torch.load(tmp_path / name) for name in ("with.pt", "without.pt"))
    assert all(map(torch.equal, found, expected))
    run = rnndiag.open_run(tmp_path / "run")
    assert run.ranks == (0, 1)
    recording = run.at(0)
    assert recording.verdict == "exact"
    assert recording.ranks == (0, 1)
    apart = [run.select("window_bias", "cell", rank=rank).values for rank in (0, 1)]
    assert not (apart[0] == apart[1]).all()


class Generated(L.LightningModule):
    """A generator whose outputs are detached in the discriminator's step, and trained every other batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.out = nn.LSTM(3, 4, num_layers=2, batch_first=True), nn.Linear(4, 1)
        self.judge = nn.Linear(6, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        of_generator, of_judge = self.optimizers()  # type: ignore[misc]
        fake, softplus = self.out(self.generator(batch[0])[0]).squeeze(-1), nn.functional.softplus
        real = softplus(-self.judge(batch[1].squeeze(-1))).mean()
        of_judge.zero_grad()
        self.manual_backward(real + softplus(self.judge(fake.detach())).mean())
        of_judge.step()
        if batch_idx % 2:
            of_generator.zero_grad()
            self.manual_backward(softplus(-self.judge(fake)).mean())
            of_generator.step()

    def configure_optimizers(self) -> Any:
        own = [*self.generator.parameters(), *self.out.parameters()]
        return torch.optim.Adam(own, 1e-3), torch.optim.Adam(self.judge.parameters(), 1e-3)


def test_a_generator_trained_after_the_discriminators_step_is_recorded(
    diagnostics: Callable[..., Any],
) -> None:
    run = recorded(Generated, diagnostics)
    trained_at = [r for r in run.recordings if ("window_bias", "generator.l1") in r]
    assert [r.step for r in trained_at] == [2]
    assert trained_at[0].verdict == "exact"
    assert run.layers == ("generator.l0", "generator.l1")


class AllOf(L.LightningModule):
    """Every program of a list, its loss one of a sum."""

    def __init__(self, programs: dict[str, Any]) -> None:
        super().__init__()
        self.programs = nn.ModuleDict({name: made() for name, made in programs.items()})

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        total = torch.zeros(())
        for name, program in self.programs.items():

            def carry(state: Any, name: str, own: str = name) -> Any:
                return rnndiag.carry(state, name=own)

            total = total + program.run(carry=None if program.watched else carry)  # type: ignore[operator]
        return total

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3)


@pytest.mark.slow
def test_every_listed_loop_is_recorded_in_one_fit(
    diagnostics: Callable[..., Any], double: None
) -> None:
    steps = ["programs.OneArgument.cell"]
    run = recorded(lambda: AllOf(PROGRAMS), diagnostics, steps, max_steps=1)
    recording = run.at(0)
    for name, made in PROGRAMS.items():
        program = made()
        layer = f"programs.{name}.{program.watched}" if program.watched else name
        if isinstance(program, Jumping):
            assert recording.reasons[layer].startswith("open: "), layer
        else:
            assert ("window_bias", layer) in recording, layer
            assert layer not in recording.reasons


@pytest.mark.slow
def test_every_odd_loop_is_recorded_or_open_in_one_fit(
    diagnostics: Callable[..., Any], double: None
) -> None:
    run = recorded(lambda: AllOf({**EXACT, **OPEN}), diagnostics, max_steps=1)
    recording = run.at(0)
    for name, made in EXACT.items():
        watched = made().watched
        layers = [f"programs.{name}.{part}" for part in (watched or "").split("+")]
        found = "+".join(layers) if watched else name
        measured = [one for one in (found, *layers) if ("window_bias", one) in recording]
        assert measured, found
        assert not any(one in recording.reasons for one in measured)
    for name in OPEN:
        assert "open: " in recording.reasons[f"programs.{name}.cell"]
        assert ("window_bias", f"programs.{name}.cell") not in recording
