"""Training loops written by hand, each with a recorder or with none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bf16 import skip_without_bf16_lstm
from fits import BATCH, HIDDEN, INPUTS, LENGTH
from torch import Tensor, nn

import rnndiag

STEPS = 6


class Net(nn.Module):
    """A recurrent layer and a head."""

    def __init__(self, cell: str = "LSTM", **options: Any) -> None:
        super().__init__()
        self.rnn = getattr(nn, cell)(INPUTS, HIDDEN, batch_first=True, **options)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class LoopedNet(nn.Module):
    """A cell in a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(INPUTS, HIDDEN), nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        carried, outs = None, []
        for now in x.unbind(1):
            carried = self.cell(now, carried)
            outs.append(carried[0])
        return self.head(torch.stack(outs, 1))


class NoRecorder:
    """The same loop without a recorder."""

    def __enter__(self) -> NoRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def step(self, batch: Any = None) -> NoRecorder:
        return self

    def backward(self, loss: Tensor, backward: Any = None, **options: Any) -> None:
        loss.backward(**options) if backward is None else backward(loss)


def batches(count: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(BATCH, LENGTH, INPUTS, generator=draw),
            torch.randn(BATCH, LENGTH, 1, generator=draw),
        )
        for _ in range(count)
    ]


def mse(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


Open = Callable[..., Any]


def plain(open_recorder: Open, model: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with open_recorder(model, optimizer=optimizer) as recorder:
        for batch in batches():
            with recorder.step(batch) as step:
                step.backward(mse(model, batch))
            optimizer.step()
            optimizer.zero_grad()


def without_step_backward(open_recorder: Open, model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with open_recorder(model, optimizer=optimizer) as recorder:
        for batch in batches():
            optimizer.zero_grad()
            with recorder.step():
                mse(model, batch).backward()
            optimizer.step()


def without_optimizer(open_recorder: Open, model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with open_recorder(model) as recorder:
        for batch in batches():
            with recorder.step() as step:
                step.backward(mse(model, batch))
            optimizer.step()
            optimizer.zero_grad()


def clipped(open_recorder: Open, model: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with open_recorder(model, optimizer=optimizer) as recorder:
        for batch in batches():
            with recorder.step() as step:
                step.backward(mse(model, batch))
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()


def steps_inside(open_recorder: Open, model: nn.Module) -> None:
    """Two optimizer steps a batch, both inside."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with open_recorder(model, optimizer=optimizer) as recorder:
        for batch in batches(3):
            with recorder.step() as step:
                for _ in range(2):
                    optimizer.zero_grad()
                    step.backward(mse(model, batch))
                    optimizer.step()


def accumulated(open_recorder: Open, model: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with open_recorder(model, optimizer=optimizer) as recorder:
        for number, batch in enumerate(batches(2 * STEPS)):
            with recorder.step() as step:
                step.backward(mse(model, batch), backward=lambda loss: (loss / 2).backward())
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()


def two_optimizers(open_recorder: Open, model: nn.Module) -> None:
    first = torch.optim.Adam([p for n, p in model.named_parameters() if "head" not in n], 1e-2)
    second = torch.optim.SGD([p for n, p in model.named_parameters() if "head" in n], 0.1)
    with open_recorder(model, optimizer=[first, second]) as recorder:
        for batch in batches(3):
            with recorder.step() as step:
                step.backward(mse(model, batch))
            for optimizer in (first, second):
                optimizer.step()
                optimizer.zero_grad()


def chunks(open_recorder: Open, model: nn.Module) -> None:
    """Truncated BPTT: a step a chunk, the state carried on without a gradient."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with open_recorder(model, optimizer=optimizer) as recorder:
        for x, y in batches(3):
            carried = None
            for part, wanted in zip(x.split(4, 1), y.split(4, 1), strict=True):
                with recorder.step() as step:
                    out, carried = model.rnn(part, carried)
                    carried = tuple(value.detach() for value in carried)
                    step.backward((model.head(out) - wanted).square().mean())
                optimizer.step()
                optimizer.zero_grad()


def skipped_batch(open_recorder: Open, model: nn.Module) -> None:
    """One batch fails and is left out by the program."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with open_recorder(model, optimizer=optimizer) as recorder:
        for number, batch in enumerate(batches()):
            try:
                with recorder.step() as step:
                    loss = mse(model, batch)
                    if number == 2:
                        raise FloatingPointError("a bad batch")
                    step.backward(loss)
            except FloatingPointError:
                continue
            optimizer.step()
            optimizer.zero_grad()


def mixed_precision(open_recorder: Open, model: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with open_recorder(model, optimizer=optimizer) as recorder:
        for batch in batches():
            with recorder.step() as step:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = mse(model, batch)
                step.backward(loss, backward=lambda loss: scaler.scale(loss).backward())
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


def policy_gradient(open_recorder: Open, model: nn.Module) -> None:
    """Recurrent PPO in small: collect with the state carried on, then several epochs over the stored rollout."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    state = None
    with open_recorder(model, optimizer=optimizer) as recorder:
        for x, advantage in batches(2):
            with torch.no_grad():  # the rollout
                start = state
                out, state = model.rnn(x, start)
                policy = torch.distributions.Normal(model.head(out), 1.0)
                action = policy.sample()
                before = policy.log_prob(action)
            for _ in range(3):
                with recorder.step() as step:
                    out, _ = model.rnn(x, start)
                    now = torch.distributions.Normal(model.head(out), 1.0).log_prob(action)
                    ratio = (now - before).exp()
                    clip = ratio.clamp(0.8, 1.2)
                    step.backward(-torch.minimum(ratio * advantage, clip * advantage).mean())
                    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()


LOOPS: dict[str, tuple[Callable[[Open, nn.Module], None], Callable[[], nn.Module], list[int]]] = {
    "plain": (plain, Net, [0, 1, 2, 3, 4, 5]),
    "GRU": (plain, lambda: Net("GRU", num_layers=2), [0, 1, 2, 3, 4, 5]),
    "RNN with dropout": (plain, lambda: Net("RNN", num_layers=2, dropout=0.5), [0, 1, 2, 3, 4, 5]),
    "cells": (plain, LoopedNet, [0, 1, 2, 3, 4, 5]),
    "loss.backward": (without_step_backward, Net, [0, 1, 2, 3, 4, 5]),
    "no optimizer": (without_optimizer, Net, [0, 1, 2, 3, 4, 5]),
    "clipped": (clipped, Net, [0, 1, 2, 3, 4, 5]),
    "steps inside": (steps_inside, Net, [0, 1, 2, 3, 4, 5]),
    "accumulated": (accumulated, Net, [0, 1, 2, 3, 4, 5]),
    "two optimizers": (two_optimizers, Net, [0, 2, 4]),
    "chunks": (chunks, Net, [0, 1, 2, 3, 4, 5]),
    "a batch left out": (skipped_batch, Net, [0, 1, 2, 3, 4]),
    "mixed precision": (mixed_precision, lambda: Net("GRU"), [0, 1, 2, 3, 4, 5]),
    "policy gradient": (policy_gradient, Net, [0, 1, 2, 3, 4, 5]),
}


def train(case: str, folder: Path | None, **options: Any) -> tuple[nn.Module, Tensor]:
    loop, make, _ = LOOPS[case]
    skip_without_bf16_lstm(case == "mixed precision")
    torch.manual_seed(7)
    model = make()
    chosen = {"every_n_steps": 1, "strict": True, "report": False, "screen": False, **options}

    def open_recorder(model: nn.Module, optimizer: Any = None) -> Any:
        if folder is None:
            return NoRecorder()
        return rnndiag.Recorder(model, folder, optimizer, **chosen)

    loop(open_recorder, model)
    return model, torch.get_rng_state()
