"""Numbers with their errors as LaTeX: rounded by the error, escaped, dated."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rnndiag.cli import main
from rnndiag.report.latex_table import escaped, latex_table, with_error
from rnndiag.report.write_report import report_context

GALLERY = Path(__file__).parents[2] / "reports"


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (31.94, 0.62, r"$31.94 \pm 0.62$"),
        (31.94, 12.0, r"$32 \pm 12$"),
        (-0.1234, 0.00321, r"$-0.1234 \pm 0.0032$"),
        (2.96, math.nan, "$2.96$"),
        (2.96, 0.0, "$2.96$"),
        (math.nan, 1.0, "--"),
        (math.inf, math.nan, r"$\infty$"),
    ],
)
def test_the_error_decides_how_many_digits_are_shown(
    value: float, error: float, words: str
) -> None:
    assert with_error(value, error) == words


def test_names_are_taken_literally() -> None:
    assert escaped(r"a_b{$\frac%#&~^}") == (
        r"a\_b\{\$\textbackslash{}frac\%\#\&\textasciitilde{}\textasciicircum{}\}"
    )
    assert escaped("a\x1b[31m\n\u202e") == "a?[31m??"


def test_the_table_has_a_row_per_layer_and_says_its_steps() -> None:
    context = report_context(GALLERY / "bidirectional" / "bidirectional")
    text = latex_table(context)
    body = text.split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()
    assert [row.split(" & ")[0].strip() for row in body] == [
        escaped(name) for name in context.layers
    ]
    assert all(row.count(" & ") == 4 and row.endswith("\\\\") for row in body)
    assert f"steps {context.run.judged()[0]} to {context.run.judged()[-1]}" in text


def test_the_command_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = GALLERY / "lstm" / "lstm"
    assert main(["export", str(run), "--latex", "-o", str(tmp_path / "t.tex")]) == 0
    assert main(["export", str(run), "--latex"]) == 0
    assert (tmp_path / "t.tex").read_text(encoding="utf-8") == capsys.readouterr().out
