"""On a narrow screen words keep their size, tables become cards, and nothing is cut; keys name what is drawn."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import report_runs

from rnndiag.plot.panel_axes import draw_panel
from rnndiag.report.canvas import NARROW_WIDTH, frame_of, shortened
from rnndiag.report.figure_data import Axis, Band, Bubble, Line, Panel
from rnndiag.report.figures import FIGURES
from rnndiag.report.figures.over_training import _axis_of
from rnndiag.report.keys import key
from rnndiag.report.label_places import LabelPlaces, Place
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


def test_close_bubbles_share_a_label_in_matplotlib_and_the_legend_names_them() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    figure, ax = plt.subplots()
    try:
        at = (1.0, 1.01, 1.2, 1.4, 1.41)
        bubbles = tuple(Bubble(x, 1.0, 0.1, f"Window({k})", "main") for k, x in enumerate(at))
        draw_panel(Panel(Axis("bias", 0, 4), Axis("sd", 0, 5), bubbles=bubbles), ax)
        figure.canvas.draw()
        assert [text.get_text() for text in ax.texts] == ["1, 2", "3", "4, 5"]
        boxes = [text.get_window_extent() for text in ax.texts]
        assert not [1 for k, a in enumerate(boxes) for b in boxes[:k] if a.overlaps(b)]
        legend = ax.get_legend()
        assert [text.get_text() for text in legend.get_texts()] == [
            f"{k + 1} Window({k})" for k in range(5)
        ]
    finally:
        plt.close(figure)


def test_a_label_avoids_curves_ends_and_other_labels() -> None:
    places = LabelPlaces(0, 100, 0, 100)
    places.add_curve(np.array([0.0, 100.0]), np.array([50.0, 50.0]))
    places.add_curve(np.array([40.0, 40.0]), np.array([0.0, 100.0]))
    spots = [Place.of(x, y, "start", 30, 10) for y in (50, 20, 80) for x in (20, 90, 60)]
    assert [(p.x, p.y) for p in (places.choose(spots), places.choose(spots))] == [
        (60, 20),
        (60, 80),
    ]


def test_bubbles_have_their_numbers_in_key_and_picture() -> None:
    bubbles = (Bubble(1, 1, 0.1, "full", "second"), Bubble(3, 4, 0.1, "window 3", "main"))
    one = Panel(Axis("bias", 0, 4), Axis("sd", 0, 5), bubbles=bubbles)
    assert [words for _, words in key(one)] == ["full", "window 3"]
    assert ">1</text>" in draw(one, "")
    assert ">2</text>" in draw(one, "")


def test_tick_numbers_are_never_cut() -> None:
    one = Panel(Axis("step", 0, 4), Axis("rate", -0.25, -0.15), lines=(Line(X, X - 0.2),))
    assert "…" not in draw(one, "", "small") + draw(one, "", "narrow")


FORTY = [f"encoder.block{k}.rnn.l0" for k in range(40)]


def test_of_forty_layers_five_rows_stand_open(tmp_path: Path) -> None:
    context = report_context(report_runs.write(tmp_path / "run", (0, 10), 6, FORTY))
    text = page(context)
    table = text[text.index('<section id="layers">') :]
    opened, folded = table[: table.index("</section>")].split("<details>")
    assert len(re.findall("<tr><td", opened)) == 5
    assert "35 more layers" in folded
    assert len(re.findall("<tr><td", folded)) == 35
    do = text[text.index('<section id="do">') :].split("</section>")[0]
    assert "and 35 more" in do
    assert do.count("encoder.block") <= 6


def test_the_first_screen_is_verdict_evidence_and_what_to_do(tmp_path: Path) -> None:
    run = report_runs.write(tmp_path / "run", (0, 10), 30)
    text = page(report_context(run, config={"needs": 25}))
    order = [text.index(f'id="{name}"') for name in ("F1", "do", "checks", "layers", "F2", "how")]
    assert text.index('<div class="verdict') < order[0]
    assert order == sorted(order)
    evidence = text[order[0] : order[1]]
    for label in ("reach: ", "window in use: ", "window for 10 % bias: ", "the task needs lag 25"):
        assert f">{label}" in evidence, label


def test_each_figure_names_the_steps_that_it_is_from(tmp_path: Path) -> None:
    text = page(report_context(report_runs.write(tmp_path / "run", (0, 10), 6)))
    of = {name: text[text.index(f'id="{name}"') :].split("</section>")[0] for name in ("F1", "F2")}
    assert "</b>, step 10." in of["F1"]
    assert "</b>, steps 0 to 10." in of["F2"]


def test_layers_of_long_names_are_told_apart_beside_the_axis() -> None:
    figure = FIGURES["F10"].make(report_context(GALLERY / "seq2seq" / "seq2seq"))
    names = [shortened(name) for name in figure.panels[0].y.names]
    assert len(set(names)) == len(names) == 2
