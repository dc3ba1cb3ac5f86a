"""How much do healthy runs differ? The study behind the default bounds: `python benchmarks/noise.py [--quick]`.

Seeds, batch sizes and thread counts over cells RNN, LSTM, GRU and two tasks. Each number is the standard deviation over
runs as a share of their mean. Printed as Markdown; the last column is the widest, which the defaults must cover.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.small_programs import Program, train
from rnndiag.health.baseline import run_values
from rnndiag.health.config import Config
from rnndiag.health.rule import all_rules
from rnndiag.run.run import Run

CELLS, TASKS = ("RNN", "LSTM", "GRU"), ("delay", "adding")
SEEDS, BATCHES, THREADS = 5, (16, 64), (1, 2)
STEPS = 120
RAW = "raw gradient norm"

Row = dict[str, float]


def numbers_of(run: Run) -> Row:
    """Every comparable check's number, and for contrast the gradient's raw norm, of the one layer."""
    found = {
        check: next(iter(layers.values())) for check, layers in run_values(run, Config()).items()
    }
    norms = run.select("total_gradient_norm", steps=run.judged()).values
    found[RAW] = float(statistics.median(norms.tolist()))
    return found


def spread(rows: Sequence[Row]) -> Row:
    """Standard deviation over mean of each number; where the mean is below the rule's floor, over the floor."""
    result = {}
    for name in rows[0]:
        values = [row[name] for row in rows if name in row]
        floor = all_rules()[name].floor if name in all_rules() else 0.0
        size = max(abs(statistics.fmean(values)), floor)
        result[name] = statistics.stdev(values) / size if len(values) > 1 and size else math.nan
    return result


def study(
    cell: str, task: str, folder: Path, seeds: int = SEEDS, steps: int = STEPS
) -> Mapping[str, Row]:
    """What varies -> the spread of each number."""
    program = Program(cell, task, steps=steps)
    numbers: dict[str, list[Row]] = {
        "seeds": [],
        "batches": [],
        "threads": [],
        "the same again": [],
    }
    for seed in range(seeds):
        numbers["seeds"].append(numbers_of(train(program, folder / f"{cell}-{task}-{seed}", seed)))
    for size in BATCHES if seeds == SEEDS else ():
        run = train(replace(program, batch_size=size), folder / f"{cell}-{task}-b{size}")
        numbers["batches"].append(numbers_of(run))
    numbers["batches"].append(numbers["seeds"][0])
    for threads in THREADS:
        torch.set_num_threads(threads)
        numbers["threads"].append(numbers_of(train(program, folder / f"{cell}-{task}-t{threads}")))
    torch.set_num_threads(1)
    again = numbers_of(train(program, folder / f"{cell}-{task}-again"))
    numbers["the same again"] = [numbers["seeds"][0], again]
    return {what: spread(rows) for what, rows in numbers.items()}


def table(found: Mapping[str, Mapping[str, Row]], what: str) -> str:
    """Markdown: a row a number, a column a program, the widest last."""
    programs = list(found)
    names = list(dict.fromkeys(name for one in found.values() for name in one[what]))
    lines = [
        f"| {what} | {' | '.join(programs)} | widest |",
        "|---|" + "---:|" * (len(programs) + 1),
    ]
    for name in names:
        values = [found[program][what].get(name, math.nan) for program in programs]
        known = [value for value in values if not math.isnan(value)]
        cells = [*values, max(known, default=math.nan)]
        shown = " | ".join("" if math.isnan(value) else f"{100 * value:.2g} %" for value in cells)
        lines.append(f"| {name} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Train, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="also write the numbers")
    parser.add_argument(
        "--quick", action="store_true", help="two seeds of one task, the plain RNN, 20 steps"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for task in TASKS[:1] if args.quick else TASKS:
            for cell in CELLS[:1] if args.quick else CELLS:
                found[f"{cell}, {task}"] = study(
                    cell, task, Path(folder), *((2, 20) if args.quick else ())
                )
    for what in next(iter(found.values())):
        print(table(found, what))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
