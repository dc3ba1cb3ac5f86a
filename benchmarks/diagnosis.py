"""Is the planted fault named first, is nothing named in healthy nets, and does the first remedy cure?

Run: python benchmarks/diagnosis.py [--half development|held-out] [--forms] [--more-tasks] [--seeds N] [--folder DIR]
     [--workers N] [--no-cures] [--cached]

Every case is a program (trial/program.py) with one fault (trial/faults.py) in one task (trial/tasks.py), trained
with the callback at its defaults, beside the same program without the fault. A fault that leaves the net 80 % of the
healthy net's fall of the loss is harmless: the right answer there is no cause. The first remedy of others is applied
by a program (trial/cures.py), which trains again with as many steps. A control counts if it learns its task: at least
80 % of the fall of the best net of that task. `--forms` tries stacks, packed and bidirectional nets, loops,
accumulation and the like as well.

Runs are kept in the folder, so that rules can be changed and judged without training. Thresholds may be chosen on the
development tasks; the figures that count are those of the held-out ones.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.trial.cases import Case, controls, planted, shaped
from benchmarks.trial.cures import apply
from benchmarks.trial.faults import FAULTS
from benchmarks.trial.fit import Fitted, diagnosis_of, fitted, is_fitted
from benchmarks.trial.outcome import ENOUGH, NAMES_NOTHING, Outcome, fall_share, table


def outcomes(cases: Sequence[Case], folder: Path, workers: int, cures: bool) -> list[Outcome]:
    """What came of the cases, with the first remedy applied where a fault hurts; one line each as they come in."""
    found = []
    # forked workers share what was imported, and no thread runs yet
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for one in pool.imap_unordered(partial(outcome, folder=folder, cures=cures), cases):
            found.append(one)
            print(one.line(), flush=True)
    return found


def outcome(case: Case, folder: Path, cures: bool) -> Outcome:
    """Train the program and the healthy one, diagnose, apply the first remedy, and train again."""
    healthy, one = fitted(case.healthy, folder), fitted(case.program, folder)
    found = Outcome(case, one, diagnosis_of(one), fall_share(one, healthy))
    if not cures or not found.hurt or found.first in NAMES_NOTHING:
        return found
    remedy = found.diagnosis.causes[0].remedy
    repaired = None if remedy is None else apply(case.program, remedy)
    if repaired is None:
        return replace(found, cured=False)
    return replace(found, cured=fall_share(fitted(repaired, folder), healthy) >= ENOUGH)


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
    parser.add_argument("--forms", action="store_true", help="other forms of nets and loops")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, help="these alone, no controls")
    parser.add_argument("--more-tasks", action="store_true", help="all tasks of the half")
    parser.add_argument("--folder", type=Path, default=Path("runs/trial"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-cures", action="store_true")
    parser.add_argument("--cached", action="store_true", help="only cases whose runs are there")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    held_out = asked.half == "held-out"
    given = (held_out, asked.seeds, asked.more_tasks)
    cases = [
        *controls(*given),
        *planted(*given),
        *(shaped(held_out, asked.seeds) if asked.forms else ()),
    ]
    if asked.faults:
        cases = [case for case in cases if case.planted in asked.faults]
    random.Random(0).shuffle(cases)  # what is there of a trial that was cut short is a fair part
    if asked.cached:
        cases = [
            case
            for case in cases
            if all(is_fitted(one, asked.folder) for one in (case.program, case.healthy))
        ]
    found = outcomes(cases, asked.folder, asked.workers, not asked.no_cures)
    print(f"\n{asked.half} tasks\n\n{table(learning_controls(found))}")


if __name__ == "__main__":
    main()
