"""The schedule that the settings ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rnndiag.recorder.ledger import Ledger
from rnndiag.recorder.measures import MEASURES
from rnndiag.recorder.schedule import EveryN, Schedule, WithinBudget
from rnndiag.recorder.settings import Settings
from rnndiag.recorder.training_facts import batches_so_far, total_batches


def schedule_for(
    settings: Settings, groups: Sequence[str], ledger: Ledger, trainer: Any, module: Any
) -> Schedule:
    """Every n steps, a person's own callable, or within the budget."""
    costs = {name: MEASURES[name].cost for name in groups}
    if settings.schedule is not None:
        return EveryN(1, costs, settings.schedule)
    if settings.every_n_steps is not None:
        return EveryN(settings.every_n_steps, costs)
    return WithinBudget(
        settings.budget,
        ledger,
        costs,
        total=total_batches(trainer, module),
        first=batches_so_far(trainer),
    )
