"""Is the planted fault named first, is nothing named in healthy nets, and does the first remedy cure?

Run: python benchmarks/diagnosis.py [--half development|held-out] [--forms] [--more-tasks] [--seeds N] [--folder DIR]
     [--workers N] [--no-cures] [--train-only] [--markdown]

Every case is a program (trial/program.py) with one fault (trial/faults.py) in one task (trial/tasks.py), trained
with the callback at its defaults, beside the same program without the fault. A fault that leaves the net 80 % of the
healthy net's fall of the loss is harmless: the right answer there is no cause. The first remedy of others is applied
by a program (trial/cures.py), which trains again with as many steps. A control counts if it learns its task: at least
80 % of the fall of the best net of that task. `--forms` tries stacks, packed and bidirectional nets, loops,
accumulation and the like in place of the plain programs.

Runs are kept in the folder, so that rules can be changed and judged without training. Thresholds may be chosen on the
development tasks; the figures that count are those of the held-out ones.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.trial.cases import Case, controls, planted, shaped
from benchmarks.trial.cures import apply
from benchmarks.trial.fit import Fitted, diagnosis_of, fitted
from benchmarks.trial.outcome import ENOUGH, NAMES_NOTHING, Outcome, fall_share, table
from benchmarks.trial.program import Program


def outcomes(cases: Sequence[Case], folder: Path, workers: int, cures: bool) -> list[Outcome]:
    """What came of the cases, with the first remedy applied where a fault hurts."""
    train_all((p for case in cases for p in (case.healthy, case.program)), folder, workers)
    found = [_outcome(case, folder) for case in cases]
    if not cures:
        return found
    repaired = [_repaired(one) for one in found]
    train_all((program for program in repaired if program is not None), folder, workers)
    return [_with_cure(one, program, folder) for one, program in zip(found, repaired, strict=True)]


def train_all(programs: Iterable[Program], folder: Path, workers: int) -> None:
    """Train every program that the folder does not hold yet."""
    wanted = list(dict.fromkeys(programs))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, _ in enumerate(pool.imap_unordered(partial(fitted, folder=folder), wanted), 1):
            print(f"\r{done} of {len(wanted)} programs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def _outcome(case: Case, folder: Path) -> Outcome:
    healthy, one = fitted(case.healthy, folder), fitted(case.program, folder)
    return Outcome(case, one, diagnosis_of(one), fall_share(one, healthy))


def _repaired(outcome: Outcome) -> Program | None:
    """The program with the first remedy applied; None where there is none to try."""
    if not outcome.hurt or outcome.first in NAMES_NOTHING:
        return None
    remedy = outcome.diagnosis.causes[0].remedy
    return None if remedy is None else apply(outcome.case.program, remedy)


def _with_cure(outcome: Outcome, repaired: Program | None, folder: Path) -> Outcome:
    if not outcome.hurt or outcome.first in NAMES_NOTHING:
        return outcome
    if repaired is None:
        return replace(outcome, cured=False)
    share = fall_share(fitted(repaired, folder), fitted(outcome.case.healthy, folder))
    return replace(outcome, cured=share >= ENOUGH)


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
    parser.add_argument("--more-tasks", action="store_true", help="all tasks of the half")
    parser.add_argument("--folder", type=Path, default=Path("runs/trial"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-cures", action="store_true")
    parser.add_argument("--train-only", action="store_true", help="keep the runs, say nothing yet")
    parser.add_argument("--markdown", action="store_true", help="tables as in docs/diagnosis.md")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    held_out = asked.half == "held-out"
    if asked.forms:
        cases = list(shaped(held_out))
    else:
        given = (held_out, asked.seeds, asked.more_tasks)
        cases = [*controls(*given), *planted(*given)]
    random.Random(0).shuffle(cases)  # what is there of a trial that was cut short is a fair part
    if asked.train_only:
        train_all((p for c in cases for p in (c.healthy, c.program)), asked.folder, asked.workers)
        return
    found = outcomes(cases, asked.folder, asked.workers, not asked.no_cures)
    if not asked.markdown:
        print("\n".join(one.line() for one in found))
    print(f"\n{asked.half} tasks\n\n{table(learning_controls(found))}")


if __name__ == "__main__":
    main()
