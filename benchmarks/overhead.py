"""What does the callback cost a training run: total time with it against without, in turns, in one process?

Run: python benchmarks/overhead.py [--sizes small medium large] [--steps N] [--alike] [--every-step] [--hooks]
     python benchmarks/overhead.py --unrecorded [--steps N]

Of each size two whole fits of an LSTM tagger run at once, one without and one with the callback at its defaults (a
budget of 3 %), and take turns of 20 steps, A B B A: what else the machine does meets both alike. The ratio is that of
their total `fit` times, the page at the end included; the interval beside it is the middle 90 % of ratios of turns
drawn again (bootstrap). CPU time is that of the two threads. What only the first fit of a process pays (imports,
first calls of kernels) is taken by a short fit before, and printed by itself: users pay it once. The allocator keeps
its memory (see steady_memory.py). `--alike` runs two fits without the callback instead: what the noise alone makes.

Sizes are fits of about a minute: eight recordings cost about 30 plain steps, the lag sweeps 10 to 20 more, the start
and the page half a second, and every step some 0.3 ms. A much shorter fit, or steps of a few milliseconds, cannot keep
5 % and have all that: the callback then makes its eight recordings, and says what they cost. `--every-step` adds
every_n_steps=1, which breaks any budget; `--hooks` what each hook of an unrecorded step takes. Exits 1 if a ratio is
above 1.05 or a fit has less than 8 recordings.

`--unrecorded` asks what a step costs that is not recorded: the median over turns of the ratio of CPU times, of turns
after the trial that says how often steps are looked at; with defaults, with `every_n_steps` and with a schedule of
one's own, for steps of four lengths.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rnndiag
from benchmarks.promises import tell
from benchmarks.steady_memory import keep_memory
from benchmarks.turns import Turn, Turnstile, rounds

INPUTS, BLOCK, DRAWS = 16, 20, 2000


@dataclass(frozen=True)
class Size:
    """A model and its batches."""

    hidden: int
    length: int
    batch: int
    steps: int
    layer: str = "lstm"


SIZES = {
    "small": Size(hidden=128, length=50, batch=32, steps=3000),
    "medium": Size(hidden=128, length=100, batch=32, steps=2500),
    "large": Size(hidden=256, length=60, batch=32, steps=2000),
}


class CellLoop(nn.Module):
    """An LSTMCell in a loop of one's own."""

    def __init__(self, inputs: int, hidden: int, batch_first: bool) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(inputs, hidden)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        state, outputs = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            outputs.append(state[0])
        return (torch.stack(outputs, 1),)


LAYERS: dict[str, Callable[..., nn.Module]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn": nn.RNN,
    "cell loop": CellLoop,
}


