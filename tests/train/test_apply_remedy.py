"""A diagnosis names a window, and the training loop takes it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from fits import QUIET
from torch import nn

import rnndiag
from lightning_modules.data import TaskData
from lightning_modules.program import Program
from rnndiag import train
from rnndiag.errors import NotSupported

B, T = 32, 16


class Net(train.TruncatedBPTT, L.LightningModule):  # type: ignore[misc]
    """Answers with what it saw six steps ago."""

    def __init__(self) -> None:
        super().__init__(k1=4)
        self.rnn, self.head = nn.GRU(3, 16, batch_first=True), nn.Linear(16, 1)

    def tbptt_step(self, chunk: Any, state: Any) -> Any:
        out, state = self.rnn(chunk[0], state)
        loss = nn.functional.mse_loss(self.head(out), chunk[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss, state

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


def fitted(net: Net, epochs: int, callbacks: list[Any]) -> float:
    x = torch.randn(B * 20, T, 3, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, x.roll(6, 1).sum(-1, keepdim=True))
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=callbacks,
    )
    trainer.fit(net, torch.utils.data.DataLoader(data, batch_size=B))
    return float(trainer.callback_metrics["loss"])


@pytest.mark.slow
def test_the_remedy_of_a_window_too_short_lets_the_net_learn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    short = Net()
    callback = rnndiag.GradientDiagnostics(
        tmp_path / "run", every_n_steps=20, strict=True, report=False
    )
    stuck = fitted(short, 2, [callback])
    causes = rnndiag.diagnose(rnndiag.open_run(tmp_path / "run")).causes
    (cause,) = (one for one in causes if one.name == "window_too_short")
    torch.manual_seed(0)
    longer = Net()
    window = train.apply_remedy(longer, cause.remedy)
    assert longer.tbptt_window == window >= T
    assert longer.tbptt_label == f"chunk (4, {window})"
    assert fitted(longer, 2, []) < 0.9 * stuck


COPY = {"name": "copy_memory", "symbols": 2, "alphabet": 4, "delay": 6}


def trained(k: int, callbacks: list[Any]) -> float:
    """Held-out loss of the reference program for copying, trained in chunks of k steps."""
    L.seed_everything(0, verbose=False)
    program = Program(
        task=COPY, cell="gru", hidden=24, learning_rate=0.01, estimator={"name": "chunked", "k": k}
    )
    trainer = L.Trainer(**{**QUIET, "max_epochs": 1}, callbacks=callbacks, num_sanity_val_steps=0)
    trainer.fit(program, TaskData(COPY, seed=0, batches=300))
    return program.results["loss"]


@pytest.mark.slow
def test_a_reference_program_learns_with_the_window_that_its_diagnosis_names(
    tmp_path: Path,
) -> None:
    callback = rnndiag.GradientDiagnostics(
        tmp_path / "run", every_n_steps=20, strict=True, report=False
    )
    stuck = trained(4, [callback])
    causes = rnndiag.diagnose(rnndiag.open_run(tmp_path / "run")).causes
    (cause,) = (one for one in causes if one.name == "window_too_short")
    assert cause.remedy.knob == "window"
    assert cause.remedy.value == 10  # all steps: the first symbol is asked back 8 steps later
    chance = math.log(COPY["alphabet"])  # type: ignore[arg-type]
    assert stuck > 0.4 * chance
    assert trained(cause.remedy.value, []) < 0.15 * chance


def test_other_remedies_are_refused() -> None:
    remedy = type("Remedy", (), {"knob": "learning_rate", "value": 0.1})
    with pytest.raises(NotSupported, match="'learning_rate', not a window"):
        train.apply_remedy(Net(), remedy)
    loop = train.ChunkLoop(lambda chunk, state: (None, state), train.PlainUpdates(), 4)
    assert train.apply_remedy(loop, type("Remedy", (), {"knob": "window", "value": 9})) == 9
    assert loop.window == 9
