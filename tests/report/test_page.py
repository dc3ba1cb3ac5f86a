"""The page as text: valid HTML, nothing from outside, the same bytes again, and what it must say in every case."""

from __future__ import annotations

import base64
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_runs

import rnndiag
from rnndiag.cli import main
from rnndiag.errors import BadArgument, RunUnreadable
from rnndiag.report import write_report as module
from rnndiag.report.compare_page import comparable, compare_page
from rnndiag.report.context import Context
from rnndiag.report.figures import ORDER
from rnndiag.report.page import page
from rnndiag.report.strip import tiles
from rnndiag.report.write_report import report_context
from rnndiag.store.measurement import Measurement

CASES = ("full", "one_step", "one_recording", "not_finite", "zeros", "nothing", "missing")
# attributes and rules by which a page could ask for something
ASKING = re.compile(r"""(?:src|href|action|poster|data)\s*=\s*["'](?!#|data:image/png;base64,)""")
NASTY = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</title></style></script><b>",
    "{{ 7 * 7 }} {% raw %}",
    "\u202egnirts\u202c \u0000\u0007",
    "https://example.org/?a=1&amp;b=2",
    "]]>--><!--",
)


def errors_of(text: str) -> list[Any]:
    """What an HTML5 parser finds wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import html5lib
    parser = html5lib.HTMLParser()
    parser.parse(text)
    return list(parser.errors)


@pytest.mark.parametrize("case", CASES)
def test_the_page_is_valid_html_and_asks_for_nothing(
    case: str, context_of: Callable[[str], Context]
) -> None:
    text = page(context_of(case))
    assert errors_of(text) == []
    assert ASKING.findall(text.replace("data-", "data_")) == []
    assert "@import" not in text
    assert "url(" not in text
    ids = re.findall(r'\sid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert '<html lang="en">' in text


def test_the_same_run_gives_the_same_bytes(made: Callable[[str], Path]) -> None:
    assert page(report_context(made("full"))) == page(report_context(made("full")))


def test_the_title_is_the_verdict(context_of: Callable[[str], Context]) -> None:
    context = context_of("full")
    assert f"<title>{context.verdict.word} · full · rnndiag</title>" in page(context)


def test_what_failed_stands_open_and_what_passed_is_folded(
    context_of: Callable[[str], Context],
) -> None:
    context = context_of("not_finite")
    text = page(context)
    checks = text[text.index('<section id="checks">') : text.index('<section id="layers">')]
    opened, folded = checks.split("<details>")
    rows = [f for f in context.findings if f.status in ("fail", "warn", "not_judged") or f.notable]
    assert len(re.findall("<tr class=", opened)) == len(rows) > 0
    assert "is-fail" in opened
    assert "is-fail" not in folded
    assert len(re.findall("<tr class=", checks)) == len(context.findings)


def test_nothing_recorded_is_said(context_of: Callable[[str], Context]) -> None:
    text = page(context_of("nothing"))
    assert "NOTHING RECORDED" in text
    assert "training stopped before the first recording step" in text
    assert "<svg" not in text


def test_an_open_run_says_that_training_goes_on(tmp_path: Path) -> None:
    text = page(report_context(report_runs.write(tmp_path / "run", (0, 10), 6, close=False)))
    assert "Training is still running: this page shows what was recorded" in text


def test_a_layer_can_be_chosen(made: Callable[[str], Path]) -> None:
    context = report_context(made("full"), layer="encoder.l1")
    assert context.lead == "encoder.l1"
    with pytest.raises(BadArgument, match=r"has no layer 'x'. It has encoder.l0, encoder.l1"):
        report_context(made("full"), layer="x")


def test_a_baseline_run_is_drawn_and_judged(made: Callable[[str], Path]) -> None:
    context = report_context(
        made("full"), baseline=made("full"), config={"checks": {"min_recordings": 1}}
    )
    assert any(f.check == "reach vs base" and f.change == "identical" for f in context.findings)
    assert "> baseline</li>" in page(context)


def test_the_numbers_are_embedded_as_json(context_of: Callable[[str], Context]) -> None:
    context = context_of("full")
    (text,) = re.findall(
        r'<script type="application/json" id="numbers">(.*?)</script>', page(context)
    )
    told = json.loads(text)
    assert told["verdict"]["word"] == context.verdict.word
    assert len(told["figures"]) == 12
    assert len(told["checks"]) == len(context.findings)


def hostile(folder: Path) -> Path:
    """A run whose every name and word is an attack, and whose numbers are as bad as numbers can be."""
    layers = [f"{nasty} {k}" for k, nasty in enumerate(NASTY)]
    bad = np.array([np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, 0.0])

    def edit(m: Measurement, step: int) -> Measurement:
        values = np.resize(bad, m.values.shape)
        if m.name in ("valid_samples", "chunk_size", "history_step"):
            return m
        labels = {
            dim: tuple(f"{NASTY[k % len(NASTY)]}{k}" for k in range(len(of)))
            for dim, of in m.coordinates.items()
            if dim in ("parameter", "gate", "block", "estimator", "token", "part")
        }
        return replace(m, values=values, coordinates={**m.coordinates, **labels})

    facts = {
        "versions": {nasty: nasty for nasty in NASTY},
        "model": {"layers": {layer: {"cell": layer, "hidden": layer} for layer in layers}},
        "trainer": {nasty: list(NASTY) for nasty in NASTY},
        "config": NASTY,
        "seed": NASTY[0],
        "command": list(NASTY),
        "git": NASTY[1],
    }
    notes = {
        "labels": {layer: list(NASTY) * 4 for layer in layers},
        "sampling": dict.fromkeys(layers, NASTY[0]),
        "not_measured": dict.fromkeys(NASTY, NASTY[1]),
        "cause": dict.fromkeys(layers, NASTY[2]),
    }
    return report_runs.write(
        folder / "<b>run & 'co'", (0, 10, 20), 12, layers, edit, provenance=facts, notes=notes
    )


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(report_context(hostile(tmp_path_factory.mktemp("hostile"))))


def test_a_hostile_run_stays_text(attacked: str) -> None:
    assert errors_of(attacked) == []
    for tag in ("<script>alert", "<img", "<b>run", "<!--"):
        assert tag not in attacked
    assert len(re.findall("<script", attacked)) == 2
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in attacked
    assert "{{ 7 * 7 }}" in attacked.replace("&#39;", "'")
    assert ">nan<" not in attacked
    assert not re.search(r'(?:points|x|y|cx|cy|d)="[^"]*(?:nan|inf)', attacked)


def test_a_hostile_run_compares_and_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    run = hostile(tmp_path)
    text = compare_page(comparable([report_context(run), report_context(run)]))
    assert errors_of(text) == []
    assert len(re.findall("<script", text)) == 2
    assert main(["report", str(run), "--figures", str(tmp_path / "f"), "--format", "svg"]) == 0
    files = len(list((tmp_path / "f").iterdir()))
    assert files + capsys.readouterr().out.count("not drawn: ") == len(ORDER)


def test_absurd_claims_are_refused_in_one_sentence(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_LAYERS", 1)
    with pytest.raises(RunUnreadable, match="full claims 2 layers, and a report shows at most 1"):
        report_context(made("full"))


def test_the_command_writes_page_json_and_figures(
    made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out" / "page.html"
    words = ["report", str(made("full")), "-o", str(target), "--json", str(tmp_path / "n.json")]
    assert main(words) == 0
    context = report_context(made("full"))
    assert target.read_text(encoding="utf-8") == page(context)
    assert json.loads((tmp_path / "n.json").read_text())["verdict"]["word"] == context.verdict.word
    told = capsys.readouterr()
    assert context.verdict.word in told.out
    progress = ("rnndiag: reading ", "rnndiag: done in ")  # told where it takes seconds
    assert all(line.startswith(progress) for line in told.err.splitlines())
    assert list(target.parent.iterdir()) == [target]


def test_the_command_s_faults_are_sentences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "none")]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_the_public_name_writes_a_page(made: Callable[[str], Path], tmp_path: Path) -> None:
    found = rnndiag.write_report(made("full"), tmp_path / "r.html")
    assert found.stat().st_size < 300_000


def test_a_notebook_shows_the_verdict_and_the_headline_numbers(
    made: Callable[[str], Path], context_of: Callable[[str], Context], tmp_path: Path
) -> None:
    context = context_of("full")
    shown = rnndiag.open_run(made("full"))._repr_html_()
    assert f"<b>{context.verdict.word}</b> {escape(context.verdict.sentence)}" in shown
    for tile in tiles(context):
        assert f"<b>{tile.value}</b>" in shown
    attacked = rnndiag.open_run(hostile(tmp_path))._repr_html_()
    assert "<script" not in attacked
    assert errors_of(f"<!doctype html><title>x</title><body>{attacked}") == []


def test_pictures_carry_their_data(context_of: Callable[[str], Context]) -> None:
    """Palette PNGs: signature, and few bytes."""
    found = re.findall(r"data:image/png;base64,([\w+/=]+)", page(context_of("full")))
    assert len(found) >= 6
    for text in found:
        assert base64.b64decode(text).startswith(b"\x89PNG")
