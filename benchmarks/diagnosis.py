"""Is the planted fault named first, is nothing named in healthy nets, and does the first remedy cure?

Run: python benchmarks/diagnosis.py [--half development|held-out] [--cases N] [--seeds N] [--folder DIR] [--minutes M]
     [--no-cures] [--lines]

Every case is a program (trial/program.py) with one fault (trial/faults.py) in one task (trial/tasks.py), trained
with the callback at its defaults, beside the same program without the fault. A fault that leaves the net 80 % of the
healthy net's fall of the loss is harmless: the right answer there is no cause. The first remedy of others is applied
by a program (trial/cures.py), which trains again with as many steps. A control counts if it learns its task: at least
80 % of the fall of the best net of that task.

Runs are kept in the folder, so that rules can be changed and judged without training. Thresholds may be chosen on the
development tasks; the figures that count are those of the held-out ones.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.trial.cases import Case, controls, planted, sample, shaped
from benchmarks.trial.cures import apply
from benchmarks.trial.fit import Fitted, diagnosis_of, fitted
from benchmarks.trial.outcome import ENOUGH, NAMES_NOTHING, Outcome, fall_share, table


def outcomes(cases: Iterable[Case], folder: Path, cures: bool, deadline: float) -> list[Outcome]:
    """Try cases until the CPU time is up."""
    found: list[Outcome] = []
    for case in cases:
        if time.process_time() > deadline:
            print("out of time: the rest is left out", file=sys.stderr)
            break
        healthy, one = fitted(case.healthy, folder), fitted(case.program, folder)
        outcome = Outcome(case, one, diagnosis_of(one), fall_share(one, healthy))
        if cures and outcome.hurt and outcome.first not in NAMES_NOTHING:
            outcome = replace(outcome, cured=_cured(outcome, healthy, folder))
        found.append(outcome)
        print(outcome.line(), flush=True)
    return found


def _cured(outcome: Outcome, healthy: Fitted, folder: Path) -> bool:
    remedy = outcome.diagnosis.causes[0].remedy
    repaired = None if remedy is None else apply(outcome.case.program, remedy)
    if repaired is None:
        return False
    return fall_share(fitted(repaired, folder), healthy) >= ENOUGH


def learning_controls(found: list[Outcome]) -> list[Outcome]:
    """Without the controls of programs that do not learn their task: they are not healthy."""
    best: dict[str, Fitted] = {}
    for one in found:
        if one.control and one.case.kind in ("learned", "local"):
            task = one.case.program.task
            if task not in best or one.fitted.last_loss < best[task].last_loss:
                best[task] = one.fitted

    def learns(one: Outcome) -> bool:
        if not one.control or one.case.program.task not in best:
            return True
        # a fit cut short is judged by the whole one, which stands beside it
        whole = [
            o for o in found if o.control and o.case.program == one.case.program.but(steps=None)
        ]
        judged = whole[0].fitted if whole else one.fitted
        return fall_share(judged, best[one.case.program.task]) >= ENOUGH

    return [one for one in found if learns(one)]


def main() -> None:
    """Try the cases and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--half", choices=("development", "held-out"), default="held-out")
    parser.add_argument("--cases", type=int, default=100, help="cases with a fault, at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/trial"))
    parser.add_argument("--minutes", type=float, default=600.0, help="of CPU time")
    parser.add_argument("--no-cures", action="store_true")
    asked = parser.parse_args()
    held_out = asked.half == "held-out"
    faulty = sample(list(planted(held_out, asked.seeds)), asked.cases)
    healthy = sample(list(controls(held_out, asked.seeds)), asked.cases // 2)
    forms = sample(list(shaped(held_out)), asked.cases // 3)
    deadline = time.process_time() + 60 * asked.minutes
    mixed = [case for group in in_turns(faulty, healthy, forms) for case in group]
    found = outcomes(mixed, asked.folder, not asked.no_cures, deadline)
    print(f"\n{asked.half} tasks\n{table(learning_controls(found))}")


def in_turns(*groups: list[Case]) -> list[list[Case]]:
    """The groups in turns, each as fast as its length asks, so that a trial that is cut short has some of all."""
    longest = max(map(len, groups))
    turns: list[list[Case]] = []
    for turn in range(longest):
        share = [g[len(g) * turn // longest : len(g) * (turn + 1) // longest] for g in groups]
        turns.append([case for part in share for case in part])
    return turns


if __name__ == "__main__":
    main()
