"""The numbers that rnndiag promises, in one list: which benchmark measures each, and its limit.

A benchmark calls `tell(name, values)` with a number, or with one number a round. For a name of the list below the
median is held against the limit (of errors, the worst); any other name is a number to know. `benchmarks.run_all`
collects what is told, by a file named in the environment, and says of every promise whether it was HELD, MISSED or not
measured at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

FILE = "RNNDIAG_BENCHMARK_NUMBERS"
"""The environment variable that names the file which `tell` adds its lines to."""


@dataclass(frozen=True)
class Promise:
    """One promised number: at most `limit`, or at least that."""

    name: str
    benchmark: str
    limit: float
    unit: str = "x"
    at_least: bool = False
    worst: bool = False
    """Whether every round must keep it, not the median alone."""

    def held(self, value: float) -> bool:
        """Whether a value keeps it; NaN does not."""
        return value >= self.limit if self.at_least else value <= self.limit

    @property
    def text(self) -> str:
        """The limit in words."""
        return f"{'≥' if self.at_least else '≤'} {self.limit:g} {self.unit}".rstrip()


def _most(benchmark: str, unit: str, limits: dict[str, float]) -> list[Promise]:
    return [Promise(name, benchmark, limit, unit) for name, limit in limits.items()]


def _least(benchmark: str, unit: str, limits: dict[str, float]) -> list[Promise]:
    return [Promise(name, benchmark, limit, unit, True) for name, limit in limits.items()]


_ALL = (
    *_most(
        "record",
        "plain steps",
        {"recorded step, lstm": 2.5, "recorded step, gru": 2.5, "recorded step, rnn": 3.0},
    ),
    *_most(
        "record",
        "x what autograd holds",
        {
            "extra memory of a recorded step, lstm": 2.0,
            "extra memory of a recorded step, gru": 2.0,
            "extra memory of a recorded step, rnn": 2.0,
        },
    ),
    *_most("gate", "s", {"import rnndiag": 0.3, "rnndiag --help": 0.3}),
    *_most(
        "truncation",
        "plain steps",
        {
            "whole lag sweep, lstm": 25.0,
            "whole lag sweep, gru": 25.0,
            "whole lag sweep, elman_tanh": 25.0,
            "default lag sweep, lstm": 6.0,
            "default lag sweep, gru": 6.0,
            "default lag sweep, elman_tanh": 6.0,
            "default lag sweep in a recording, lstm": 6.0,
            "default lag sweep in a recording, gru": 6.0,
            "default lag sweep in a recording, elman_tanh": 6.0,
            "default lag sweep in a recording, trained lstm": 6.0,
            "default lag sweep in a recording, trained gru": 6.0,
            "default lag sweep in a recording, trained elman_tanh": 6.0,
        },
    ),
    *_least(
        "truncation",
        "x faster",
        {
            "sweep over fused windows one by one, lstm": 10.0,
            "sweep over fused windows one by one, gru": 10.0,
            "sweep over fused windows one by one, elman_tanh": 10.0,
        },
    ),
    *(
        Promise(f"{what} by default sampling, error", "truncation", 0.1, "of the whole", worst=True)
        for what in ("reach", "window")
    ),
    *_least(
        "jacobians",
        "x faster",
        {
            "jacobians over vmap(jacrev), lstm": 5.0,
            "jacobians over vmap(jacrev), gru": 5.0,
            "jacobians over vmap(jacrev), elman_tanh": 10.0,
        },
    ),
    *_most(
        "overhead",
        "x training without it",
        {
            "training with the callback, small": 1.05,
            "training with the callback, medium": 1.05,
            "training with the callback, large": 1.05,
        },
    ),
    *_most(
        "peak_memory",
        "x the process without it",
        {
            f"peak memory of the process, {size}": 1.25
            for size in ("small", "medium", "large", "wide")
        },
    ),
    *_least(
        "overhead",
        "recordings",
        {
            "recordings in that training, small": 8,
            "recordings in that training, medium": 8,
            "recordings in that training, large": 8,
        },
    ),
    *_most(
        "exactness",
        "",
        {
            "sum law, float64": 1e-12,
            "sum law, float32": 1e-5,
            "contributions against autograd": 1e-10,
            "windows against loops with detach": 1e-10,
            "mean over all Bernoulli masks": 1e-12,
            "roulette's spread against all outcomes": 1e-12,
            "Jacobians against jacrev": 1e-12,
            "log profile of a x orthogonal, to 1e-300": 1e-12,
            "Hénon map: Σ λ - ln 0.3": 1e-10,
            "Σ λ - mean log|det J|, GRU": 1e-9,
            "product of 5,000 Jacobians": 1e-12,
        },
    ),
    *_most("exactness", "standard errors", {"logistic map: λ - ln 2": 3.0}),
    *_most("store", "x", {"write / bare fsync": 2.0}),
    *_most(
        "store",
        "s",
        {
            "open, s": 0.3,
            "one quantity of one layer, s": 0.5,
            "everything, s": 3.0,
            "cold process to a number, s": 0.5,
        },
    ),
    *_most("gate", "s", {"check that passes": 1.0, "check that fails": 1.0, "frozen gate": 30.0}),
    *_most(
        "faults",
        "",
        {"healthy programs that fail": 0, "planted faults missed by their rule": 0},
    ),
    *_most("report", "kB", {"default page, size": 300.0}),
    *_most("report", "s", {"default page, time": 2.0, "page of 5,000 recordings, time": 15.0}),
    *_most("report", "MB", {"page of 5,000 recordings, memory": 1500.0}),
)

PROMISES: dict[str, Promise] = {promise.name: promise for promise in _ALL}


@dataclass(frozen=True)
class Told:
    """One number as a benchmark told it: over its rounds."""

    name: str
    least: float
    median: float
    most: float
    unit: str
    whole: bool
    """Taken at the size that the promise speaks of, not in a benchmark's small form."""

    @property
    def held(self) -> bool | None:
        """Whether the promise of this name is kept; None where none is made."""
        promise = PROMISES.get(self.name)
        return None if promise is None else promise.held(self.judged(promise))

    def judged(self, promise: Promise) -> float:
        """The number that the promise is held against."""
        worst = self.least if promise.at_least else self.most
        return worst if promise.worst else self.median


def tell(
    name: str, values: float | Sequence[float], *, unit: str = "", whole: bool = True
) -> bool | None:
    """Tell a number (or one a round) under a name, to whoever collects. Returns whether its promise is kept."""
    rounds = [float(v) for v in values] if isinstance(values, Sequence) else [float(values)]
    unit = PROMISES[name].unit if name in PROMISES else unit
    told = Told(name, min(rounds), median(rounds), max(rounds), unit, whole)
    if FILE in os.environ:
        with open(os.environ[FILE], "a", encoding="utf-8") as file:
            file.write(json.dumps(told.__dict__) + "\n")
    return told.held


def read_told(path: str | os.PathLike[str]) -> list[Told]:
    """What was told into a file."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [Told(**json.loads(line)) for line in file]
