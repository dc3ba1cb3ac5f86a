"""Text in a run made by a stranger is obeyed by no terminal, no log and no spreadsheet."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closed_form_runs import PROVENANCE, measurements, of_model

import rnndiag
from rnndiag.cli import COMMANDS, main
from rnndiag.errors import CannotJudge
from rnndiag.health import exit_code
from rnndiag.health.finding import Finding
from rnndiag.health.result import evaluate_runs
from rnndiag.health.writers.json_file import json_text
from rnndiag.health.writers.markdown import markdown_text
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.safe_text import safe_line
from rnndiag.store.writer import RunWriter

MakeRun = Callable[..., rnndiag.Run]
EVIL = "\x1b]0;owned\x07\u202e\n::error title=x::owned\n##[command]##vso[task]\r\u2066"


def hostile_run(folder: Path, evil: str = EVIL) -> Path:
    """A run with the same text in every string that a run can hold."""
    layers = {evil: {"cell": evil, "hidden": evil, "T": evil}}
    provenance = {
        **dict.fromkeys(("host", "os", "seed"), evil),
        "versions": {evil: evil, "torch": evil, "rnndiag": evil},
        "git": {"commit": evil, "dirty": evil},
        "model": {"layers": layers, "name": evil},
        "trainer": {"precision": evil, evil: evil},
        "config": {evil: evil, "time_unit": [evil, 1.0], "stride": evil},
        "command": [evil, evil],
    }
    finding = Finding(evil, "fail", evil, 1.0, evil, evil, message=evil, remedy=evil, word=evil)
    notes: dict[str, Any] = {
        "preflight": [
            {**finding.as_json(), "details": [f"since {evil}", f"also {evil}"], "baseline": evil}
        ],
        "errors": [evil],
        "black_box": {"sentence": evil},
        "clipping": [{"threshold": 1.0, "share": 0.5, "word": evil}],
        "cause": {evil: {"kind": evil, "sentence": evil}},
        **{
            key: {evil: evil}
            for key in ("sampling", "resets", "seam", "not_measured", "stacks", evil)
        },
    }
    with RunWriter(folder, provenance, durable=False) as writer:
        for step in range(6):
            found = (
                *measurements(evil, 0.9, spectral_radius=None),
                *of_model(),
                Measurement(
                    "q" + evil, np.ones(2), (evil,), evil, "linear", evil, {evil: (evil, evil)}
                ),
                Measurement.of("spectral_radius", np.ones(1), evil, {"block": (evil,)}),
            )
            verdict: Any = "inexact" if step == 5 else "exact"
            writer.append(
                Recording(
                    step,
                    verdict=verdict,
                    reasons={evil: evil} if step == 5 else {},
                    measurements=found,
                    notes=notes,
                )
            )
        writer.close(evil, gave_up={evil: evil}, cut_short=True)
    return folder


def every_command(run: Path, folder: Path) -> Iterator[list[str]]:
    yield ["check", str(run), "--unfinished"]
    yield ["check", str(run), "--github", "--baseline", str(run)]
    yield ["check", str(run), "--min-recordings", "99"]
    yield ["report", str(run), "-o", str(folder / "r.html"), "--json", str(folder / "r.json")]
    yield ["report", str(run), "-o", str(folder / "r.html"), "--layer", EVIL]
    yield ["compare", str(run), str(run), "-o", str(folder / "c.html")]
    yield ["baseline", str(run), "-o", str(folder / "b.json")]
    yield ["show", str(run)]
    yield ["show", str(run), "--json"]
    yield ["show", str(run), "-q", f"q{EVIL}"]
    yield ["show", str(run), "-q", EVIL]
    yield ["export", str(run)]
    yield ["export", str(run), "--format", "json"]
    yield ["export", str(run), "-q", EVIL]
    yield ["verify", str(run)]
    yield ["runs", str(run.parent), "--html", str(folder / "runs.html")]
    yield ["compact", str(run), "--max-bytes", "10M"]
    yield [EVIL]
    yield ["check", str(folder / EVIL.replace("/", "").replace("\0", ""))]


def is_obeyed(line: str) -> bool:
    """Whether a terminal or a CI log would do more with a line than show it."""
    commands = line.lstrip().startswith("::") or "##[" in line or "##vso[" in line
    return commands or not all(c.isprintable() for c in line)


OURS = re.compile(r"::(error|warning) title=rnndiag[^:]*::[^\x00-\x1f]*")


def test_no_command_prints_what_a_terminal_or_a_log_obeys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = hostile_run(tmp_path / "runs" / "run")
    seen = set()
    for words in every_command(run, tmp_path):
        code = main(words)
        told = capsys.readouterr()
        assert code != 4, (words, told.err)
        seen.add(words[0])
        for line in (told.out + told.err).split("\n"):
            if "--github" in words and OURS.fullmatch(line):
                continue
            assert not is_obeyed(line), (words, line)
    assert {
        "check",
        "report",
        "compare",
        "baseline",
        "show",
        "export",
        "verify",
        "runs",
        "compact",
    } <= seen
    assert seen - {EVIL} <= set(COMMANDS)


HOSTILE_ANSWERS: dict[str, dict[str, Any]] = {
    "doctor": {"rows": [{"name": EVIL, "state": "fault", "found": EVIL, "remedy": EVIL}]},
    "frozen.snapshot": {
        "numbers": {f"{EVIL}@{EVIL}": [1.0]},
        "layers": {EVIL: EVIL},
        "dtype": "float32",
        "inexact": {},
    },
    "frozen.need": {
        "sentences": [EVIL],
        "loss": 1.0,
        "scale": 2.0,
        "present": {"gain": 0.1, "lower": 0.0, "upper": 0.2},
        "groups": [],
        "use": [{"inputs": EVIL, "rise": 0.1, "lower": 0.0, "upper": 0.2}],
    },
}
"""What a process with a hostile model in it may answer."""


@pytest.mark.parametrize("raises", [False, True])
def test_nothing_that_a_model_says_is_obeyed(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    raises: bool,
) -> None:
    def ask(module: str, words: object) -> dict[str, Any]:
        if raises:
            raise CannotJudge(EVIL, EVIL)
        return HOSTILE_ANSWERS[module]

    monkeypatch.setattr("rnndiag.health.torch_side.ask", ask)
    monkeypatch.setattr("rnndiag.health.frozen.ask", ask)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "snapshot.json").write_text(json.dumps({"factory": f"{EVIL}:make"}))
    stored = {**HOSTILE_ANSWERS["frozen.snapshot"], "layers": {EVIL: f"{EVIL} of old"}}
    (folder / "numbers.json").write_text(json.dumps(stored))
    frozen = ["--snapshot", str(folder)]
    for words in (
        ["doctor"],
        ["doctor", "--json"],
        ["need", *frozen, "--json", str(tmp_path / "need.json")],
        ["check", *frozen, "--github"],
        ["baseline", *frozen],
        ["snapshot", EVIL, "-o", str(tmp_path / "new")],
    ):
        code = main(words)
        told = capsys.readouterr()
        assert code != 4, (words, told.err)
        for line in (told.out + told.err).split("\n"):
            assert OURS.fullmatch(line) or not is_obeyed(line), (words, line)


def test_no_page_or_file_holds_a_control_character(tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "run")
    result = evaluate_runs(run, config={"checks": {"min_recordings": 2}})
    for text in (markdown_text(result), json_text(result)):
        assert all(c.isprintable() or c == "\n" for c in text)
    page = rnndiag.write_report(run, tmp_path / "page.html").read_text()
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", page)


@pytest.mark.parametrize(
    ("line", "safe"),
    [
        ("::set-env name=A::b", r"\x3a:set-env name=A::b"),
        ("   ::error::x", r"   \x3a:error::x"),
        ("a ##[group]x", r"a #\x23[group]x"),
        ("##vso[task.setvariable]x", r"#\x23vso[task.setvariable]x"),
        ("rnn.l0::x", "rnn.l0::x"),
        ("\x1b[31mred", r"\x1b[31mred"),
    ],
)
def test_a_line_is_escaped_where_it_would_be_obeyed(line: str, safe: str) -> None:
    assert safe_line(line) == safe


def test_a_layer_called_like_a_formula_is_drawn_and_exported_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    name = r"$\frac{"
    with RunWriter(tmp_path / "run", PROVENANCE, durable=False) as writer:
        for step in range(6):
            found = (*measurements(name, 0.9), *measurements(" =1+1", 0.9), *of_model())
            writer.append(Recording(step, verdict="exact", measurements=found))
    words = ["--figures", str(tmp_path / "figures"), "--format", "svg", "--layer", name]
    assert main(["report", str(tmp_path / "run"), *words]) == 0
    assert any((tmp_path / "figures").iterdir())
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), "-q", "spectral_radius"]) == 0
    out = capsys.readouterr().out
    assert "' =1+1" in out
    assert ", =1+1" not in out


def test_a_hostile_run_is_never_a_pass(tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "run")
    assert exit_code(rnndiag.check(run, config={"checks": {"min_recordings": 2}})) == 3
