"""What a person gets when a fit is over: one screen of text, and the report page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnndiag.recorder.faults import Faults
from rnndiag.recorder.hand_over import hand_over
from rnndiag.recorder.screen import screen, shown
from rnndiag.recorder.settings import Settings
from rnndiag.recorder.time_words import TimeWords

REPORT = "report.html"


@dataclass(frozen=True)
class Cost:
    """What the diagnostics cost, and what they were allowed to."""

    share: float
    broke_budget: bool = False


def close_fit(
    settings: Settings,
    run_dir: Path,
    count: int,
    cost: Cost,
    faults: Faults,
    quiet: bool,
    loggers: Sequence[Any] = (),
) -> None:
    """Write the report, give it to loggers that take files and, unless `quiet`, print the screen.

    None of it can fail the fit.
    """
    from rnndiag.run.run import open_run

    if count == 0:
        return
    if settings.report:
        with faults.guard("writing the report", f"Write it later: rnndiag report {shown(run_dir)}"):
            import rnndiag

            page = rnndiag.write_report(open_run(run_dir), run_dir / REPORT)
            with faults.guard("giving the report to a logger", f"It lies in {shown(run_dir)}."):
                hand_over(page, loggers)
    if settings.screen and not quiet:
        with faults.guard("the screen at the end of the fit"):
            words = TimeWords(settings.time_unit, settings.stride)
            broke = ""
            if cost.broke_budget:
                broke = (
                    f"That is over the budget of {settings.budget:.0%}: the fit was short for the 8 recordings "
                    "that every fit gets. Give every_n_steps, or a larger budget."
                )
            print(screen(open_run(run_dir), cost.share, words, broke))
