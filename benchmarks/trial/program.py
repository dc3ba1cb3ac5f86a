"""One small training program, as a person would write it: everything that can be planted or repaired is a field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.trial.tasks import IGNORED, TASKS, Task

BATCHES = 150
"""Distinct batches of the training set; a longer fit goes over them again."""


@dataclass(frozen=True)
class Program:
    """Task, net, optimizer and the ways in which they can be wrong. The defaults are a healthy program."""

    task: str
    cell: str = "lstm"
    seed: int = 0
    hidden: int = 24
    batch: int = 32
    layers: int = 1
    bidirectional: bool = False
    packed: bool = False
    seq2seq: bool = False
    loop: bool = False
    """A cell called step by step in Python."""
    steps: int | None = None
    T: int | None = None

    optimizer: str = "adam"
    rate: float | None = None
    weight_decay: float = 0.0
    decay_groups: bool = False
    """Two parameter groups, as for AdamW: weights decay, biases do not."""
    clip: float | None = None
    accumulate: int = 1
    warmup: int = 0
    rate_decay: float = 1.0
    """Factor on the learning rate at every step."""
    precision: str = "32-true"
    validate: bool = False

    init: str = "good"
    """good: a long memory from the start; torch: as torch makes it."""
    forget_bias: float | None = None
    gain: float | None = None
    """W_hh orthogonal times this."""
    bias: float | None = None
    """All input biases of the layer."""
    input_scale: float = 1.0
    input_shift: float = 0.0
    target_scale: float = 1.0
    target_shift: float = 0.0

    detach: int | None = None
    """The state is detached every so many steps of a sequence."""
    carry: bool = False
    """Chunks of T steps follow one another, and the detached state is carried over."""
    last_steps: int | None = None
    """Only the last so many steps of each sequence are given."""
    reset: bool = False
    """The loop starts every step from a zero state."""
    batch_first: bool = True
    pad: str = ""
    """'read': sequences of several lengths, and the loss reads the last step; 'right': it reads the last real one."""
    frozen: bool = False
    not_in_optimizer: bool = False
    nan_at: int | None = None
    """The batch of this step holds a NaN."""
    skip_nonfinite: bool = False
    shuffled: bool = False
    """The targets belong to other sequences."""
    first_only: bool = False
    """The loss asks at the first step only."""
    needs: int | None = None
    chance: float | None = None

    @property
    def of(self) -> Task:
        """The task."""
        return TASKS[self.task]

    @property
    def length(self) -> int:
        """Steps of a sequence as it is generated."""
        return self.T or self.of.T

    @property
    def fit_steps(self) -> int:
        """Optimizer steps of the fit."""
        return self.steps or self.of.steps

    def but(self, **changes: Any) -> Program:
        """The same program with some fields replaced."""
        return replace(self, **changes)


def _fused(program: Program, inputs: int) -> nn.Module:
    options: dict[str, Any] = {
        "num_layers": program.layers,
        "bidirectional": program.bidirectional,
        "batch_first": program.batch_first,
    }
    if program.cell in ("lstm", "gru"):
        kind = nn.LSTM if program.cell == "lstm" else nn.GRU
        return kind(inputs, program.hidden, **options)
    return nn.RNN(inputs, program.hidden, nonlinearity=program.cell, **options)


def _single(program: Program, inputs: int) -> nn.Module:
    if program.cell in ("lstm", "gru"):
        return (nn.LSTMCell if program.cell == "lstm" else nn.GRUCell)(inputs, program.hidden)
    return nn.RNNCell(inputs, program.hidden, nonlinearity=program.cell)


@torch.no_grad()
def initialise(program: Program, module: nn.Module) -> None:
    """Set biases and recurrent weights of every layer and direction."""
    H = program.hidden
    gate = slice(H, 2 * H)  # f of an LSTM, z of a GRU
    named = dict(module.named_parameters())
    for name, weight in named.items():
        if "weight_hh" not in name:
            continue
        end = name.removeprefix("weight_hh")
        bias_ih, bias_hh = named[f"bias_ih{end}"], named[f"bias_hh{end}"]
        gated = program.cell in ("lstm", "gru")
        if program.init == "good":
            memory = math.log(max(program.length - 1, 3))
            if gated:
                bias_ih[gate] = 0
                bias_hh[gate] = memory if program.cell == "lstm" else 0.8 * memory
            elif program.cell == "tanh":
                nn.init.orthogonal_(weight)
            else:
                weight.copy_(torch.eye(H))
                bias_ih.zero_()
                bias_hh.zero_()
        if program.forget_bias is not None and gated:
            bias_ih[gate] = 0
            bias_hh[gate] = program.forget_bias
        if program.gain is not None:
            for block in weight.split(H):
                nn.init.orthogonal_(block, program.gain)
        if program.bias is not None:
            bias_ih.fill_(program.bias)
            bias_hh.zero_()


class Net(L.LightningModule):
    """A recurrent layer and a linear head."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        inputs = program.of.inputs
        self.rnn = _single(program, inputs) if program.loop else _fused(program, inputs)
        initialise(program, self.rnn)
        width = program.hidden * (2 if program.bidirectional else 1)
        if program.seq2seq:
            self.decoder = nn.GRU(inputs, program.hidden, batch_first=True)
            initialise(program.but(cell="gru", forget_bias=None, gain=None), self.decoder)
        self.out = nn.Linear(width, program.of.outputs)
        if program.frozen:
            self.rnn.requires_grad_(False)
        self.carried: Any = None

    def outputs(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(n, T, width)."""
        program = self.program
        if program.loop:
            return self._looped(x)
        if program.detach:
            return self._in_pieces(x)
        if program.carry:
            y, state = self.rnn(x, self.carried)
            self.carried = _detached(state)
            return y
        if program.seq2seq:
            state = self.rnn(x)[1]
            first = state[0] if isinstance(state, tuple) else state
            return self.decoder(torch.zeros_like(x[:, : max(2, x.shape[1] // 4)]), first[-1:])[0]
        if program.packed and lengths is not None:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(
                self.rnn(packed)[0], batch_first=True, total_length=x.shape[1]
            )[0]
        return self.rnn(x)[0]

    def _looped(self, x: Tensor) -> Tensor:
        state, found = None, []
        for t in range(x.shape[1]):
            state = self.rnn(x[:, t], None if self.program.reset else state)
            found.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(found, 1)

    def _in_pieces(self, x: Tensor) -> Tensor:
        state, found = None, []
        for piece in x.split(self.program.detach, 1):
            y, state = self.rnn(piece, state)
            found.append(y)
            state = _detached(state)
        return torch.cat(found, 1)

    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch: (inputs, targets), or (inputs, targets, lengths)."""
        program, task = self.program, self.program.of
        x, y, *rest = batch
        hidden = self.outputs(x, rest[0].cpu() if rest else None)
        if task.at_end:
            if program.pad == "right" or program.packed:
                hidden = hidden[torch.arange(len(hidden)), rest[0] - 1]
            else:
                hidden = hidden[:, -1]
        elif program.first_only:
            hidden, y = hidden[:, :1], y[:, :1]
        answer = self.out(hidden)
        if task.classes:
            flat = answer.reshape(-1, answer.shape[-1])
            return F.cross_entropy(flat, y.reshape(-1), ignore_index=IGNORED)
        return F.mse_loss(answer, y)

    def training_step(self, batch: Any, index: int) -> Tensor:
        """The loss."""
        return self.loss(batch)

    def validation_step(self, batch: Any, index: int) -> None:
        """Log the loss on held-out sequences."""
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        """The optimizer, with a warm-up where asked for."""
        program = self.program
        own = {
            name: p
            for name, p in self.named_parameters()
            if p.requires_grad and not (program.not_in_optimizer and name.startswith("rnn"))
        }
        groups: list[Any] = list(own.values())
        if program.decay_groups:
            groups = [
                {"params": [p for n, p in own.items() if "bias" not in n]},
                {"params": [p for n, p in own.items() if "bias" in n], "weight_decay": 0.0},
            ]
        rate = program.of.rate if program.rate is None else program.rate
        kinds = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "rmsprop": torch.optim.RMSprop,
        }
        if program.optimizer in kinds:
            optimizer = kinds[program.optimizer](groups, rate, weight_decay=program.weight_decay)
        else:
            momentum = 0.9 if program.optimizer == "momentum" else 0.0
            optimizer = torch.optim.SGD(
                groups, rate, momentum=momentum, weight_decay=program.weight_decay
            )
        if not program.warmup and program.rate_decay == 1.0:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(1.0, (step + 1) / max(1, program.warmup)) * program.rate_decay**step,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def _detached(state: Any) -> Any:
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


