"""Output at the end of a fit: one screen of text, and the report page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnndiag.recorder.faults import Faults
from rnndiag.recorder.output.hand_over import hand_over
from rnndiag.recorder.output.screen import screen, shown
from rnndiag.recorder.schedule.schedule import FLOOR
from rnndiag.recorder.settings import Settings
from rnndiag.stats.time_words import TimeWords

REPORT = "report.html"


@dataclass(frozen=True)
class Cost:
    """The cost of the diagnostics, and its limit."""

    share: float
    broke_budget: bool = False
    light: float = 0.0
    """The part of the share that was spent in steps that were not recorded."""
    given_up: tuple[str, ...] = ()
    """Sentences on what was skipped to keep the budget."""

    def excuse(self, budget: float) -> str:
        """Why the budget was exceeded, and what to do; empty if it was kept."""
        if not self.broke_budget:
            return ""
        if self.light > budget / 2:
            return (
                f"That is over the budget of {budget:.0%}: the steps are so short that what is done at each of "
                f"them takes {self.light:.1%} by itself. Give a larger budget, or black_box=False, which saves a part."
            )
        return (
            f"That is over the budget of {budget:.0%} and the {FLOOR:.0f} s that every fit may take besides: the fit "
            "is short beside the recordings that every fit gets, and a longer one pays for them. Give every_n_steps to "
            "record less often, or a larger budget."
        )


def close_fit(
    settings: Settings,
    run_dir: Path,
    count: int,
    cost: Cost,
    faults: Faults,
    loggers: Sequence[Any] = (),
) -> None:
    """Write the report, pass it to loggers that take files, and print the screen.

    No error in it can fail the fit.
    """
    from rnndiag.store.reader import StoredRun

    if count == 0:
        return
    started = time.perf_counter()
    if settings.report:
        with faults.guard("writing the report", f"Write it later: rnndiag report {shown(run_dir)}"):
            from rnndiag.report.page import write_page
            from rnndiag.report.write_report import report_context

            context = report_context(StoredRun(run_dir))
            page = write_page(context, run_dir / REPORT)
            with faults.guard("giving the report to a logger", f"It lies in {shown(run_dir)}."):
                hand_over(page, context, loggers)
    if settings.screen:
        with faults.guard("the screen at the end of the fit"):
            words = TimeWords(settings.time_unit, settings.stride)
            seconds = time.perf_counter() - started if settings.report else 0.0
            excuse = " ".join(filter(None, (cost.excuse(settings.budget), *cost.given_up)))
            print(screen(StoredRun(run_dir), cost.share, words, excuse, seconds))
