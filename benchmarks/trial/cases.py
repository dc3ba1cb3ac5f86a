"""Which programs are tried: faults x tasks x cells x seeds, and healthy controls of three kinds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.trial.faults import FAULTS, Fault
from benchmarks.trial.program import Program
from benchmarks.trial.tasks import TASKS


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
    "one layer": {},
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
    if task in ("text", "count", "adding", "match"):
        return ("lstm", "gru")
    return ("lstm", "gru", "tanh", "relu")


def controls(held_out: bool, seeds: int) -> Iterator[Case]:
    """Nets that have learned, that still learn, and whose task needs no memory."""
    for name, task in TASKS.items():
        if task.held_out != held_out:
            continue
        for cell in cells_of(name):
            for seed in range(seeds):
                base = Program(name, cell, seed=seed)
                yield Case("none", base, base, "learned" if task.needs else "local")
                early = base.but(steps=task.steps // 3)
                yield Case("none, early", early, early, "learning")


def planted(held_out: bool, seeds: int) -> Iterator[Case]:
    """Every fault in every task and cell where it makes sense."""
    for fault in FAULTS.values():
        for name, task in TASKS.items():
            if task.held_out != held_out or not fault.fits(task):
                continue
            for cell in cells_of(name):
                if cell in fault.cells:
                    for seed in range(seeds):
                        yield _case(fault, Program(name, cell, seed=seed))


def _case(fault: Fault, base: Program) -> Case:
    kind = "mild" if fault.mild else "fault"
    return Case(fault.name, fault.plant(base), _healthy(fault, base), kind)


def _healthy(fault: Fault, base: Program) -> Program:
    """The program whose fall of the loss the faulty one is held against."""
    if fault.name == "chunks":
        return base.but(carry=True, T=base.of.needs * 4)
    return base.but(pad="right") if fault.name == "padding" else base


def shaped(held_out: bool, seed: int = 0) -> Iterator[Case]:
    """A few faults and a control in every form of net and loop."""
    tasks = ("order", "flip-flop", "adding") if held_out else ("recall", "copy-lag")
    for shape, changes in SHAPES.items():
        for task in tasks:
            at_end = TASKS[task].at_end
            if shape in ("encoder-decoder", "packed") and not at_end:
                continue
            cell = (
                "gru" if shape in ("loop", "bf16") else "lstm"
            )  # torch has no LSTM in bf16 on a CPU
            base = Program(task, cell, seed=seed).but(**changes)
            yield Case(f"none ({shape})", base, base, "learned")
            for name in ("forget-shut", "torch-default", "rate-high", "rate-low", "frozen", "nan"):
                fault = FAULTS[name]
                if fault.fits(TASKS[task]):
                    case = _case(fault, base)
                    yield Case(case.planted, case.program, base, f"shape: {shape}")


def sample(cases: list[Case], most: int, seed: int = 0) -> list[Case]:
    """At most so many cases, spread evenly over what was planted."""
    by_fault: dict[str, list[Case]] = {}
    for case in cases:
        by_fault.setdefault(case.planted, []).append(case)
    draw = random.Random(seed)
    for group in by_fault.values():
        draw.shuffle(group)
    found: list[Case] = []
    while len(found) < most and any(by_fault.values()):
        for group in by_fault.values():
            if group and len(found) < most:
                found.append(group.pop())
    return found
