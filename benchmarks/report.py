"""What a report takes: seconds, bytes and memory of a default run, of many recordings, long ones, and many layers.

    python benchmarks/report.py [--quick] [--json FILE] [--keep DIR]

Each page is made in a process of its own. Each limit is a promise, held by processor seconds so that a busy machine
does not break it; the exit status is 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import report_runs  # noqa: E402 - it lies beside the tests

from rnndiag.run.measurement import Measurement  # noqa: E402

MATRIX = 250
"""Rows of the matrix that is stored of a longer sequence."""


@dataclass(frozen=True)
class Case:
    """One run, and what its page may take."""

    name: str
    recordings: int
    layers: int
    T: int
    most_bytes: float
    most_seconds: float
    most_memory: float = float("inf")
    matrix_every: int = 1


CASES = (
    Case("default", 50, 2, 200, 300e3, 2.0),
    Case("many recordings", 5000, 4, 200, 1e6, 15.0, 1.5e9, matrix_every=100),
    Case("long", 4, 1, 10_000, 1e6, 15.0, 1.5e9),
    Case("many layers", 6, 40, 100, 1e6, 15.0, 1.5e9),
)

CHILD = """
import resource, sys, time
begun = time.perf_counter()
from rnndiag.report.write_report import write_report
page = write_report(sys.argv[1], sys.argv[2])
seconds = time.perf_counter() - begun
print(time.process_time(), seconds, page.stat().st_size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def measure(case: Case) -> Callable[[str, int, int], list[Measurement]]:
    """The content of a layer: made for a hundred different steps, then again and again."""

    @cache
    def content(layer: str, step: int) -> tuple[Measurement, ...]:
        short = report_runs.layer_content(layer, step, min(case.T, MATRIX))
        if case.T <= MATRIX:
            return tuple(short)
        matrix = next(m for m in short if m.name == "credit_matrix")
        labels = tuple(str(k * (case.T // MATRIX)) for k in range(MATRIX))
        coarse = Measurement.of(
            "credit_matrix", matrix.values, layer, {"output": labels, "source": labels}
        )
        return (*report_runs.long_layer_content(layer, step, case.T), coarse)

    def of(layer: str, step: int, T: int) -> list[Measurement]:
        found = content(layer, step % 100)
        return [m for m in found if m.name != "credit_matrix" or step % case.matrix_every == 0]

    return of


def write(case: Case, folder: Path) -> Path:
    """The case's run."""
    layers: Iterable[str] = [f"encoder.l{k}" for k in range(case.layers)]
    steps = range(case.recordings)
    return report_runs.write(folder, steps, case.T, layers, measure=measure(case))


def timed(run: Path, page: Path) -> tuple[float, float, float, float]:
    """Processor seconds (start of Python included), seconds by the clock, bytes and peak memory; best of three."""
    found = []
    for _ in range(3):
        told = subprocess.run(
            [sys.executable, "-c", CHILD, str(run), str(page)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        found.append(tuple(map(float, told.stdout.split())))
        if found[-1][0] > 5:
            break
    best = min(found)
    return best[0], best[1], best[2], best[3]


def main() -> int:
    """Measure every case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the default run alone")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--keep", type=Path, help="keep the pages in this folder")
    chosen = parser.parse_args()
    rows, missed = [], 0
    print(
        "| run | recordings x layers x T | processor s | clock s | page, kB | memory, MB | within limits |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        pages = chosen.keep or Path(scratch)
        pages.mkdir(parents=True, exist_ok=True)
        for case in CASES[:1] if chosen.quick else CASES:
            run = write(case, Path(scratch) / case.name.replace(" ", "-"))
            seconds, clock, size, memory = timed(run, pages / f"{run.name}.html")
            well = (
                size <= case.most_bytes
                and seconds <= case.most_seconds
                and memory <= case.most_memory
            )
            missed += not well
            shape = f"{case.recordings} x {case.layers} x {case.T}"
            told = f"{seconds:.2f} | {clock:.2f} | {size / 1e3:.0f} | {memory / 1e6:.0f} | {'yes' if well else 'NO'} |"
            print(f"| {case.name} | {shape} | {told}", flush=True)
            rows.append(
                {
                    "run": case.name,
                    "recordings": case.recordings,
                    "layers": case.layers,
                    "T": case.T,
                    "seconds": float(np.round(seconds, 3)),
                    "clock": float(np.round(clock, 3)),
                    "bytes": size,
                    "memory": memory,
                    "within limits": well,
                }
            )
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