class _WithoutBad:
    """A loader that drops batches that hold numbers that are not finite."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader, self.batch_size = loader, loader.batch_size

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if all(bool(t.isfinite().all()) for t in batch if t.is_floating_point()):
                yield batch


def data_of(program: Program, batches: int, seed: int) -> Dataset[Any]:
    """Sequences as the program reads them, in the order of their batches."""
    task, T, B = program.of, program.length, program.batch
    g = torch.Generator().manual_seed(seed)
    if program.carry:
        x, y = task.make(B, T * batches, g)
        x = x.unflatten(1, (batches, T)).transpose(0, 1).flatten(0, 1)
        y = y.unflatten(1, (batches, T)).transpose(0, 1).flatten(0, 1)
    else:
        x, y = task.make(B * batches, T, g)
    x = x * program.input_scale + program.input_shift
    if not task.classes:
        y = y * program.target_scale + program.target_shift
    if program.last_steps:
        x = x[:, -program.last_steps :]
        y = y if task.at_end else y[:, -program.last_steps :]
    if program.shuffled:
        y = y[torch.randperm(len(y), generator=g)]
    if program.nan_at is not None:
        x[program.nan_at % batches * B, 0] = float("nan")
    return TensorDataset(x, y)


LENGTHS = (0.6, 0.75, 0.9, 1.0)
"""Of sequences of several lengths, relative to the task's."""


def padded_data(program: Program, batches: int, seed: int) -> Dataset[Any]:
    """Sequences of several lengths, padded with zeros to twice the longest, or to four times: and their lengths."""
    task, T = program.of, program.length
    width = (4 if program.pad else 2) * T
    g = torch.Generator().manual_seed(seed)
    count = program.batch * batches // len(LENGTHS)
    inputs, targets, lengths = [], [], []
    for share in LENGTHS:
        steps = round(share * T)
        x, y = task.make(count, steps, g)
        inputs.append(F.pad(x, (0, 0, 0, width - steps)))
        targets.append(y if task.at_end else F.pad(y, (0, width - steps), value=IGNORED))
        lengths.append(torch.full((count,), steps))
    order = torch.randperm(len(LENGTHS) * count, generator=g)
    x, y, ends = (torch.cat(part)[order] for part in (inputs, targets, lengths))
    x = x * program.input_scale + program.input_shift
    if program.nan_at is not None:
        x[program.nan_at % batches * program.batch, 0] = float("nan")
    return TensorDataset(x, y, ends)


def loader_of(program: Program, batches: int, seed: int) -> Any:
    """The loader of a training or validation set."""
    make = padded_data if program.pad or program.packed else data_of
    loader = DataLoader(make(program, batches, seed), program.batch)
    return _WithoutBad(loader) if program.skip_nonfinite else loader
