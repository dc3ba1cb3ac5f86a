"""On a narrow screen words keep their size, tables become cards, and nothing is cut; keys name what is drawn."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from rnndiag.plot.panel_axes import draw_panel
from rnndiag.report.canvas import NARROW_WIDTH, frame_of
from rnndiag.report.figure_data import Axis, Band, Bubble, Line, Panel
from rnndiag.report.figures.over_training import _axis_of
from rnndiag.report.keys import key
from rnndiag.report.page import page
from rnndiag.report.svg import draw
from rnndiag.report.write_report import report_context

GALLERY = Path(__file__).parents[2] / "reports"
X = np.arange(5.0)


def band(width: float) -> Band:
    return Band(X, X, X + width, "half of outputs")


def panel(**parts: object) -> Panel:
    return Panel(
        Axis("lag", 0, 4), Axis("credit", 0, 5), lines=(Line(X, X, "a"), Line(X, X, "b")), **parts
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", ["wide", "low", "square"])
@pytest.mark.parametrize("names", [(), ("encoder.recurrence.lstm.l0", "b")])
def test_a_narrow_drawing_fits_a_phone(shape: str, names: tuple[str, ...]) -> None:
    one = Panel(Axis("lag", 0, 4), Axis("layer", 0, 2, names=names), shape=shape)  # type: ignore[arg-type]
    frame = frame_of(one, "narrow")
    assert frame.width == NARROW_WIDTH
    assert frame.inner[0] > 180
    words = re.findall(
        r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end"[^>]*>([^<]*)<', draw(one, "", "narrow")
    )
    assert all(float(x) - 6.7 * len(text) > -8 for x, text in words)


def test_every_figure_without_a_matrix_has_a_narrow_drawing() -> None:
    text = page(report_context(GALLERY / "lstm" / "lstm"))
    for block in re.findall(r'<div class="panel[^"]*">.*?</div>', text, re.DOTALL):
        pictures = re.findall(r'<svg viewBox="0 0 ([\d.]+)', block)
        both = 'class="panel both' in block
        assert both == (len(pictures) == 2 and pictures[1] == "340")
        assert not (both and "<image" in block)
    assert "panel both" in text


def test_every_figure_has_a_permalink_and_every_table_can_be_copied() -> None:
    text = page(report_context(GALLERY / "lstm" / "lstm"))
    names = re.findall(r'<section id="(F\d+)" class="figure">', text)
    assert names
    assert all(f'<a class="here" href="#{name}"' in text for name in names)
    assert text.count("data-copy hidden") == text.count("<summary>Numbers</summary>") > 0


def test_a_band_without_width_has_no_entry_in_the_key() -> None:
    assert "half of outputs" in [words for _, words in key(panel(bands=(band(1.0),)))]
    assert "half of outputs" not in [words for _, words in key(panel(bands=(band(0.0),)))]


def test_two_recordings_stand_under_their_own_steps() -> None:
    axis, x = _axis_of(np.array([0, 1500]), 1)
    assert axis.names == ("0", "1500")
    assert x.tolist() == [0, 1]
    assert _axis_of(np.arange(0, 50, 10), 1)[0].names == ()


def test_labels_of_close_bubbles_do_not_lie_over_each_other_in_matplotlib() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    figure, ax = plt.subplots()
    bubbles = tuple(Bubble(1.0 + 0.01 * k, 1.0, 0.1, f"Window({k})", "main") for k in range(5))
    draw_panel(Panel(Axis("bias", 0, 4), Axis("sd", 0, 5), bubbles=bubbles), ax)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 5
    assert not [1 for k, a in enumerate(boxes) for b in boxes[:k] if a.overlaps(b)]
    plt.close(figure)
