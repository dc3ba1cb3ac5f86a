"""Two whole programs that ask how long their window must be: a forecast of a seasonal series, and a model of text."""

from __future__ import annotations

import glob
import os
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import rnndiag
from rnndiag.stats.need import need_measurements
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter

WEEK = 7
SHORT, LONG = 4, 14
"""Days of a window that is too short for a weekly season, and of one that is not."""


class CharNet(nn.Module):
    """A GRU over bytes."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 16)
        self.rnn = nn.GRU(16, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 128)

    def run(self, text: Tensor, window: int | None) -> Tensor:
        """The loss of the next byte; the state is carried and detached every `window` steps."""
        x, outputs, state = self.embedding(text[:, :-1]), [], None
        for piece in x.split(window or x.shape[1], 1):
            y, state = self.rnn(piece, state)
            state = state.detach()
            outputs.append(y)
        logits = self.head(torch.cat(outputs, 1))
        return functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


def library_text(size: int = 2_000_000) -> Tensor:
    """Bytes of the modules of Python's library, in the order of their names, as one series."""
    folder = sysconfig.get_paths()["stdlib"]
    text = b""
    for name in sorted(glob.glob(os.path.join(folder, "*.py"))):
        text += Path(name).read_bytes()
        if len(text) >= size:
            break
    return torch.tensor(list(text[:size]), dtype=torch.long).clamp(max=127)


def pieces(text: Tensor, generator: torch.Generator, batch: int = 32, steps: int = 80) -> Tensor:
    """Random pieces of a series, (batch, steps + 1)."""
    starts = torch.randint(0, len(text) - steps - 1, (batch, 1), generator=generator)
    return text[starts + torch.arange(steps + 1)]


class Forecast(nn.Module):
    """A GRU that forecasts the next day."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def run(self, days: Tensor, window: int | None) -> Tensor:
        """Squared error of the next day; the state is carried and detached every `window` days."""
        x, outputs, state = days[:, :-1, None], [], None
        for piece in x.split(window or x.shape[1], 1):
            y, state = self.rnn(piece, state)
            state = state.detach()
            outputs.append(y)
        return (self.head(torch.cat(outputs, 1)).squeeze(-1) - days[:, 1:]).square().mean()


def daily_sales(days: int, seed: int) -> Tensor:
    """A daily series: every day is like the one a week before and like the last one, and noise of variance 1.

    (1 - 0.3 B)(1 - 0.8 B^7) x = noise: the best forecast has the loss 1 and needs the inputs 6 and 7 steps back.
    """
    generator = torch.Generator().manual_seed(seed)
    start = 40 * WEEK
    x = torch.randn(days + start, generator=generator).tolist()
    for t in range(WEEK + 1, len(x)):
        x[t] += 0.3 * x[t - 1] + 0.8 * x[t - WEEK] - 0.24 * x[t - WEEK - 1]
    return torch.tensor(x[start:])


def fitted(model: Any, series: Tensor, count: int, window: int, length: int, seed: int = 0) -> None:
    """Adam with clipping on random pieces of a series."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(count):
        loss = model.run(pieces(series, generator, steps=length), window)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def programs(quick: bool, figures: Path | None) -> None:
    """Train both with a short window, ask, train with a longer one, ask again."""
    print("| program | window | loss | lead | beyond the window | used inputs | CPU s |")
    print("|---|---|---|---|---|---|---|")
    train, test = daily_sales(60_000, 0), daily_sales(40_000, 1)
    steps = 30 if quick else 500
    for window in (SHORT, LONG):
        torch.manual_seed(0)
        _asked("season of 7 days", Forecast(), train, test, steps, window, 42, figures)
    text = library_text()
    split = len(text) * 9 // 10
    for window in (2,) if quick else (2, 16):
        torch.manual_seed(0)
        steps = 10 if quick else 300
        _asked("text", CharNet(48), text[:split], text[split:], steps, window, 64, figures)


def cost(quick: bool) -> None:
    """A default call on a model of text with 128 units and sequences of 80 steps: at most 600 plain steps and 60 s."""
    text = library_text()
    torch.manual_seed(0)
    model = CharNet(128)
    fitted(model, text, 3 if quick else 60, 80, 80)
    generator = torch.Generator().manual_seed(3)
    batches = [pieces(text, generator) for _ in range(4 if quick else 24)]
    before = time.process_time()
    for batch in batches[:3]:
        model.run(batch, None).backward()
    plain = (time.process_time() - before) / 3
    before = time.process_time()
    need = rnndiag.memory_need(model, batches, lambda net, batch: net.run(batch, None))
    seconds = time.process_time() - before
    print(
        f"{need.plain_steps:.0f} plain steps of {plain:.3f} CPU s, {seconds:.0f} CPU s in all, of which "
        f"{need.plain_steps * plain:.0f} s are such steps; {need.sequences} test sequences, lags to {need.max_lag}: "
        f"{need.lead}"
    )


def _asked(
    name: str,
    model: Any,
    train: Tensor,
    test: Tensor,
    steps: int,
    window: int,
    length: int,
    figures: Path | None,
) -> None:
    fitted(model, train, steps, window, length)
    generator = torch.Generator().manual_seed(3)
    batches = [pieces(test, generator, steps=length) for _ in range(24)]

    def loss_fn(net: Any, batch: Tensor) -> Tensor:
        loss: Tensor = net.run(batch, window)
        return loss

    start = time.process_time()
    need = rnndiag.memory_need(model, batches, loss_fn)
    seconds = time.process_time() - start
    print(
        f"| {name} | {window} | {need.loss:.3f} | {need.lead} | {need.further.gain:.4f} "
        f"({need.further.lower:.4f} to {need.further.upper:.4f}) | {need.used_memory} | {seconds:.0f} |",
        flush=True,
    )
    print(f"\n    {need}\n".replace("\n", "\n    "), flush=True)
    if figures is not None:
        _drawn(need, model, batches, loss_fn, figures / f"need-{name.split()[0]}-{window}.png")


def _drawn(
    need: rnndiag.MemoryNeed,
    model: nn.Module,
    batches: Sequence[Tensor],
    loss_fn: Callable[[Any, Tensor], Tensor],
    file: Path,
) -> None:
    """The figure F12 of a need, with the credit profile of one batch."""
    from rnndiag import plot

    with rnndiag.probe(model) as seen:
        loss_fn(model, batches[0]).backward()
    with tempfile.TemporaryDirectory() as folder:
        with RunWriter(Path(folder) / "run") as writer:
            known = (*seen.recording.measurements, *need_measurements(need))
            writer.append(Recording(0, measurements=known))
        axes = plot.need(rnndiag.open_run(Path(folder) / "run"))
        axes.figure.savefig(file, dpi=80)
