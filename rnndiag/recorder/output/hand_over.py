"""The report, given to those of the trainer's loggers that take files. A new one: a function and a row of TAKERS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def _wandb(logger: Any, file: Path) -> None:
    logger.experiment.save(str(file), base_path=str(file.parent), policy="now")


def _mlflow(logger: Any, file: Path) -> None:
    logger.experiment.log_artifact(logger.run_id, str(file))


TAKERS: dict[str, Callable[[Any, Path], None]] = {"WandbLogger": _wandb, "MLFlowLogger": _mlflow}
"""Name of a logger's class, or of one that it derives from -> how it takes a file."""


def hand_over(file: Path, loggers: Sequence[Any]) -> list[str]:
    """Give a file to every logger that takes files; the names of those that took it."""
    took = []
    for logger in loggers:
        names = [kind.__name__ for kind in type(logger).__mro__]
        known = next((name for name in names if name in TAKERS), None)
        if known is not None:
            TAKERS[known](logger, file)
            took.append(known)
    return took
