"""A run, read, with what its numbers say: reach, recommended window, tables and the notebook view."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rnndiag.report.notebook import verdict_strip
from rnndiag.run.frames import to_frame, to_xarray
from rnndiag.stats.headline import run_reach, run_window
from rnndiag.stats.reach import Reach
from rnndiag.stats.window import Recommendation
from rnndiag.store.judged import DEFAULT_WINDOW
from rnndiag.store.reader import StoredRun

if TYPE_CHECKING:
    import pandas
    import xarray


class Run(StoredRun):
    """A run directory as `open_run` gives it. Cheap to open; arrays are read when asked for.

    Ranks are pooled into one recording per step and phase unless `rank=` names one.
    """

    def reach(
        self, share: float = 0.9, layer: str | None = None, window: str = DEFAULT_WINDOW
    ) -> Reach:
        """How many steps back `share` of the credit lies: median of the judged recordings; None: shortest layer.

        It is a float; inf says 'not reached within D', nan that there is nothing to measure (`.text` says which).
        `.error` is its standard error where losses or sequences were sampled; nan: not known, or not of 90 %.
        """
        return run_reach(self, share, layer, window)

    def window(
        self, epsilon: float = 0.1, layer: str | None = None, window: str = DEFAULT_WINDOW
    ) -> Recommendation:
        """The recommended truncation window over the judged recordings; None: the layer that needs the longest one."""
        return run_window(self, epsilon, layer, window)

    def to_frame(self, quantity: str | None = None, layer: str | None = None) -> pandas.DataFrame:
        """A long pandas table: step, phase, quantity, layer, the dims, value."""
        return to_frame(self, quantity, layer)

    def to_xarray(self, quantity: str | None = None, layer: str | None = None) -> xarray.Dataset:
        """An xarray Dataset: one variable per quantity, over layer, step and the quantity's dims."""
        return to_xarray(self, quantity, layer)

    def _repr_html_(self) -> str:
        """The verdict strip of the report, for notebooks."""
        return verdict_strip(self)


def open_run(path: str | os.PathLike[str], salvage: bool = False) -> Run:
    """Open a run directory, or a URL where fsspec is installed.

    `salvage` also reads recordings whose open.json is damaged, without their provenance.
    """
    return Run(path, salvage)