class Tagger(L.LightningModule):
    """A recurrent layer and a head on every step."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.rnn = LAYERS[size.layer](INPUTS, size.hidden, batch_first=True)
        self.head = nn.Linear(size.hidden, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.head(self.rnn(batch[0])[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


def fit(size: Size, steps: int, callbacks: Sequence[Any]) -> None:
    """One fit."""
    torch.manual_seed(0)
    data = TensorDataset(
        torch.randn(size.batch * 50, size.length, INPUTS),
        torch.randn(size.batch * 50, size.length, 1),
    )
    trainer = L.Trainer(
        max_steps=steps,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(Tagger(size), DataLoader(data, size.batch))


@dataclass(frozen=True)
class Account:
    """What the run says of itself."""

    recordings: int
    share: float


def read_account(callback: Any) -> Account:
    """From the run on disk."""
    run = rnndiag.open_run(callback.run_dir)
    said = [r.notes["overhead"]["share"] for r in run.outlines if "overhead" in r.notes]
    return Account(len(run.steps_of("train")), said[-1])


def in_turns(
    size: Size,
    steps: int,
    threads: int,
    read: Callable[[Any], Any] = read_account,
    **options: Any,
) -> tuple[list[Any], Any]:
    """The turns of a fit without and of one with the callback, and what `read` finds in the callback's run."""
    with tempfile.TemporaryDirectory() as folder:
        callback = rnndiag.GradientDiagnostics(Path(folder) / "run", **options)

        def plain(stile: Turnstile) -> None:
            fit(size, steps, [stile])

        def ours(stile: Turnstile) -> None:
            fit(size, steps, [stile, callback])

        block = max(1, min(BLOCK, steps // 10))
        return rounds([plain, ours], block, threads), read(callback)


def ratio(plain: Sequence[Turn], ours: Sequence[Turn], clock: Callable[[Turn], float]) -> float:
    """Of the sums."""
    return sum(map(clock, ours)) / sum(map(clock, plain))


def interval(plain: Sequence[Turn], ours: Sequence[Turn]) -> tuple[float, float]:
    """The middle 90 % of the ratio over pairs of turns drawn again."""
    draw = random.Random(0)
    pairs = list(zip(plain, ours, strict=True))
    found = []
    for _ in range(DRAWS):
        chosen = draw.choices(pairs, k=len(pairs))
        found.append(sum(b.wall for _, b in chosen) / sum(a.wall for a, _ in chosen))
    found.sort()
    return found[DRAWS // 20], found[-DRAWS // 20]


def compare(name: str, steps: int | None, threads: int) -> bool:
    """A few lines of one size; whether it keeps the promise."""
    size, whole = SIZES[name], steps is None
    steps = steps or size.steps
    (plain, ours), account = in_turns(size, steps, threads)
    wall, cpu = (ratio(plain, ours, clock) for clock in (lambda t: t.wall, lambda t: t.cpu))
    low, high = interval(plain, ours)
    each = min(BLOCK, steps // 10)
    own = median((b.cpu - a.cpu) / each for a, b in zip(plain, ours, strict=True))
    print(
        f"{name:6} H={size.hidden} T={size.length} B={size.batch}: {steps} steps of "
        f"{1e3 * median(t.wall for t in plain) / each:.1f} ms (median of {len(plain)} turns); with the callback "
        f"{wall:.3f} x ({low:.3f} to {high:.3f}), {cpu:.3f} x in CPU time\n"
        f"       {account.recordings} recordings; by its own account {account.share:.1%}; "
        f"half of the turns take less than {1e6 * own:.0f} µs of CPU time a step more",
        flush=True,
    )
    tell(f"own account, {name}", 100 * account.share, unit="%", whole=whole)
    kept = [
        tell(f"training with the callback, {name}", wall, whole=whole),
        tell(f"recordings in that training, {name}", account.recordings, whole=whole),
    ]
    return all(kept)


def alike(name: str, steps: int | None, threads: int) -> None:
    """The ratio of two fits that do the same."""
    size = SIZES[name]

    def plain(stile: Turnstile) -> None:
        fit(size, steps or size.steps, [stile])

    first, second = rounds([plain, plain], BLOCK, threads)
    low, high = interval(first, second)
    wall = ratio(first, second, lambda t: t.wall)
    print(f"{name:6} two fits alike: {wall:.3f} x ({low:.3f} to {high:.3f})", flush=True)


def every_step(name: str, threads: int) -> None:
    """The honest figure of recording everything."""
    for label, measures in (
        ("every group", None),
        ("contributions alone", ["contributions"]),
    ):
        (plain, ours), _ = in_turns(
            SIZES[name], 20, threads, every_n_steps=1, measures=measures, report=False
        )
        # the first turn holds the fit's own start
        wall, cpu = (
            ratio(plain[1:], ours[1:], clock) for clock in (lambda t: t.wall, lambda t: t.cpu)
        )
        print(
            f"{name:6} every_n_steps=1, {label}: {wall:.1f} x ({cpu:.1f} x in CPU time)", flush=True
        )
        tell(f"every_n_steps=1, {label}, {name}", wall, unit="x training without it")


def _first(step: int) -> bool:
    return step == 0


def hooks(name: str, steps: int = 200) -> None:
    """What every hook of an unrecorded step takes."""
    from rnndiag.recorder.callback import GradientDiagnostics
    from rnndiag.recorder.replay.light_hooks import Arrival, LightHooks

    taken: dict[str, list[float]] = defaultdict(list)

    def timed(owner: Any, method: str) -> Callable[[], None]:
        before = getattr(owner, method)

        def run(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return before(*args, **options)
            finally:
                taken[f"{owner.__name__}.{method}"].append(time.perf_counter() - start)

        setattr(owner, method, run)
        return lambda: setattr(owner, method, before)

    moments = ("on_train_batch_start", "on_after_backward")
    moments += ("on_before_optimizer_step", "on_train_batch_end")
    undo = [timed(GradientDiagnostics, moment) for moment in moments]
    undo += [timed(LightHooks, "keep"), timed(Arrival, "__call__")]
    try:
        with tempfile.TemporaryDirectory() as folder:
            only_first = rnndiag.GradientDiagnostics(folder, schedule=_first, report=False)
            fit(SIZES[name], steps, [only_first])
    finally:
        for put_back in undo:
            put_back()
    print(f"{name:6} an unrecorded step, in µs (median, each with its timer):")
    for hook, seconds in taken.items():
        print(f"         {hook:44} {1e6 * median(seconds):6.1f}")
    total = 1e6 * sum(map(median, taken.values()))
    print(f"         {'all':44} {total:6.1f}", flush=True)
    tell(f"unrecorded step, {name}", total, unit="µs")


SHORT = {
    "1 ms": Size(hidden=16, length=10, batch=8, steps=4000),
    "2 ms": Size(hidden=32, length=20, batch=16, steps=4000),
    "8 ms": Size(hidden=64, length=50, batch=32, steps=1600),
    "30 ms": Size(hidden=128, length=100, batch=32, steps=900),
}
WAYS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "every_n_steps": {"every_n_steps": 10**6},
    "own schedule": {"schedule": _first},
}
WARM = 24
"""Turns of 20 steps until the trial is over."""


def unrecorded(steps: int | None, threads: int) -> bool:
    """What steps cost that are not recorded; whether all keep within 2 %."""
    kept = []
    for name, size in SHORT.items():
        for way, options in WAYS.items():
            (plain, ours), account = in_turns(
                size, steps or size.steps, threads, report=False, screen=False, **options
            )
            plain, ours = plain[WARM:], ours[WARM:]
            pairs = [b.cpu / a.cpu for a, b in zip(plain, ours, strict=True)]
            print(
                f"{name:6} {way:14} {1e3 * median(t.cpu for t in plain) / BLOCK:6.2f} ms of CPU time a step, "
                f"{median(pairs):.3f} x with the callback ({len(pairs)} turns, {account.recordings} recordings)",
                flush=True,
            )
            tell(f"unrecorded step, {name}, {way}", median(pairs), unit="x", whole=steps is None)
            kept.append(median(pairs) <= 1.02)
    return all(kept)


def warm_up(threads: int) -> None:
    """Pay what only the first fits of a process pay, and say what that is."""
    torch.set_num_threads(threads)
    fit(SIZES["small"], 10, [])
    taken = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            fit(SIZES["small"], 10, [rnndiag.GradientDiagnostics(Path(folder) / "run")])
            taken.append(time.perf_counter() - start)
    extra = max(0.0, taken[0] - taken[1])
    print(f"paid once a process, and not part of the ratios: {extra:.2f} s (imports, first calls)")
    tell("paid once a process", extra, unit="s")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--steps", type=int, help="of every size, instead of its own number")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; two fits share the machine"
    )
    parser.add_argument("--alike", action="store_true")
    parser.add_argument("--every-step", action="store_true")
    parser.add_argument("--hooks", action="store_true")
    parser.add_argument("--unrecorded", action="store_true")
    parser.add_argument("--quick", action="store_true", help="the hooks of the small size alone")
    options = parser.parse_args()
    keep_memory()
    warnings.simplefilter("ignore")
    for logger in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    if options.quick:
        torch.set_num_threads(options.threads)
        hooks("small", 100)
        print("the callback's share of a training is only to be had from fits of a minute")
        return 0
    warm_up(options.threads)
    if options.unrecorded:
        return 0 if unrecorded(options.steps, options.threads) else 1
    if options.alike:
        for name in options.sizes:
            alike(name, options.steps, options.threads)
        return 0
    kept = [compare(name, options.steps, options.threads) for name in options.sizes]
    for name in options.sizes:
        if options.every_step:
            every_step(name, options.threads)
        if options.hooks:
            hooks(name)
    return 0 if all(kept) else 1


if __name__ == "__main__":
    raise SystemExit(main())
