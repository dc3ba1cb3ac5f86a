"""Runs all benchmarks but the long trials and writes a page and a JSON file: what was promised, and what is so.

    python -m benchmarks.run_all [--quick] [--device cpu] [--only record store] [-o benchmarks/results]

Each benchmark is a script of its own beside this file; the first line of its docstring is the question it answers, and
all its ratios are taken within one process from interleaved runs. The page begins with the promised numbers of
benchmarks/promises.py: least, median and most over the rounds, the limit, HELD or MISSED. `--quick`
runs each in its small form, under three minutes in all, and marks what was not taken at the promised size. The exit
status is 1 where a promise was missed at that size, was not measured in a whole run, or a benchmark broke down.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.promises import FILE, PROMISES, Promise, Told, read_told

HERE = Path(__file__).parent

QUICK: dict[str, list[str]] = {
    "jacobians": ["--steps", "40", "--units", "48", "--trajectory", "300", "--rounds", "3"],
    "record": ["--steps", "60", "--hidden", "64", "--rounds", "5"],
    "store": ["--recordings", "300"],
    "gate": ["--recordings", "200", "--repeats", "1"],
    "seam": ["--rounds", "2"],
    "peak_memory": ["--sizes", "small"],
}
"""Arguments of the small form. A benchmark without an entry runs with `--quick` if it knows that word, else not."""

BY_NAME = ("auto_training", "auto_window", "diagnosis", "mutations", "need", "soak", "whole_fits")
"""Trials of half an hour to many hours: they run only if `--only` names them, or by themselves."""

WHOLE: dict[str, list[str]] = {"overhead": ["--every-step", "--hooks"]}
"""Arguments of the whole form beyond the benchmark's own defaults."""

ON_DEVICE = ("device",)
"""Benchmarks that take `--device`; the others run where they are told by their own words, on the CPU."""


@dataclass(frozen=True)
class Result:
    """One benchmark's run."""

    name: str
    question: str
    command: str
    seconds: float
    exit_status: int
    output: str
    told: list[Told]

    @property
    def broke(self) -> bool:
        """Whether it ended without its numbers: not by a missed limit."""
        missed = any(one.held is False for one in self.told)
        return self.exit_status not in (0, 1) or (self.exit_status == 1 and not missed)


def scripts(only: list[str], quick: bool = False) -> list[Path]:
    """The benchmarks named, or all but those of BY_NAME; in the small form those that have one."""
    found = sorted(
        path
        for path in HERE.glob("*.py")
        if path.stem != "run_all" and 'if __name__ == "__main__":' in path.read_text()
    )
    unknown = set(only) - {p.stem for p in found}
    if unknown:
        raise SystemExit(
            f"no benchmark is called {', '.join(sorted(unknown))}: {', '.join(p.stem for p in found)}"
        )
    if only:
        return [p for p in found if p.stem in only]
    return [p for p in found if p.stem not in BY_NAME and not (quick and small_form(p) is None)]


def small_form(script: Path) -> list[str] | None:
    """Arguments of a benchmark's small form; None if it has none."""
    return QUICK.get(script.stem, ["--quick"] if '"--quick"' in script.read_text() else None)


def question(script: Path) -> str:
    """The first line of a script's docstring."""
    return (ast.get_docstring(ast.parse(script.read_text())) or script.stem).splitlines()[0]


def arguments(script: Path, quick: bool, device: str) -> list[str]:
    """What the script is called with."""
    words = ["--device", device] if script.stem in ON_DEVICE else []
    if quick:
        words += small_form(script) or []
        words += ["--threads", "1"] if '"--threads"' in script.read_text() else []
    return words if quick else words + WHOLE.get(script.stem, [])


