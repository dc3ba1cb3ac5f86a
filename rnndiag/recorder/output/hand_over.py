"""Passes the report to those of the trainer's loggers that take pages or figures.

To support another logger, add a function here and a row in TAKERS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rnndiag.report.context import Context


def _tensorboard(logger: Any, page: Path, context: Context) -> None:
    """Log every figure that has data under `rnndiag/<its title>`, at the last recorded step."""
    from rnndiag.plot.one_figure import drawn_figures

    step = int(context.run.steps[-1]) if context.run.steps.size else 0
    for title, figure in drawn_figures(context):
        logger.experiment.add_figure(f"rnndiag/{title}", figure, global_step=step)


def _wandb(logger: Any, page: Path, context: Context) -> None:
    import wandb

    logger.experiment.log({"rnndiag/report": wandb.Html(str(page), inject=False)})


def _mlflow(logger: Any, page: Path, context: Context) -> None:
    logger.experiment.log_artifact(logger.run_id, str(page))


TAKERS: dict[str, Callable[[Any, Path, Context], None]] = {
    "TensorBoardLogger": _tensorboard,
    "WandbLogger": _wandb,
    "MLFlowLogger": _mlflow,
}
"""Name of a logger's class, or of a base class -> the function that passes it the report."""


def hand_over(page: Path, context: Context, loggers: Sequence[Any]) -> list[str]:
    """Pass the report to every logger that takes one; returns the names of those loggers.

    Args:
        page: The HTML page as written.
        context: The run that it is about, for loggers that take figures.
        loggers: The trainer's loggers.
    """
    took = []
    for logger in loggers:
        names = [kind.__name__ for kind in type(logger).__mro__]
        known = next((name for name in names if name in TAKERS), None)
        if known is not None:
            TAKERS[known](logger, page, context)
            took.append(known)
    return took
