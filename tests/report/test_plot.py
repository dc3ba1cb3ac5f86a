"""rnndiag.plot: the same arrays as the page's, on matplotlib axes; files with the same bytes again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

import rnndiag
from rnndiag import plot
from rnndiag.errors import BadArgument, RunUnreadable
from rnndiag.plot.one_figure import save, whole_figure
from rnndiag.report.context import Context
from rnndiag.report.figures import FIGURES, ORDER

mpl.use("Agg")
from matplotlib import pyplot as plt

WORDS = """reach need over_training credit_matrix contributions products truncation estimators stability health layers
memory"""
NAMES = dict(zip(ORDER, WORDS.split(), strict=False))


@pytest.mark.parametrize("name", ORDER)
def test_axes_hold_the_page_s_arrays(
    name: str, made: Callable[[str], Path], context_of: Callable[[str], Context]
) -> None:
    data = FIGURES[name].make(context_of("full"))
    ax = getattr(plot, NAMES.get(name, FIGURES[name].file))(rnndiag.open_run(made("full")))
    panels = data.panels
    drawn = [axes for axes in ax.figure.axes if axes.get_label() != "<colorbar>"]
    assert len(drawn) == len(panels)
    for axes, panel in zip(drawn, panels, strict=True):
        assert axes.get_xlim() == pytest.approx((panel.x.low, panel.x.high))
        assert axes.get_ylim() == pytest.approx((panel.y.low, panel.y.high))
        curves = {line.get_label(): line for line in axes.get_lines()}
        for line in panel.lines:
            if not line.label:
                continue
            y = np.asarray(curves[line.label].get_ydata(), float)
            inside = (line.y >= panel.y.low) & (line.y <= panel.y.high)
            assert y[inside] == pytest.approx(line.y[inside])
            assert np.isnan(y[~inside]).all()
    plt.close(ax.figure)


def test_a_given_axes_is_drawn_on(made: Callable[[str], Path]) -> None:
    figure, (left, right) = plt.subplots(1, 2)
    assert plot.reach(made("full"), ax=left) is left
    assert plot.truncation(made("full"), ax=right, panel=1) is right
    assert right.get_ylabel() == "cosine"
    assert len(left.get_lines()) >= 2
    plt.close(figure)


def test_a_figure_for_a_paper_is_as_wide_as_its_column(made: Callable[[str], Path]) -> None:
    for name, panels in (("reach", 1), ("truncation", 2), ("estimators", 1)):
        axes = getattr(plot, name)(made("full"), width=3.3)
        figure = axes.figure
        figure.canvas.draw()
        assert figure.get_figwidth() == pytest.approx(3.3)
        assert len(figure.axes) == panels
        assert axes.xaxis.label.get_fontsize() == 8
        edge = figure.bbox.x1 + 1
        assert all(
            t.get_window_extent().x0 >= 0 and t.get_window_extent().x1 <= edge
            for t in axes.get_legend().get_texts()
        )
        assert axes.get_legend().get_window_extent().y1 < axes.bbox.y0
        plt.close(figure)


def test_a_width_of_given_axes_or_of_nothing_is_refused(made: Callable[[str], Path]) -> None:
    figure, ax = plt.subplots()
    with pytest.raises(BadArgument, match="on given axes"):
        plot.reach(made("full"), ax=ax, width=3.3)
    plt.close(figure)
    with pytest.raises(BadArgument, match="width=0 inches"):
        plot.reach(made("full"), width=0)


def test_what_is_not_there_is_a_sentence(made: Callable[[str], Path]) -> None:
    with pytest.raises(RunUnreadable, match=r"nothing to draw: No recordings"):
        plot.reach(made("nothing"))
    with pytest.raises(BadArgument, match=r"no panel 7. It has panels 0 to 0"):
        plot.reach(made("full"), ax=None, panel=7)


@pytest.mark.parametrize("form", ["pdf", "svg", "png"])
def test_a_file_is_the_same_again(
    form: str, context_of: Callable[[str], Context], tmp_path: Path
) -> None:
    data = FIGURES["F1"].make(context_of("full"))
    for name in ("a", "b"):
        save(whole_figure(data, pyplot=False), tmp_path / name, form)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert not plt.get_fignums()


def test_every_figure_that_has_something_to_show_is_a_file(
    context_of: Callable[[str], Context], tmp_path: Path
) -> None:
    written, missing = plot.save_figures(context_of("one_recording"), tmp_path / "a", "svg")
    assert len(written) == 11
    assert written[0].name == "F1-reach.svg"
    assert all(file.read_bytes().startswith(b"<?xml") for file in written)
    assert missing == [
        "F2 Over training: One recording only: how the reach moves shows from the second recording on."
    ]


def test_an_unknown_format_is_refused(context_of: Callable[[str], Context], tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="'gif' is no format for figures"):
        plot.save_figures(context_of("full"), tmp_path, "gif")