def run(script: Path, words: list[str]) -> Result:
    """Run one benchmark in a process of its own."""
    command = [sys.executable, str(script), *words]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        numbers = Path(folder) / "told"
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent), FILE: str(numbers)}
        environment.pop("OMP_NUM_THREADS", None)  # a benchmark sets its own number of threads
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
        )
        told = read_told(numbers)
    output = done.stdout + (f"\n{done.stderr}" if done.returncode else "")
    shown = " ".join(["python", f"benchmarks/{script.name}", *words])
    seconds = time.perf_counter() - started
    return Result(
        script.stem, question(script), shown, seconds, done.returncode, output.strip(), told
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


def cell(text: str) -> str:
    """Text within a Markdown table."""
    return text.replace("|", "\\|")


def number(value: float) -> str:
    """Four digits of it."""
    return f"{value:.4g}"


def verdict(promise: Promise, told: Told | None) -> str:
    """HELD, MISSED or NOT MEASURED; not judged in a small form, where the promise speaks of a larger one."""
    if told is None:
        return "NOT MEASURED"
    if not told.whole:
        return "small form: not judged"
    return "HELD" if told.held else "MISSED"


def promised(results: list[Result]) -> list[tuple[Promise, Told | None]]:
    """Every promise of a benchmark that ran, and what was told of it."""
    ran = {result.name for result in results}
    told = {one.name: one for result in results for one in result.told}
    return [(p, told.get(p.name)) for p in PROMISES.values() if p.benchmark in ran]


def promise_table(results: list[Result]) -> list[str]:
    """The promised numbers, held or missed."""
    lines = [
        "| promised | benchmark | limit | min | median | max | |",
        "|---|---|---|--:|--:|--:|---|",
    ]
    for promise, told in promised(results):
        values = [told.least, told.median, told.most] if told else []
        shown = [number(value) for value in values] or ["–"] * 3
        lines.append(
            f"| {cell(promise.name)} | [{promise.benchmark}](#{promise.benchmark}) | {promise.text} | "
            f"{' | '.join(shown)} | {verdict(promise, told)} |"
        )
    return lines


def other_table(results: list[Result]) -> list[str]:
    """Numbers without a promise: rivals, growth, spread."""
    lines = ["| measured | benchmark | unit | min | median | max |", "|---|---|---|--:|--:|--:|"]
    for result in results:
        for one in result.told:
            if one.name not in PROMISES:
                values = " | ".join(map(number, (one.least, one.median, one.most)))
                name = f"[{result.name}](#{result.name})"
                lines.append(f"| {cell(one.name)} | {name} | {one.unit or '–'} | {values} |")
    return lines


def page(facts: dict[str, str], results: list[Result]) -> str:
    """One Markdown page."""
    lines = ["# Benchmarks", "", ", ".join(f"{key} {value}" for key, value in facts.items()), ""]
    lines += ["## What is promised", "", *promise_table(results), ""]
    lines += ["## What else was measured", "", *other_table(results), ""]
    lines += ["## The benchmarks", "", "| benchmark | it asks | seconds | |", "|---|---|--:|---|"]
    lines += [
        f"| [{r.name}](#{r.name}) | {r.question} | {r.seconds:.0f} | {'BROKE DOWN' if r.broke else ''} |"
        for r in results
    ]
    for r in results:
        lines += ["", f"## {r.name}", "", f"`{r.command}`", "", "```", r.output, "```"]
    return "\n".join(lines) + "\n"


def as_json(facts: dict[str, str], results: list[Result]) -> str:
    """The same as data."""
    rows = [
        {
            **asdict(promise),
            "told": asdict(told) if told else None,
            "verdict": verdict(promise, told),
        }
        for promise, told in promised(results)
    ]
    record = {"machine": facts, "promises": rows, "results": [asdict(r) for r in results]}
    return json.dumps(record, indent=1) + "\n"


def failed(results: list[Result], quick: bool) -> list[str]:
    """What makes the exit status 1."""
    bad = [f"{r.name} broke down" for r in results if r.broke]
    for promise, told in promised(results):
        word = verdict(promise, told)
        if word == "MISSED" or (word == "NOT MEASURED" and not quick):
            bad.append(f"{promise.name}: {word}")
    return bad


def require_device(device: str) -> None:
    """Stop with a sentence where there is no such device."""
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(
            f"--device {device}: torch {torch.__version__} finds no CUDA device here. "
            "Run the benchmarks on the CPU (without DEVICE), or where there is a GPU and a CUDA build of torch."
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small form of each")
    parser.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda"), help="for the table of absolute times"
    )
    parser.add_argument("--only", nargs="+", default=[], help="names of benchmarks")
    parser.add_argument(
        "-o", "--output", type=Path, default=HERE / "results", help="without ending"
    )
    args = parser.parse_args()
    require_device(args.device)
    results = []
    for script in scripts(args.only, args.quick):
        print(f"{script.stem}: {question(script)}", flush=True)
        result = run(script, arguments(script, args.quick, args.device))
        print(f"  {result.seconds:.0f} s{', BROKE DOWN' if result.broke else ''}", flush=True)
        results.append(result)
    facts = {**machine(), "form": "quick" if args.quick else "whole", "device": args.device}
    args.output.with_suffix(".md").write_text(page(facts, results), encoding="utf-8")
    args.output.with_suffix(".json").write_text(as_json(facts, results), encoding="utf-8")
    print("\n".join(["", *promise_table(results), ""]))
    print(f"{args.output.with_suffix('.md')} and {args.output.with_suffix('.json')}")
    bad = failed(results, args.quick)
    for one in bad:
        print(one, file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())
