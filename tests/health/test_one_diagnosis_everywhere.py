"""Screen, page, `show`, `check` and notebook say the diagnosis and nothing else first; and never 'healthy' in vain."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diagnosed_runs import STEPS, T, falling_losses, layer, profile, relu, stuck_losses, write

import rnndiag
from rnndiag.cli.show import overview
from rnndiag.health.diagnosis.finding import heading
from rnndiag.health.gate import look
from rnndiag.health.outcome import verdict
from rnndiag.recorder.output.screen import screen
from rnndiag.report.page import page
from rnndiag.report.write_report import report_context
from rnndiag.run.run import Run
from rnndiag.stats.time_words import TimeWords

DEAD = relu(dead_units=0.9, saturated_units=0.9)
CASES: dict[str, Callable[[Path], Run]] = {
    "learned": lambda path: write(
        path, {"rnn.l0": layer(swing=0.5)}, falling_losses(1.4, 0.01, 0.2)
    ),
    "at rest": lambda path: write(
        path, {"rnn.l0": layer(swing=0.2)}, falling_losses(1.4, 0.7, 0.2)
    ),
    "stuck": lambda path: write(path, {"rnn.l0": layer()}),
    "shut": lambda path: write(path, {"rnn.l0": layer(gate_mean=np.full((3, T), 0.02))}),
    "dead units": lambda path: write(path, {"rnn.l0": DEAD}, cell="elman_relu"),
    "dead units in a net that learns": lambda path: write(
        path, {"rnn.l0": {**DEAD, "swing": 0.5}}, falling_losses(1.4, 0.5, 1.0), cell="elman_relu"
    ),
    "learning rate too high, proofs failed": lambda path: write(
        path,
        {"rnn.l0": layer(update_ratio=[0.9, 0.3])},
        falling_losses(1.4, 5.0, 0.2),
        verdict="inexact",
    ),
    "stuck, proofs failed": lambda path: write(path, {"rnn.l0": layer()}, verdict="inexact"),
    "learned, proofs failed": lambda path: write(
        path, {"rnn.l0": layer(swing=0.5)}, falling_losses(1.4, 0.01, 0.2), verdict="inexact"
    ),
    "explodes": lambda path: write(
        path, {"rnn.l0": relu(credit_profile=profile(1.3))}, cell="elman_relu"
    ),
    "nothing finite after the first recording": lambda path: write(
        path,
        {"rnn.l0": layer(credit_profile=[profile(0.97), None])},
        np.where(np.arange(STEPS) < 50, stuck_losses(), np.nan),
    ),
    "few steps": lambda path: write(path, {"rnn.l0": layer()}, stuck_losses(steps=12)),
}


def said(run: Run) -> dict[str, str]:
    """Surface -> its first line on the state of the model."""
    html = unescape(page(report_context(run)))
    title = re.search(r"<h1>.*?</span>(.*?)<span", html, re.S)
    first = rnndiag.check(run, config={"checks": {"min_recordings": 1}})[0]
    return {
        "screen": screen(run, 0.01, TimeWords(None, 1)).splitlines()[1].strip(),
        "page": title[1].strip() if title else "",
        "show": next(x for x in list(overview(run))[1:]).strip(),
        "check": first.word,
        "notebook": (re.search(r"<b>(.*?)</b>", unescape(rnndiag.verdict_strip(run))) or [""] * 2)[
            1
        ],
        "finding": verdict(look(run), run).word,
    }


@pytest.mark.parametrize("case", CASES)
def test_every_surface_says_the_same(case: str, tmp_path: Path) -> None:
    run = CASES[case](tmp_path / "run")
    word = heading(rnndiag.diagnose(run))
    assert said(run) == dict.fromkeys(said(run), word)


def test_a_run_whose_proofs_failed_is_never_healthy_and_its_numbers_name_no_cause(
    tmp_path: Path,
) -> None:
    found = rnndiag.diagnose(CASES["learned, proofs failed"](tmp_path / "run"))
    assert (found.state, [cause.name for cause in found.causes]) == ("not_trusted", ["not_trusted"])
    found = rnndiag.diagnose(CASES["learning rate too high, proofs failed"](tmp_path / "rate"))
    assert found.causes[0].name == "learning_rate_too_high"  # which rests on no proof


def test_rounding_in_a_net_of_huge_numbers_is_no_second_cause(tmp_path: Path) -> None:
    shut = layer(gate_low=np.full(3, 0.9), input_spread=300.0)
    run = write(tmp_path / "run", {"rnn.l0": shut}, verdict="inexact")
    assert [cause.name for cause in rnndiag.diagnose(run).causes] == ["saturated"]
    assert "But: " not in verdict(look(run), run).sentence


@pytest.mark.parametrize("case", ["dead units", "explodes"])
def test_a_check_that_says_what_the_diagnosis_says_is_not_told_twice(
    case: str, tmp_path: Path
) -> None:
    run = CASES[case](tmp_path / "run")
    found = verdict(look(run), run)
    assert "But: " not in found.sentence


def test_a_check_that_fails_beside_a_healthy_model_is_told_in_the_sentence(tmp_path: Path) -> None:
    run = CASES["learned"](tmp_path / "run")
    config = {"checks": {"decay": {"max": 0.5, "min_recordings": 1}}}
    found = verdict(look(run, config), run)
    assert found.word == "HEALTHY, LEARNED"
    assert (found.kind, found.exit_code) == ("fault", 1)
    assert "But: " in found.sentence
    assert "rnn.l0" in found.sentence


def unmoved(kind: int, level: float, draw: np.random.Generator) -> np.ndarray:
    """Losses that end where they began: flat, up and back, down and back, or in waves."""
    way = np.linspace(0, 1, STEPS)
    bump = [
        0 * way,
        4 * way * (1 - way),
        -0.4 * 4 * way * (1 - way),
        0.2 * np.sin(40 * np.pi * way),
    ][kind]
    noise = draw.choice([0.0, 0.002, 0.05]) * draw.standard_normal(STEPS)
    found: np.ndarray = level + abs(level) * (bump + noise)
    return found


def test_no_headline_is_healthy_where_the_loss_has_not_moved(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(48):
        level = float(draw.choice([1.386, 0.693, 2.0e4, 1e-6, -3.0]))
        changes: dict[str, Any] = {
            "swing": abs(level) * float(draw.choice([0.0, 0.2, 0.5, 50.0])),
            "update_ratio": float(draw.choice([1e-6, 0.01, 0.1])),
            "credit_profile": profile(float(draw.choice([0.5, 0.97, 1.0]))),
        }
        if draw.random() < 0.2:
            changes["swing"] = None
        run = write(
            tmp_path / str(number), {"rnn.l0": layer(**changes)}, unmoved(number % 4, level, draw)
        )
        found = rnndiag.diagnose(run)
        told = (number, level, changes["swing"], found.headline)
        assert not found.healthy, told
        assert not heading(found).startswith(("HEALTHY", "LEARNED", "AT REST")), told
        assert "HEALTHY" not in verdict(look(run), run).word, told


def test_a_layer_s_name_keeps_its_case_at_the_start_of_a_sentence(tmp_path: Path) -> None:
    for name in ("rnn.l0", "encoder"):
        finding = {
            "check": "preflight: time and batch swapped",
            "status": "fail",
            "message": f"{name} walks along the batch",
            "layer": name,
        }
        run = write(tmp_path / name, {name: layer()}, notes={0: {"preflight": [finding]}})
        told = rnndiag.diagnose(run)
        assert told.causes[0].sentence.startswith(name)
        everything = "\n".join([page(report_context(run)), *overview(run), told.headline])
        assert name.capitalize() not in everything


def test_many_calls_of_a_layer_are_folded_on_the_screen(tmp_path: Path) -> None:
    calls = ["core", *(f"core#{n}" for n in range(2, 13))]
    run = write(tmp_path / "run", dict.fromkeys(calls, layer()))
    text = screen(run, 0.01, TimeWords(None, 1))
    assert "1 layer in 12 calls, T = " in text
    assert sum(line.startswith("  core") for line in text.splitlines()) == 5
    assert "7 more such lines stand in the report." in text
