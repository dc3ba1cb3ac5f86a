"""Figures of the report in matplotlib: one figure on axes, or all of them as files."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rnndiag.errors import BadArgument, NotInstalled, RunUnreadable
from rnndiag.plot.panel_axes import draw_panel, drawable
from rnndiag.report.context import Context
from rnndiag.report.figure_data import FigureData
from rnndiag.report.figures import FIGURES, ORDER
from rnndiag.report.unfit import figure_of
from rnndiag.report.write_report import report_context
from rnndiag.store.reader import StoredRun
from rnndiag.store.recording import Recording
from rnndiag.store.single_recording import as_run
from rnndiag.store.whole_files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOO_LARGE = "Its numbers are too large for matplotlib; the page shows them."
FORMATS = ("pdf", "svg", "png")
PANEL = (5.6, 3.2)
SQUARE = (4.4, 4.2)
"""Side of one panel in inches."""
MIN_PANEL = 2.2
"""Width in inches of the narrowest panel with readable labels."""
PAPER: dict[Any, Any] = {
    "font.size": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1.2,
}
"""matplotlib settings for a figure with a given width."""


class HoldsRecording(Protocol):
    """An object with a recording, such as a probe."""

    @property
    def recording(self) -> Recording: ...


class Shown(Protocol):
    """Type of a function that draws one figure of a run."""

    def __call__(
        self,
        run: StoredRun | Recording | HoldsRecording | str | os.PathLike[str],
        ax: Axes | None = None,
        layer: str = "",
        panel: int = 0,
        width: float | None = None,
    ) -> Axes: ...


def shown(name: str, title: str, about: str) -> Shown:
    """The function that draws the figure with this name."""

    def draw(
        run: StoredRun | Recording | HoldsRecording | str | os.PathLike[str],
        ax: Axes | None = None,
        layer: str = "",
        panel: int = 0,
        width: float | None = None,
    ) -> Axes:
        _check_width(width, ax is not None)
        opened = run if isinstance(run, (str, os.PathLike)) else as_run(run)
        data = FIGURES[name].make(report_context(opened, layer=layer))
        if data.absent:
            raise RunUnreadable(f"There is nothing to draw: {data.absent}", "See `rnndiag show`.")
        if not 0 <= panel < len(data.panels):
            raise BadArgument(
                f"This figure has no panel {panel}.", f"It has panels 0 to {len(data.panels) - 1}."
            )
        if not all(drawable(one) for one in data.panels):
            raise RunUnreadable("There is nothing to draw.", TOO_LARGE)
        if ax is None:
            axes: Axes = whole_figure(data, width=width).axes[0]
            return axes
        draw_panel(data.panels[panel], ax)
        return ax

    draw.__name__ = draw.__qualname__ = title
    draw.__module__ = "rnndiag.plot"
    draw.__doc__ = about
    return draw


def _check_width(width: float | None, on_axes: bool = False) -> None:
    if width is not None and (on_axes or not 1 <= width <= 40):
        where = " on given axes" if on_axes else ""
        raise BadArgument(
            f"A figure was asked for with width={width:g} inches{where}.",
            "Give a width from 1 to 40 inches, or `ax`, whose figure has a width already.",
        )


def whole_figure(data: FigureData, pyplot: bool = True, width: float | None = None) -> Figure:
    """A new figure with all panels.

    Args:
        data: What is drawn.
        pyplot: Register the figure in pyplot, so that notebooks and windows show it.
        width: Inches across, for a paper: its text is then 8 points high, and panels that would be narrower than
            MIN_PANEL are placed below each other. None: as large as the panels need.
    """
    try:
        import matplotlib as mpl
        from matplotlib import pyplot as plt
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NotInstalled(
            "Figures are drawn with matplotlib, which is not installed.",
            "Write: pip install 'rnndiag[figures]'",
        ) from error
    count = len(data.panels)
    columns = 1 if count == 1 else 2 if count < 5 else 3
    across, high = SQUARE if data.panels[0].shape == "square" else PANEL
    if width is not None:
        columns = max(1, min(columns, int(width / MIN_PANEL)))
        across, high = width / columns, width / columns * high / across
    rows = -(-count // columns)
    size = (columns * across, rows * high)
    with mpl.rc_context({} if width is None else PAPER):
        figure = plt.figure(figsize=size) if pyplot else Figure(figsize=size)
        figure.set_layout_engine("constrained")
        for k, panel in enumerate(data.panels):
            draw_panel(panel, figure.add_subplot(rows, columns, k + 1), width is not None)
    return figure


def save_figures(
    context: Context,
    folder: str | os.PathLike[str],
    form: str = "pdf",
    width: float | None = None,
) -> tuple[list[Path], list[str]]:
    """Write every figure that the run has data for.

    Args:
        context: The run with its findings.
        folder: The folder to write to; made if it is not there.
        form: "pdf", "svg" or "png".
        width: Width of each figure in inches, for a paper; None: its own.

    Returns:
        The files, and one sentence for each figure that could not be drawn.

    Raises:
        BadArgument: `form` is no such format.
        NotInstalled: matplotlib is not installed.
    """
    if form not in FORMATS:
        raise BadArgument(
            f"{form!r} is no format for figures.", f"It is one of {', '.join(FORMATS)}."
        )
    _check_width(width)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written, missing = [], []
    for name in ORDER:
        data = figure_of(name, context)
        if data.absent:
            missing.append(f"{name} {FIGURES[name].title}: {data.absent}")
            continue
        if not all(drawable(panel) for panel in data.panels):
            missing.append(f"{name} {FIGURES[name].title}: {TOO_LARGE}")
            continue
        file = target / f"{name}-{FIGURES[name].title.lower().replace(' ', '-')}.{form}"
        save(whole_figure(data, pyplot=False, width=width), file, form)
        written.append(file)
    return written, missing


def drawn_figures(context: Context) -> Iterator[tuple[str, Figure]]:
    """Title and figure of every figure that the run has data for. None of them is registered in pyplot."""
    for name in ORDER:
        data = FIGURES[name].make(context)
        if not data.absent and all(drawable(panel) for panel in data.panels):
            yield FIGURES[name].title, whole_figure(data, pyplot=False)


def save(figure: Figure, file: Path, form: str) -> None:
    """Write a figure without date and random names, so that equal figures give equal bytes."""
    import matplotlib as mpl

    no_date = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}
    with warnings.catch_warnings(), mpl.rc_context():
        mpl.rcParams.update({"svg.hashsalt": "rnndiag", "pdf.fonttype": 42, "svg.fonttype": "none"})
        # long names leave no room for axes, fonts lack characters, 1e308 overflows: draw without warnings
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        drawn = io.BytesIO()
        figure.savefig(drawn, format=form, dpi=200, metadata=no_date[form])
    write_whole(file, drawn.getvalue(), durable=False)
