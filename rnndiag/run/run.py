"""`Run`: the reader of a run directory, extended by reach, window, tables and the notebook view."""

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
    """A recorded run, as `open_run` returns it.

    Opening reads no arrays; each is read when it is first used. The ranks of a distributed training are pooled into one
    recording per step and phase, except where `rank=` names one.
    """

    def reach(
        self, share: float = 0.9, layer: str | None = None, window: str = DEFAULT_WINDOW
    ) -> Reach:
        """The number of steps back within which `share` of the credit lies; median over the judged recordings.

        Args:
            share: Between 0 and 1.
            layer: Name of a layer or stack. None: the layer with the shortest reach.
            window: The recordings that are judged, such as "last 20%".

        Returns:
            A float in time steps: inf if the share is not reached within the measured lags, nan if nothing was
            measured (`.text` gives the reason). `.error` is its standard error where losses or sequences were sampled;
            it is nan where that is not known or `share` is not 0.9.
        """
        return run_reach(self, share, layer, window)

    def window(
        self, epsilon: float = 0.1, layer: str | None = None, window: str = DEFAULT_WINDOW
    ) -> Recommendation:
        """The shortest truncation window with a small gradient bias, over the judged recordings.

        Args:
            epsilon: Largest bias allowed, |g_window - g| / |g|.
            layer: Name of a layer or stack. None: the layer that needs the longest window.
            window: The recordings that are judged, such as "last 20%".

        Returns:
            The window in time steps (`.steps`), and whether it was measured, interpolated or extrapolated.
        """
        return run_window(self, epsilon, layer, window)

    def to_frame(self, quantity: str | None = None, layer: str | None = None) -> pandas.DataFrame:
        """The numbers of the run as a long pandas table.

        Args:
            quantity: Name of one quantity. None: all.
            layer: Name of one layer. None: all.

        Returns:
            One row per number, with the columns step, phase, quantity, layer, one per dimension, and value.
        """
        return to_frame(self, quantity, layer)

    def to_xarray(self, quantity: str | None = None, layer: str | None = None) -> xarray.Dataset:
        """The numbers of the run as an xarray Dataset.

        Args:
            quantity: Name of one quantity. None: all.
            layer: Name of one layer. None: all.

        Returns:
            One variable per quantity, over layer, step and the quantity's own dimensions.
        """
        return to_xarray(self, quantity, layer)

    def _repr_html_(self) -> str:
        """Verdict and headline numbers as HTML, for notebooks."""
        return verdict_strip(self)


def open_run(path: str | os.PathLike[str], salvage: bool = False) -> Run:
    """Open a recorded run.

    Args:
        path: A run directory, or a URL if fsspec is installed.
        salvage: Also read recordings whose open.json is damaged. They have no provenance then.

    Returns:
        The run.

    Raises:
        RunUnreadable: There is no run, or nothing of it can be read.

    Example:
        >>> run = rnndiag.open_run("runs/exp1")
        >>> run["credit_profile", run.layers[0]].dims
        ('step', 'lag', 'profile_stat')
    """
    return Run(path, salvage)
