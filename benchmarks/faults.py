"""Is each planted fault caught by the rule that is meant for it, and does the healthy program pass?

`python benchmarks/faults.py [--quick]` trains each program and prints which checks fail, as Markdown.

Each program has bounds such as its project would write them; the healthy run of each passes them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.promises import tell
from benchmarks.small_programs import Program, train
from rnndiag.health import check
from rnndiag.health.finding import Finding

EVERYONE: Mapping[str, Any] = {
    "decay": {"max": 1.0},
    "grad_spikes": {"max": 10},
    "clip_share": {"max": 0.5},
    "spectral_drift": {"max": 1.5},
    "saturation": {"max": 0.5},
}


@dataclass(frozen=True)
class Project:
    """A healthy program with the bounds that its authors allow it."""

    program: Program
    bounds: Mapping[str, Any]


PROJECTS: Mapping[str, Project] = {
    "RNN, short": Project(
        Program(steps=120, learning_rate=1e-3),
        {**EVERYONE, "reach": {"min": 12, "max": 33}, "spectral_radius": {"max": 1.3}},
    ),
    "RNN": Project(
        Program(),
        {**EVERYONE, "reach": {"min": 10, "max": 25}, "truncation_error": {"max": 0.1}},
    ),
    "LSTM": Project(
        Program("LSTM"),
        {**EVERYONE, "reach": {"min": 10, "max": 35}, "forget_gate": {"min": 0.3, "max": 0.95}},
    ),
    "ReLU RNN": Project(Program("ReLU RNN"), {**EVERYONE, "reach": {"min": 10, "max": 35}}),
}


@dataclass(frozen=True)
class Fault:
    """A planted fault, and the rule that is meant for it."""

    project: str
    changes: Mapping[str, Any]
    rule: str

    @property
    def program(self) -> Program:
        """The project's program with the fault."""
        return replace(PROJECTS[self.project].program, **self.changes)


FAULTS: Mapping[str, Fault] = {
    "recurrent gain 0.5": Fault("RNN, short", {"gain": 0.5}, "reach"),
    "recurrent gain 1.5": Fault("RNN, short", {"gain": 1.5}, "spectral_radius"),
    "window 5 of the 10 needed": Fault("RNN", {"window": 5}, "truncation_error"),
    "learning rate x 30": Fault("RNN", {"learning_rate": 9e-2}, "spectral_drift"),
    "time shuffled": Fault("RNN", {"shuffled": True}, "reach"),
    "clipping at 1e-3": Fault("RNN", {"clip": 1e-3}, "clip_share"),
    "NaN at step 30": Fault("RNN", {"nan_at": 30}, "nonfinite"),
    "forget bias -5": Fault("LSTM", {"forget_bias": -5.0}, "forget_gate"),
    "dead relu": Fault("ReLU RNN", {"bias": -5.0}, "dead_units"),
}


def findings_of(project: str, program: Program, folder: Path) -> list[Finding]:
    """Train the program and judge it by the project's bounds."""
    return check(train(program, folder), config={"checks": PROJECTS[project].bounds})


def failed(found: list[Finding]) -> list[str]:
    """The checks that failed, in the order in which they are told."""
    return list(dict.fromkeys(one.check for one in found if one.status == "fail"))


def main() -> int:
    """Print the table; 1 where a healthy program fails or a fault is missed by its rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the plain RNN and two of its faults")
    quick = parser.parse_args().quick
    projects = {name: one for name, one in PROJECTS.items() if not quick or name == "RNN"}
    faults = {name: one for name, one in FAULTS.items() if one.project in projects}
    if quick:
        faults = dict(list(faults.items())[:2])
    torch.set_num_threads(1)
    alarms = missed = 0
    print("| program | planted | the rule meant for it | checks that fail |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, project) in enumerate(projects.items()):
            found = failed(findings_of(name, project.program, Path(folder) / f"healthy{number}"))
            alarms += bool(found)
            print(f"| {name} | nothing | | {', '.join(found) or 'none'} |", flush=True)
        for number, (name, fault) in enumerate(faults.items()):
            found = failed(
                findings_of(fault.project, fault.program, Path(folder) / f"fault{number}")
            )
            missed += fault.rule not in found
            print(
                f"| {fault.project} | {name} | {fault.rule} | {', '.join(found) or 'none'} |",
                flush=True,
            )
    tell("healthy programs that fail", alarms, whole=not quick)
    tell("planted faults missed by their rule", missed, whole=not quick)
    return 1 if alarms or missed else 0


if __name__ == "__main__":
    sys.exit(main())
