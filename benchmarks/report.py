"""What do opening, checking and reporting take: a default run, 5,000 recordings, T = 10,000, 40 and 2,000 layers?

    python benchmarks/report.py [--quick] [--json FILE] [--keep DIR]

Opening, checking, showing and the page have a process of their own each. Each limit is a promise, held by processor
seconds so that a busy machine does not break it; the exit status is 1 if one is missed.
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

import numpy as np  # noqa: E402
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
    cells: bool = False
    """Whether each layer is a cell called in a loop, recorded as the callback does without its Jacobian groups."""


CASES = (
    Case("default", 50, 2, 200, 300e3, 2.0),
    Case("many recordings", 5000, 4, 200, 1e6, 15.0, 1.5e9, matrix_every=100),
    Case("long", 5, 1, 10_000, 1e6, 15.0, 1.5e9),
    Case("many layers", 6, 40, 100, 1e6, 15.0, 1.5e9),
    Case("many cells", 8, 2000, 20, 3e6, 5.0, 1.5e9, cells=True),
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
    "show": (
        "import contextlib, io, rnndiag.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()) as told: rnndiag.cli.main(['show', sys.argv[1]])\n"
        "size = len(told.getvalue())"
    ),
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


def cell_content(layer: str, step: int, T: int) -> list[Measurement]:
    """Of each cell 32 arrays, as many as fit: a recording holds 65,535. Credit decays differently in each cell."""
    a = 0.5 + 0.45 * (int(layer.rpartition(".")[2]) % 97) / 97 - 0.001 * step
    t, lags = np.arange(T), np.arange(T + 1)
    norms = np.stack([(k + 1) * a ** (T - 1 - t) for k in range(4)])
    spread, tail = np.array([0.0, -0.4, -0.2, 0.0, 0.2, 0.4]), a**lags * (lags < T)
    of, by, gate = Measurement.of, {"parameter": report_runs.PARAMETERS}, {"gate": ("i", "f", "o")}
    from_zero = {"lag": tuple(map(str, lags))}
    scalars = (
        "reach_error",
        "gradient_mean_square",
        "noise",
        "full_gradient_norm",
        "update_ratio",
        "weight_norm",
    )
    return [
        of("credit_profile", np.log(a) * t[:, None] + spread * (t > 0)[:, None], layer),
        of("valid_samples", np.full(T, 4), layer),
        *(of(f"nonfinite_{what}", np.zeros(T), layer) for what in ("states", "adjoints")),
        *(
            of(name, np.tile(norms[0][:, None], (1, 4)), layer)
            for name in ("adjoint_norm", "state_norm", "direct_gradient_norm")
        ),
        of("contribution_norm", norms, layer, by),
        of("contribution_alignment", np.tile(np.cos(t / 5), (4, 1)), layer, by),
        of("gate_contribution_norm", norms, layer, {"gate": report_runs.GATES}),
        of("adjoint_part_norm", norms[:2], layer, {"part": ("h", "c")}),
        *(of(name, np.full(4, 3e-7), layer, by) for name in ("gradient_norm", "residual")),
        of("window_bias", tail, layer, from_zero),
        of("window_cosine", np.sqrt(1 - tail**2), layer, from_zero),
        of("tail_mean_square", tail**2, layer, from_zero),
        of("tail_mean_square_error", 0.01 * tail**2, layer, from_zero),
        of("chunk_size", np.array(report_runs.CHUNKS), layer),
        of("chunk_bias", np.array([a ** (k / 2) for k in report_runs.CHUNKS]), layer),
        *(of(f"gate_{end}", np.array([0.1, 0.2, 0.3]), layer, gate) for end in ("low", "high")),
        of("gate_mean", np.full((3, T), 0.5), layer, gate),
        of("forget_time", np.full(4, 2.0), layer),
        *(of(name, 0.5, layer) for name in (*scalars, "weight_growth", "swing", "input_spread")),
    ]


def write(case: Case, folder: Path) -> Path:
    """The case's run."""
    name = "cells.{}" if case.cells else "encoder.l{}"
    layers: Iterable[str] = [name.format(k) for k in range(case.layers)]
    content = cell_content if case.cells else measure(case)
    facts = {"layers": {layer: {"cell": "lstm", "hidden": 8} for layer in layers}}
    provenance = {**report_runs.FACTS, "model": facts} if case.cells else None
    steps = range(case.recordings)
    return report_runs.write(folder, steps, case.T, layers, provenance=provenance, measure=content)


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
        found.append(Taken(*map(float, told.stdout.split()[-4:])))
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
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--keep", type=Path, help="keep the pages in this folder")
    chosen = parser.parse_args()
    rows, missed = [], 0
    print("Processor seconds of a cold process; memory at its peak.\n")
    print(
        "| run | recordings x layers x T | open, s | check, s | show, s | report, s (clock) | page, kB | memory, MB "
        "| in limits |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        pages = chosen.keep or Path(scratch)
        pages.mkdir(parents=True, exist_ok=True)
        names = chosen.cases or [case.name for case in (CASES[:1] if chosen.quick else CASES)]
        for case in (case for case in CASES if case.name in names):
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
            seconds = [f"{best[work].seconds:.2f}" for work in WORK]
            told = f"{' | '.join(seconds)} ({page.clock:.2f})"
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
