"""The settings of the callback: plain values, validated once at construction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypedDict

from rnndiag.errors import BadArgument, BadConfig
from rnndiag.health.config import nearest_config
from rnndiag.store.limits import BUDGET_BYTES

_NUMBERS: tuple[tuple[str, bool, Callable[[float], bool], str], ...] = (
    ("every_n_steps", True, lambda n: n >= 1, "a whole number of steps from 1 up"),
    ("budget", False, lambda x: 0 < x <= 10, "a share of training time, such as 0.03 for 3 %"),
    ("samples", True, lambda n: n >= 1, "a number of sequences from 1 up"),
    ("max_bytes", False, lambda n: n > 0, "a number of bytes above 0, such as 2 << 30 for 2 GiB"),
    ("seam", False, lambda n: n >= 0, "a number of chunks from 0 up"),
    ("jump", False, lambda x: x > 1, "a factor above 1"),
    ("max_memory", True, lambda n: n > 0, "a number of bytes above 0"),
    ("stride", False, lambda n: n >= 1, "a whole number from 1 up"),
    ("chance", True, lambda x: 0 < x < math.inf, "the loss of a constant answer, a number above 0"),
)
"""For each number: its name, whether None is allowed, the condition, and its description."""

LogChoice = Literal["worst", "all", "none"]


@dataclass(frozen=True)
class Settings:
    """The arguments of GradientDiagnostics, documented there."""

    dirpath: str | None = None
    every_n_steps: int | None = None
    budget: float = 0.03
    schedule: Callable[[int], bool] | None = None
    measures: tuple[str, ...] | None = None
    samples: int | None = 8
    steps: tuple[str, ...] = ()
    seam: int = 2
    black_box: bool = True
    jump: float = 20.0
    log: LogChoice = "worst"
    labels: Callable[[Any], Any] | None = None
    time_unit: tuple[str, float] | None = None
    stride: int = 1
    screen: bool = True
    report: bool = True
    preflight: bool = True
    strict: bool = False
    chance: float | None = None
    needs: int | str | None = None
    need: bool = False
    max_bytes: float = BUDGET_BYTES
    max_memory: float | None = None
    independent: bool | None = None

    def __post_init__(self) -> None:
        for name, optional, fits, wanted in _NUMBERS:
            value = getattr(self, name)
            if optional and value is None:
                continue
            if not isinstance(value, Real) or not fits(float(value)):
                _refuse(name, value, f"{wanted}{', or None' if optional else ''}")
        if self.every_n_steps is not None and self.schedule is not None:
            raise BadArgument(
                "Both every_n_steps and schedule say when to record.", "Give one of them."
            )
        if self.log not in ("worst", "all", "none"):
            _refuse("log", self.log, '"worst", "all" or "none"')
        if self.independent not in (True, False, None):
            _refuse("independent", self.independent, "True, False or None")
        if not isinstance(self.needs, str) and self.needs is not None and not self.needs >= 1:
            _refuse("needs", self.needs, 'a number of steps from 1 up, or a duration such as "6 h"')
        if self.time_unit is not None and not self.time_unit[1] > 0:
            _refuse("time_unit", self.time_unit, 'a name and a positive length, such as ("h", 1)')

    def as_json(self) -> dict[str, Any]:
        """The settings as stored in a run; callables by name."""
        plain = asdict(self)
        for name in ("schedule", "labels"):
            plain[name] = name_of(getattr(self, name))
        plain["steps"] = list(self.steps)
        plain["measures"] = None if self.measures is None else list(self.measures)
        plain["time_unit"] = None if self.time_unit is None else list(self.time_unit)
        return plain


class Options(TypedDict, total=False):
    """The options of the callback and of the Recorder as users write them; see `GradientDiagnostics`."""

    every_n_steps: int | None
    budget: float
    schedule: Callable[[int], bool] | None
    measures: Sequence[str] | None
    samples: int | None
    steps: Sequence[str]
    seam: int
    black_box: bool
    jump: float
    log: LogChoice
    labels: Callable[[Any], Any] | None
    time_unit: tuple[str, float] | None
    stride: int
    screen: bool
    report: bool
    preflight: bool
    strict: bool
    chance: float | None
    needs: int | str | None
    max_bytes: float
    max_memory: float | None
    independent: bool | None


def name_of(function: Callable[..., Any] | None) -> str | None:
    """The qualified name of a callable."""
    if function is None:
        return None
    return getattr(function, "__qualname__", type(function).__qualname__)


def _refuse(name: str, value: object, wanted: str) -> None:
    raise BadArgument(f"{name} is {value!r}.", f"It must be {wanted}.")


def settings_from(
    dirpath: str | Path | None = None,
    measures: Sequence[str] | None = None,
    time_unit: Sequence[Any] | None = None,
    steps: Sequence[str] = (),
    **others: Any,
) -> Settings:
    """Convert arguments as users write them (paths, lists from YAML, tuples) to settings."""
    if unknown := others.keys() - Settings.__dataclass_fields__.keys():
        raise BadArgument(
            f"There is no option {', '.join(map(repr, sorted(unknown)))}.",
            f"The options are {', '.join(Settings.__dataclass_fields__)}.",
        )
    for name, takes in (
        ("schedule", "a step and returns True or False"),
        ("labels", "a batch and returns names"),
    ):
        if others.get(name) is not None and not callable(others[name]):
            _refuse(name, others[name], f"a callable that takes {takes}")
    if isinstance(measures, str):
        measures = (measures,)
    if isinstance(steps, str):
        steps = (steps,)
    if time_unit is not None and len(time_unit) != 2:
        _refuse("time_unit", time_unit, 'a name and a positive length, such as ("h", 1)')
    others |= {k: v for k, v in _of_project().items() if others.get(k) is None}
    return Settings(
        dirpath=None if dirpath is None else str(dirpath),
        measures=None if measures is None else tuple(measures),
        steps=tuple(steps),
        time_unit=None if time_unit is None else (str(time_unit[0]), float(time_unit[1])),
        **others,
    )


def _of_project() -> dict[str, Any]:
    """`chance` and `needs` of [tool.rnndiag] in the nearest pyproject.toml, to be stored in the run."""
    try:
        config = nearest_config(Path.cwd())
    except BadConfig:  # `rnndiag check` says so; a training does not end for it
        return {}
    return {"chance": config.chance, "needs": config.needs}
