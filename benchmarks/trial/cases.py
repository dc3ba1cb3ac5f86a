"""Which programs are tried: faults x tasks x cells x seeds, and healthy controls of three kinds."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.trial.faults import FAULTS, Fault
from benchmarks.trial.program import Program
from benchmarks.trial.tasks import TASKS, Task


@dataclass(frozen=True)
class Case:
    """One program with what was planted; `healthy` is the same program without it."""

    planted: str
    program: Program
    healthy: Program
    kind: str
    """fault | mild | learned | learning | local: the last three are healthy controls."""

    @property
    def causes(self) -> tuple[str, ...]:
        """The right first causes where the fault hurts."""
        return FAULTS[self.planted].causes if self.planted in FAULTS else ()


SHAPES: dict[str, dict[str, object]] = {
    "stack of two": {"layers": 2},
    "bidirectional": {"bidirectional": True},
    "packed": {"packed": True},
    "accumulated": {"accumulate": 2},
    "warm-up": {"warmup": 60},
    "bf16": {"precision": "bf16-mixed"},
    "AdamW, decay groups": {"optimizer": "adamw", "weight_decay": 0.01, "decay_groups": True},
    "validated": {"validate": True},
    "loop": {"loop": True},
    "encoder-decoder": {"seq2seq": True},
}
"""Forms of nets and loops that the faults are also planted in."""


def cells_of(task: str) -> tuple[str, ...]:
    """Cells that learn the task when healthy."""
    if task == "match":
        return ("lstm",)
    if task in ("text", "count", "adding"):
        return ("lstm", "gru")
    if task in ("keep", "delay"):
        return ("lstm", "gru", "tanh")
    return ("lstm", "gru", "tanh", "relu")


MORE_TASKS = ("xor", "text", "count", "heavy-tails", "sine", "match")
"""Left out unless asked for: they take as long as all the others."""


def tasks_of(held_out: bool, more: bool) -> Iterator[Task]:
    """The tasks of a half."""
    for task in TASKS.values():
        if task.held_out == held_out and (more or task.name not in MORE_TASKS):
            yield task


def controls(held_out: bool, seeds: int, more: bool = False) -> Iterator[Case]:
    """Nets that have learned, that still learn (one seed), and whose task needs no memory."""
    for task in tasks_of(held_out, more):
        for cell in cells_of(task.name):
            for seed in range(seeds):
                base = Program(task.name, cell, seed=seed)
                yield Case("none", base, base, "learned" if task.needs else "local")
            early = Program(task.name, cell, steps=task.steps // 3)
            yield Case("none, early", early, early, "learning")


def planted(held_out: bool, seeds: int, more: bool = False) -> Iterator[Case]:
    """Every fault in every task where it makes sense, with every seed; cells are drawn."""
    for fault in FAULTS.values():
        for task in tasks_of(held_out, more):
            cells = [cell for cell in cells_of(task.name) if cell in fault.cells]
            if fault.fits(task) and cells:
                cells = random.Random(f"{fault.name}, {task.name}").sample(cells, len(cells))
                for seed in range(seeds):
                    cell = cells[seed % len(cells)]
                    yield _case(fault, Program(task.name, cell, seed=seed))


def _case(fault: Fault, base: Program) -> Case:
    kind = "mild" if fault.mild else "fault"
    return Case(fault.name, fault.plant(base), _healthy(fault, base), kind)


def _healthy(fault: Fault, base: Program) -> Program:
    """The program whose fall of the loss the faulty one is held against."""
    if fault.name == "chunks":
        return base.but(carry=True, T=base.of.needs * 4)
    return base.but(pad="right") if fault.name == "padding" else base


FAULTS_OF_FORMS = ("forget-shut", "torch-default", "rate-high", "rate-low", "frozen", "nan")


def shaped(held_out: bool, seeds: int) -> Iterator[Case]:
    """In every form of net and loop a control, and three faults that take turns."""
    at_end, every_step = ("order", "flip-flop") if held_out else ("recall", "copy-lag")
    for turn, (seed, (shape, changes)) in enumerate(
        itertools.product(range(seeds), SHAPES.items())
    ):
        task = at_end if shape in ("encoder-decoder", "packed") else every_step
        # torch has no LSTM in bf16 on a CPU
        cell = "gru" if shape in ("loop", "bf16") else "lstm"
        base = Program(task, cell, seed=seed).but(**changes)
        yield Case(f"none ({shape})", base, base, "learned")
        fitting = [name for name in FAULTS_OF_FORMS if FAULTS[name].fits(TASKS[task])]
        for name in (fitting[(3 * turn + seed + i) % len(fitting)] for i in range(3)):
            case = _case(FAULTS[name], base)
            yield Case(case.planted, case.program, base, f"shape: {shape}")
