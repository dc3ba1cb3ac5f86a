"""What do opening, checking and reporting take: a default run, 5,000 recordings, T = 10,000, 40 layers?

    python benchmarks/report.py [--quick] [--json FILE] [--keep DIR]

Opening, checking and the page have a process of their own each. Each limit is a promise, held by processor seconds so
that a busy machine does not break it; the exit status is 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import report_runs  # noqa: E402 - it lies beside the tests

from benchmarks.promises import tell  # noqa: E402
from rnndiag.store.measurement import Measurement  # noqa: E402

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
    Case("long", 5, 1, 10_000, 1e6, 15.0, 1.5e9),
    Case("many layers", 6, 40, 100, 1e6, 15.0, 1.5e9),
)

CHILD = """
import resource, sys, time
begun = time.perf_counter()
{work}
seconds = time.perf_counter() - begun
print(time.process_time(), seconds, size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""

WORK = {
    "open": "import rnndiag; size = len(rnndiag.open_run(sys.argv[1]))",
    "check": "import rnndiag; size = len(rnndiag.check(rnndiag.open_run(sys.argv[1])))",
    "report": (
        "from rnndiag.report.write_report import write_report; "
        "size = write_report(sys.argv[1], sys.argv[2]).stat().st_size"
    ),
}
"""What is timed, each in a process of its own, the start of Python included."""


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


@dataclass(frozen=True)
class Taken:
    """What one process took."""

    seconds: float
    """Of the processor, the start of Python included."""
    clock: float
    size: float
    memory: float


def timed(work: str, run: Path, page: Path) -> list[Taken]:
    """Three rounds, or one where it takes long."""
    found: list[Taken] = []
    while len(found) < 3 and not (found and found[-1].seconds > 5):
        told = subprocess.run(
            [sys.executable, "-c", CHILD.format(work=WORK[work]), str(run), str(page)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        found.append(Taken(*map(float, told.stdout.split())))
    return found


PROMISED = {
    "default": {"size": "default page, size", "seconds": "default page, time"},
    "many recordings": {
        "seconds": "page of 5,000 recordings, time",
        "memory": "page of 5,000 recordings, memory",
    },
}
"""The promised numbers that a case's page gives."""


def tell_all(case: Case, taken: dict[str, list[Taken]]) -> None:
    """Tell a case's numbers."""
    promised = PROMISED.get(case.name, {})
    for work, rounds in taken.items():
        values = {
            "seconds": [one.seconds for one in rounds],
            "memory": [one.memory / 1e6 for one in rounds],
        }
        if work == "report":
            values["size"] = [one.size / 1e3 for one in rounds]
        for what, unit in (("seconds", "processor s"), ("memory", "MB"), ("size", "kB")):
            if what in values:
                known = promised.get(what) if work == "report" else None
                tell(known or f"{case.name}, {work}: {what}", values[what], unit=unit)


def main() -> int:
    """Measure every case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the default run alone")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--keep", type=Path, help="keep the pages in this folder")
    chosen = parser.parse_args()
    rows, missed = [], 0
    print("Processor seconds of a cold process; memory at its peak.\n")
    print(
        "| run | recordings x layers x T | open, s | check, s | report, s (clock) | page, kB | memory, MB | in limits |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        pages = chosen.keep or Path(scratch)
        pages.mkdir(parents=True, exist_ok=True)
        for case in CASES[:1] if chosen.quick else CASES:
            run = write(case, Path(scratch) / case.name.replace(" ", "-"))
            taken = {work: timed(work, run, pages / f"{run.name}.html") for work in WORK}
            tell_all(case, taken)
            best = {work: min(one, key=lambda t: t.seconds) for work, one in taken.items()}
            page = best["report"]
            well = (
                page.size <= case.most_bytes
                and page.seconds <= case.most_seconds
                and page.memory <= case.most_memory
            )
            missed += not well
            shape = f"{case.recordings} x {case.layers} x {case.T}"
            told = f"{best['open'].seconds:.2f} | {best['check'].seconds:.2f} | {page.seconds:.2f} ({page.clock:.2f})"
            size = f"{page.size / 1e3:.0f} | {page.memory / 1e6:.0f}"
            print(
                f"| {case.name} | {shape} | {told} | {size} | {'yes' if well else 'NO'} |",
                flush=True,
            )
            rows.append(
                {"run": case.name, **{work: asdict(one) for work, one in best.items()}, "ok": well}
            )
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
