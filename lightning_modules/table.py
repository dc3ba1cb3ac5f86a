"""`python -m lightning_modules.table`: trains every program in its small form and writes the tables of README.md.

Each program is one line of `results.json`, replaced when that program is trained again; `--only NAME` trains some of
them, `--write` trains none and writes the tables from the lines that are there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
import yaml  # type: ignore[import-untyped]

import rnndiag
from lightning_modules.__main__ import run
from lightning_modules.markdown import table
from lightning_modules.programs import HERE, Entry, entries, entry
from rnndiag.errors import RnndiagError

RESULTS = HERE / "results.json"
README = HERE / "README.md"
ROWS = HERE / "rows.yaml"
THREADS = 1
NOT_MEASURED = "–"


@dataclass(frozen=True)
class Row:
    """What one program reached, in its small form."""

    parameters: int
    loss: float
    chance: float
    solved: float
    metric: str
    score: float
    chance_score: float
    reach: str
    """Steps, of the layer that reaches least far; or why there is no number."""
    steps: int
    """T: the longest sequence, so that a reach can be judged."""
    window: str
    """The recommended window in steps."""
    verdict: str
    """Of the proofs: exact, inexact or unverified, the worst over the recordings."""
    seconds: float
    """CPU time of the whole command after the imports, the recording and the report included."""


def train(program: Entry) -> Row:
    """Fit the small form as the command line does, and read what it recorded."""
    began = time.process_time()
    cli = run([*program.arguments(small=True), "--trainer.enable_progress_bar=false"])
    seconds = time.process_time() - began
    trained, task = cli.model, cli.model.task
    callbacks: list[object] = getattr(cli.trainer, "callbacks")  # noqa: B009  (Lightning does not type it)
    (diagnostics,) = (one for one in callbacks if isinstance(one, rnndiag.GradientDiagnostics))
    recorded = rnndiag.open_run(diagnostics.run_dir)
    return Row(
        parameters=sum(parameter.numel() for parameter in trained.parameters()),
        loss=trained.results["loss"],
        chance=task.chance,
        solved=task.solved,
        metric=task.metric,
        score=trained.results[task.metric],
        chance_score=task.chance_metric,
        reach=_reach(recorded),
        steps=_longest(recorded),
        window=_window(recorded),
        verdict=_verdict(recorded),
        seconds=seconds,
    )


def _longest(recorded: rnndiag.Run) -> int:
    lengths = [recorded["valid_samples", layer].values.shape[-1] for layer in recorded.layers]
    return max(lengths, default=0)


def _reach(recorded: rnndiag.Run) -> str:
    try:
        return recorded.reach(0.9).text
    except RnndiagError:
        return NOT_MEASURED


def _window(recorded: rnndiag.Run) -> str:
    try:
        advice = recorded.window()
    except RnndiagError:
        return NOT_MEASURED
    return f"{advice.steps:.0f}" if math.isfinite(advice.steps) else NOT_MEASURED


def _verdict(recorded: rnndiag.Run) -> str:
    seen = {recording.verdict for recording in recorded.recordings if recording.phase == "train"}
    order = ("inexact", "unverified", "exact")
    return next((word for word in order if word in seen), NOT_MEASURED)


def stored() -> dict[str, Row]:
    """The lines that are there."""
    if not RESULTS.exists():
        return {}
    return {
        name: Row(**row) for name, row in json.loads(RESULTS.read_text(encoding="utf-8")).items()
    }


def store(rows: Mapping[str, Row]) -> None:
    """One line a program."""
    lines = (f"{json.dumps(name)}: {json.dumps(asdict(rows[name]))}" for name in sorted(rows))
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def programs_table(rows: Mapping[str, Row]) -> str:
    """Every program and what it reached."""
    head = (
        *("program", "parameters", "loss", "chance", "solved at", "metric (chance)", "T"),
        *("reach", "window", "proofs", "CPU seconds"),
    )
    return table(head, (_cells(name, rows[name]) for name in entries() if name in rows))


def _cells(name: str, row: Row) -> Sequence[str]:
    mark = "**" if row.loss <= row.solved else ""
    return (
        f"`{name}`",
        f"{row.parameters:,}",
        f"{mark}{row.loss:.4f}{mark}",
        f"{row.chance:.3f}",
        f"{row.solved:.3f}",
        f"{row.metric} {row.score:.3f} ({row.chance_score:.3f})",
        str(row.steps),
        row.reach if row.steps > 1 else NOT_MEASURED,
        row.window if row.steps > 1 else NOT_MEASURED,
        row.verdict,
        f"{row.seconds:.0f}",
    )


def lectures_table() -> str:
    """Every row of the lectures and the programs that run it."""
    lines = []
    for number, row in yaml.safe_load(ROWS.read_text(encoding="utf-8")).items():
        runs = [f"`{name}`" for name, program in entries().items() if number in program.lectures]
        where = ", ".join([*runs, *([row["also"]] if "also" in row else [])])
        lines.append((str(number), row["system"], where))
    return table(("row", "system", "programs, commands"), lines).replace("---:", "---")


def commands_table() -> str:
    """Every program's sentence and command."""
    rows = ((f"`{name}`", item.title, f"`{item.command()}`") for name, item in entries().items())
    return table(("program", "what it shows", "command"), rows).replace("---:", "---")


def write(rows: Mapping[str, Row]) -> None:
    """Put the tables between their marks in README.md."""
    text = README.read_text(encoding="utf-8")
    tables = {
        "programs": programs_table(rows),
        "lectures": lectures_table(),
        "commands": commands_table(),
    }
    for name, made in tables.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}{made}{end}{after}"
    README.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Train, store, write."""
    parser = argparse.ArgumentParser(prog="python -m lightning_modules.table", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train these programs only")
    parser.add_argument("--write", action="store_true", help="train none, write the tables")
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    os.chdir(HERE.parent)
    names = [] if options.write else options.only or list(entries())
    try:
        for name in names:
            row = train(entry(name))
            print(
                f"{name}: loss {row.loss:.4f}, reach {row.reach}, {row.seconds:.0f} s of CPU",
                flush=True,
            )
            store({**stored(), name: row})
        write(stored())
    except RnndiagError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
