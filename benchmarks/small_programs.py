"""Small programs that train in seconds: two tasks and three cells, with the faults that people make planted on request.

delay    repeat the input of ten steps ago          (T = 40)
adding   add the two marked numbers of a sequence   (T = 40)
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rnndiag.recorder.callback import GradientDiagnostics
from rnndiag.run.run import Run, open_run

T, DELAY, SEQUENCES = 40, 10, 256
MEASURES = ("contributions", "lags", "gates", "jacobians")

Batch = tuple[Tensor, Tensor]


def delay_data(generator: torch.Generator) -> Batch:
    """x (N, T, 1) and the same ten steps later."""
    x = torch.randn(SEQUENCES, T, 1, generator=generator)
    return x, x.roll(DELAY, 1)


def adding_data(generator: torch.Generator) -> Batch:
    """x (N, T, 2): numbers and marks; y (N, T, 1): the marked numbers' sum, asked for at the last step."""
    numbers = torch.rand(SEQUENCES, T, generator=generator)
    marks = torch.zeros(SEQUENCES, T)
    for half in (0, T // 2):
        places = torch.randint(half, half + T // 2, (SEQUENCES,), generator=generator)
        marks[torch.arange(SEQUENCES), places] = 1.0
    total = (numbers * marks).sum(1)
    return torch.stack([numbers, marks], 2), total[:, None, None].expand(-1, T, 1)


TASKS: Mapping[str, tuple[Callable[[torch.Generator], Batch], int, int]] = {
    "delay": (delay_data, 1, DELAY),
    "adding": (adding_data, 2, T - 1),
}
"""Name -> (data, inputs, the first step whose loss counts)."""

CELLS: Mapping[str, Callable[[int, int], nn.RNNBase]] = {
    "RNN": lambda inputs, hidden: nn.RNN(inputs, hidden, batch_first=True),
    "ReLU RNN": lambda inputs, hidden: nn.RNN(
        inputs, hidden, nonlinearity="relu", batch_first=True
    ),
    "LSTM": lambda inputs, hidden: nn.LSTM(inputs, hidden, batch_first=True),
    "GRU": lambda inputs, hidden: nn.GRU(inputs, hidden, batch_first=True),
}


@dataclass(frozen=True)
class Program:
    """All that a training depends on."""

    cell: str = "RNN"
    task: str = "delay"
    hidden: int = 24
    gain: float = 1.0
    """W_hh starts as so many times an orthogonal matrix, for each gate."""
    forget_bias: float = 1.0
    bias: float = 0.0
    learning_rate: float = 3e-3
    steps: int = 200
    batch_size: int = 32
    clip: float | None = None
    window: int | None = None
    """Detach the state every so many steps."""
    shuffled: bool = False
    """Shuffle the inputs' time, not the targets'."""
    nan_at: int | None = None
    """Put one NaN into the inputs of this step."""


class Small(L.LightningModule):
    """One recurrent layer and a head."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        _, inputs, self.first = TASKS[program.task]
        self.rnn = CELLS[program.cell](inputs, program.hidden)
        self.head = nn.Linear(program.hidden, 1)
        with torch.no_grad():
            for block in self.rnn.weight_hh_l0.split(program.hidden):
                nn.init.orthogonal_(block, program.gain)
            if program.cell == "LSTM":
                self.rnn.bias_hh_l0.zero_()
                self.rnn.bias_ih_l0[program.hidden : 2 * program.hidden] = program.forget_bias
            if program.bias:
                self.rnn.bias_ih_l0.fill_(program.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, T, 1)."""
        if self.program.window is None:
            return self.head(self.rnn(x)[0])
        state, outs = None, []
        for piece in x.split(self.program.window, 1):
            out, state = self.rnn(piece, state)
            state = (
                state.detach() if isinstance(state, Tensor) else tuple(s.detach() for s in state)
            )
            outs.append(out)
        return self.head(torch.cat(outs, 1))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Mean square of what is asked for."""
        x, y = batch
        if self.program.shuffled:
            x = x[:, torch.randperm(x.shape[1])]
        if self.program.nan_at == self.global_step:
            x = x.clone()
            x[0, 5] = float("nan")
        return (self(x) - y)[:, self.first :].square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), self.program.learning_rate)


def train(
    program: Program, folder: Path, seed: int = 0, recordings: int = 20, **options: Any
) -> Run:
    """Train the program, recorded into `folder`, on one CPU; the run."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        L.seed_everything(seed, verbose=False)
        model = Small(program)
        data = TASKS[program.task][0](torch.Generator().manual_seed(seed))
        callback = GradientDiagnostics(
            dirpath=folder,
            every_n_steps=max(1, program.steps // recordings),
            **{
                "measures": MEASURES,
                "screen": False,
                "report": False,
                "log": "none",
                "strict": True,
                **options,
            },
        )
        trainer = L.Trainer(
            max_steps=program.steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=program.clip,
            callbacks=[callback],
        )
        trainer.fit(model, DataLoader(TensorDataset(*data), program.batch_size, shuffle=True))
    return open_run(callback.run_dir)
