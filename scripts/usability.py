"""What do the end screen and the heading of the page say of ten planted faults?

Run: python scripts/usability.py [--folder DIR]

Prints, for each fault, what was planted, the first lines of the end screen, and the heading of the page, as Markdown:
the sections of docs/usability.md. Programs that `benchmarks/diagnosis.py` has trained into the same folder are not
trained again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rnndiag
from benchmarks.trial.fit import Fitted, fitted
from benchmarks.trial.program import Program
from rnndiag.health.diagnosis.finding import paragraphs
from rnndiag.recorder.output.screen import diagnosis_lines
from rnndiag.report.write_report import report_context

CASES = {
    "Forget bias of -5": Program("recall", "lstm", forget_bias=-5.0),
    "State detached every 4 steps": Program("recall", "gru", detach=4),
    "Only the last 12 steps are given, 24 are needed": Program(
        "recall", "tanh", last_steps=12, needs=24
    ),
    "`batch_first` forgotten": Program("recall", "lstm", batch_first=False),
    "Recurrent weights frozen": Program("recall", "gru", frozen=True),
    "Biases of -4 in a relu RNN": Program("recall", "relu", bias=-4.0),
    "Orthogonal W_hh times 0.2": Program("recall", "relu", gain=0.2),
    "Clipping at 1e-3 with momentum SGD": Program(
        "xor", "lstm", optimizer="momentum", rate=0.05, clip=1e-3
    ),
    "Learning rate of 20 with momentum SGD": Program(
        "xor", "lstm", optimizer="momentum", rate=20.0
    ),
    "Learning rate of 1e-6": Program("copy-lag", "lstm", rate=1e-6),
}


def section(planted: str, one: Fitted) -> str:
    """One fault as Markdown."""
    run, program = rnndiag.open_run(one.run_dir), one.program
    found, heading = rnndiag.diagnose(run), report_context(run).verdict
    screen = "\n".join(diagnosis_lines(found))
    page = f"**{heading.word}** {heading.sentence} {heading.advice}".strip()
    word, told = paragraphs(found)[:2]
    same = page == f"**{word}** {told}"
    return (
        f"## {planted}\n\nCell {program.cell}, {program.hidden} units, task {program.task}. The loss was "
        f"{one.first_loss:.3g} at the start and {one.last_loss:.3g} at the end.\n\n```text\n{screen}\n```\n\n"
        + (
            "The page has the same heading.\n"
            if same
            else f"The page is headed otherwise: {page}\n"
        )
    )


def main() -> None:
    """Print every section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/trial"))
    folder = parser.parse_args().folder
    for planted, program in CASES.items():
        print(section(planted, fitted(program, folder)), flush=True)


if __name__ == "__main__":
    main()
