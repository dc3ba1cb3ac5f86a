"""What does the callback cost a training run: total time with it against without, interleaved in one process?

Run: python benchmarks/overhead.py [--sizes small medium large] [--rounds 1] [--steps 3000] [--every-step]

Each size trains an LSTM tagger for a minute or two. Eight recordings cost about 40 plain steps, two lag sweeps and the
page about half a second, and every step some 0.1 ms (the ring of scalars, the black box): a much shorter fit, or steps
of a few ms, cannot keep 5 % and have all that. The callback then makes its recordings, and says what they cost.
Rounds alternate: without, and with the defaults (a budget of 3 %). `--every-step` adds every_n_steps=1 on a fit of
its own. The ratio is of summed `trainer.fit` times over all rounds, the report page included; the number of recordings
is that of the fewest in a round. Without `--every-step` exits 1 if a ratio is above 1.05 or a run has less than 8.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rnndiag
from benchmarks.promises import tell

INPUTS = 16


@dataclass(frozen=True)
class Size:
    """A model and its batches."""

    hidden: int
    length: int
    batch: int
    steps: int
    layers: int = 1


SIZES = {
    "small": Size(hidden=128, length=50, batch=32, steps=3000),
    "medium": Size(hidden=128, length=100, batch=32, steps=2000),
    "large": Size(hidden=256, length=100, batch=32, steps=1500),
}


class Tagger(L.LightningModule):
    """An LSTM and a head on every step."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.rnn = nn.LSTM(INPUTS, size.hidden, size.layers, batch_first=True)
        self.head = nn.Linear(size.hidden, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.head(self.rnn(batch[0])[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


@dataclass(frozen=True)
class Taken:
    """What fits took: wall time, and the CPU time of this process, which a busy machine does not stretch."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Taken) -> Taken:
        return Taken(self.wall + other.wall, self.cpu + other.cpu)


def fit(size: Size, steps: int, callbacks: list[Any]) -> Taken:
    """One fit."""
    L.seed_everything(0, verbose=False)
    data = TensorDataset(
        torch.randn(size.batch * 50, size.length, INPUTS),
        torch.randn(size.batch * 50, size.length, 1),
    )
    trainer = L.Trainer(
        max_steps=steps,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    module, loader = Tagger(size), DataLoader(data, size.batch)
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.fit(module, loader)
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


def with_callback(size: Size, steps: int, **options: Any) -> tuple[Taken, int, float]:
    """A fit with the callback, its recordings, and the share of training time that it says it took."""
    with tempfile.TemporaryDirectory() as folder:
        callback = rnndiag.GradientDiagnostics(Path(folder) / "run", **options)
        taken = fit(size, steps, [callback])
        run = rnndiag.open_run(callback.run_dir)
        said = [r.notes["overhead"]["share"] for r in run.outlines if "overhead" in r.notes]
        return taken, len(run.steps_of("train")), said[-1]


def compare(name: str, rounds: int, steps: int | None) -> bool:
    """One line of the table; whether it keeps the promise."""
    size = SIZES[name]
    steps = steps or size.steps
    fit(size, 5, [])
    plain = ours = Taken()
    counts, said, ratios = [], [], []
    for _ in range(rounds):
        without = fit(size, steps, [])
        plain = plain + without
        taken, count, share = with_callback(size, steps)
        ours = ours + taken
        ratios.append(taken.wall / without.wall)
        counts.append(count)
        said.append(share)
    ratio = ours.wall / plain.wall
    print(
        f"{name:8} H={size.hidden} T={size.length} B={size.batch} layers={size.layers}: {steps} steps, "
        f"{1e3 * plain.wall / rounds / steps:.1f} ms a step; with the defaults {ratio:.3f} x "
        f"({ours.cpu / plain.cpu:.3f} x in CPU time), "
        f"{min(counts)} recordings or more, it says {100 * sum(said) / rounds:.1f} %",
        flush=True,
    )
    whole = steps >= size.steps
    kept = tell(f"training with the callback, {name}", ratios, whole=whole)
    enough = tell(f"recordings in that training, {name}", counts, whole=whole)
    tell(f"the same in processor time, {name}", ours.cpu / plain.cpu, unit="x", whole=whole)
    return bool(kept and enough)


def every_step(name: str, rounds: int) -> None:
    """The honest figure of recording everything."""
    size, steps = SIZES[name], 20
    plain = sum((fit(size, steps, []) for _ in range(rounds)), Taken())
    for label, measures in (
        ("every group", None),
        ("contributions alone", ["contributions"]),
    ):
        taken = [
            with_callback(size, steps, every_n_steps=1, measures=measures, report=False)[0]
            for _ in range(rounds)
        ]
        total = sum(taken, Taken())
        words = f"{total.wall / plain.wall:.1f} x ({total.cpu / plain.cpu:.1f} x in CPU time)"
        print(f"{name:8} every_n_steps=1, {label}: {words}", flush=True)
        tell(f"every step recorded, {label}, {name}", total.wall / plain.wall, unit="x")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of every size, instead of its own number")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every-step", action="store_true")
    parser.add_argument(
        "--quick", action="store_true", help="100 steps of the small size, not judged"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for logger in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    if options.quick:
        compare("small", 1, 100)
        print("too short to judge: a second of diagnostics beside a few seconds of training")
        return 0
    kept = [compare(name, options.rounds, options.steps) for name in options.sizes]
    if options.every_step:
        for name in options.sizes:
            every_step(name, 1)
    return 0 if all(kept) else 1


if __name__ == "__main__":
    raise SystemExit(main())
