"""Runs every benchmark, one after the other, and writes one Markdown page and one JSON file of what they printed.

    python -m benchmarks.run_all [--quick] [--device cpu] [--only record store] [-o benchmarks/results]

Each benchmark is a script of its own beside this file; the first line of its docstring is the question it answers, and
all its ratios are taken within one process from interleaved runs. `--quick` runs each in its small form, under three
minutes in all. A benchmark whose promised limit is missed exits with 1; the page says so, and so does the exit status.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent

QUICK: dict[str, list[str]] = {
    "jacobians": ["--steps", "40", "--units", "48", "--trajectory", "300", "--rounds", "3"],
    "record": ["--steps", "60", "--hidden", "64", "--rounds", "5"],
    "store": ["--recordings", "300"],
}
"""Arguments of the small form. A benchmark without an entry runs whole, or with `--quick` if it knows that word."""

ON_DEVICE = ("record", "truncation", "overhead", "jacobians")
"""Benchmarks that take `--device`, where they know that word."""


@dataclass(frozen=True)
class Result:
    """One benchmark's run."""

    name: str
    question: str
    command: str
    seconds: float
    exit_status: int
    output: str


def scripts(only: list[str]) -> list[Path]:
    """All benchmarks, or those named."""
    found = sorted(p for p in HERE.glob("*.py") if p.stem not in ("run_all", "__init__"))
    unknown = set(only) - {p.stem for p in found}
    if unknown:
        raise SystemExit(
            f"no benchmark is called {', '.join(sorted(unknown))}: {', '.join(p.stem for p in found)}"
        )
    return [p for p in found if not only or p.stem in only]


def question(script: Path) -> str:
    """The first line of a script's docstring."""
    return (ast.get_docstring(ast.parse(script.read_text())) or script.stem).splitlines()[0]


def arguments(script: Path, quick: bool, device: str) -> list[str]:
    """What the script is called with."""
    text = script.read_text()
    words = []
    if quick:
        words += QUICK.get(script.stem, ["--quick"] if '"--quick"' in text else [])
    if device != "cpu" and script.stem in ON_DEVICE and '"--device"' in text:
        words += ["--device", device]
    return words


def run(script: Path, words: list[str]) -> Result:
    """Run one benchmark in a process of its own."""
    command = [sys.executable, str(script), *words]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    environment.pop("OMP_NUM_THREADS", None)  # a benchmark sets its own number of threads
    started = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    output = done.stdout + (f"\n{done.stderr}" if done.returncode else "")
    shown = " ".join(["python", f"benchmarks/{script.name}", *words])
    return Result(
        script.stem,
        question(script),
        shown,
        time.perf_counter() - started,
        done.returncode,
        output.strip(),
    )


def machine() -> dict[str, str]:
    """What the numbers were taken on."""
    facts = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }
    wanted = ("rnndiag", "torch", "lightning", "pytorch-lightning", "numpy")
    return facts | {package: found for package in wanted if (found := installed(package))}


def installed(package: str) -> str:
    """Its version; empty where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def page(facts: dict[str, str], results: list[Result]) -> str:
    """One Markdown page."""
    lines = ["# Benchmarks", "", ", ".join(f"{key} {value}" for key, value in facts.items()), ""]
    lines += ["| benchmark | it asks | seconds | limits |", "|---|---|--:|---|"]
    lines += [
        f"| [{r.name}](#{r.name}) | {r.question} | {r.seconds:.0f} | {'kept' if r.exit_status == 0 else 'MISSED'} |"
        for r in results
    ]
    for r in results:
        lines += ["", f"## {r.name}", "", f"`{r.command}`", "", "```", r.output, "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small form of each")
    parser.add_argument(
        "--device", default="cpu", help="cpu or cuda, for those that run on a device"
    )
    parser.add_argument("--only", nargs="+", default=[], help="names of benchmarks")
    parser.add_argument(
        "-o", "--output", type=Path, default=HERE / "results", help="without ending"
    )
    args = parser.parse_args()
    results = []
    for script in scripts(args.only):
        print(f"{script.stem}: {question(script)}", flush=True)
        result = run(script, arguments(script, args.quick, args.device))
        print(f"  {result.seconds:.0f} s, exit status {result.exit_status}", flush=True)
        results.append(result)
    facts = {**machine(), "form": "quick" if args.quick else "whole", "device": args.device}
    args.output.with_suffix(".md").write_text(page(facts, results), encoding="utf-8")
    record = {"machine": facts, "results": [asdict(r) for r in results]}
    args.output.with_suffix(".json").write_text(
        json.dumps(record, indent=1) + "\n", encoding="utf-8"
    )
    print(f"{args.output.with_suffix('.md')} and {args.output.with_suffix('.json')}")
    return int(any(r.exit_status for r in results))


if __name__ == "__main__":
    raise SystemExit(main())
