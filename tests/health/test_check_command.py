"""`rnndiag check` and `rnndiag baseline` through the real console script: texts, files and every exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from rnndiag.cli import main
from rnndiag.run.run import Run

MakeRun = Callable[..., Run]
Done = subprocess.CompletedProcess[str]
ROOT = Path(__file__).parents[2]


def script() -> list[str]:
    """The installed console script, or what it calls where the checkout is not installed."""
    installed = Path(sys.executable).with_name("rnndiag")
    if installed.exists():
        return [str(installed)]
    return [sys.executable, "-c", "import sys; from rnndiag.cli import main; sys.exit(main())"]


def rnndiag(*words: object, cwd: Path, env: Mapping[str, str] | None = None) -> Done:
    paths = os.pathsep.join(filter(None, [(env or {}).get("PYTHONPATH"), str(ROOT)]))
    return subprocess.run(
        [*script(), *map(str, words)],
        cwd=cwd,
        env={**os.environ, **(env or {}), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def write_config(folder: Path, text: str) -> Path:
    path = folder / "pyproject.toml"
    path.write_text(text)
    return path


HEAD = '{"format": "rnndiag baseline", "version": 1, '
REACH = "[tool.rnndiag.checks.reach]\nmin = 25\nmax = 80\n"


def test_a_pass_exits_0(make_run: MakeRun, tmp_path: Path) -> None:
    done = rnndiag("check", make_run("good").path, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS  0 failed, 5 passed, 0 not judged" in done.stdout
    assert done.stdout.rstrip().endswith("[exit 0]")
    assert "judged: recordings 41-50 of 50 (steps 800-980), 1 layer" in done.stdout


def test_a_failed_check_exits_1_and_says_what_to_do(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("short", decay=lambda i: 0.95 if i < 17 else 0.85, layers=("rnn.l0",))
    write_config(tmp_path, REACH)
    done = rnndiag("check", "short", cwd=tmp_path)
    assert done.returncode == 1
    for words in (
        r"FAIL  reach +14\.2 steps +25 to 80",
        r"where +layer rnn\.l0",
        r"since +step 340, before that 38\.1",
        r"means +90 % of the credit lies within 15 of 60 steps of the loss",
        r"also +spectral_radius of rnn\.l0 fell 0\.950 -> 0\.850, steps 320-340",
        r"see +rnndiag report short --open",
        r"FAIL  1 failed, 5 passed, 0 not judged +\[exit 1\]",
    ):
        assert re.search(words, done.stdout), (words, done.stdout)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["check"], "Name either runs or --snapshot"),
        (["check", "good", "--frobnicate"], "unrecognized arguments"),
        (["check", "good", "--config", "missing.toml"], "cannot be read"),
        (["check", "good", "--min-recordings", "0"], "at least 1"),
        (["check", "good", "--json", "/proc/no/such/file"], "cannot be written"),
        (["baseline", "good"], "-o"),
    ],
)
def test_a_usage_error_exits_2(
    make_run: MakeRun, tmp_path: Path, words: list[str], told: str
) -> None:
    make_run("good", count=6)
    done = rnndiag(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[tool.rnndiag.checks.raech]\nmin = 3", "Did you mean 'reach'"),
        ("[tool.rnndiag.checks.reach]\nmni = 3", "Did you mean 'min'"),
        ("[tool.rnndiag]\nbasline = 'x'", "Did you mean 'baseline'"),
        ("[tool.rnndiag.checks.reach]\nmin = '3'", "Expected a number"),
        ("[tool.rnndiag.checks.reach]\nmin = true", "Expected a number"),
        ("[tool.rnndiag.checks.reach]\nmin = inf", "finite"),
        ("[tool.rnndiag.checks.reach]\nmin = 9\nmax = 3", "above max"),
        ("[tool.rnndiag.checks.reach]\nlevel = 'loud'", "'fail' or 'warn'"),
        ("[tool.rnndiag.checks.reach]\nchange = 'some'", "percentage"),
        ("[tool.rnndiag.checks.reach]\nshift = 10", "Expected a text"),
        ("[tool.rnndiag.checks.reach]\nlayers = 'x'", "list of texts"),
        ("[tool.rnndiag.checks]\nwindow = 'first 10'", "'last 20%'"),
        ("[tool.rnndiag.checks]\nmin_recordings = 0", "at least 1"),
        ("[tool.rnndiag.checks]\nfalse_alarm = 0.9", "below 0.5"),
        ("[tool.rnndiag]\nchecks = 3", "a table"),
        ("[tool.rnndiag.checks]\nreach = 3", "a table"),
        ("[tool", "not valid TOML"),
    ],
)
def test_a_bad_configuration_exits_2_with_one_sentence(
    tmp_path: Path, text: str, told: str
) -> None:
    write_config(tmp_path, text)
    done = rnndiag("check", "whatever", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_what_cannot_be_judged_exits_3(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("short", count=3)
    done = rnndiag("check", "short", "--junit", "out.xml", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines()[0] == "rnndiag: cannot judge short: the recording ends early"
    assert "  3 recordings are readable, the checks need 5 (min_recordings)." in done.stderr
    assert re.search(r"  Nothing was checked, so this is not a pass\. +\[exit 3\]", done.stderr)
    assert "  Judge what is there:  rnndiag check short --min-recordings 3" in done.stderr
    case = ElementTree.parse(tmp_path / "out.xml").find(".//testcase/error")
    assert case is not None
    assert rnndiag("check", "short", "--min-recordings", "3", cwd=tmp_path).returncode == 0
    assert rnndiag("check", "absent", cwd=tmp_path).returncode == 3
    (tmp_path / "empty").mkdir()
    assert rnndiag("check", "empty", cwd=tmp_path).returncode == 3
    assert (
        rnndiag(
            "check", "short", "--baseline", "absent.json", "--min-recordings", "3", cwd=tmp_path
        ).returncode
        == 3
    )


def test_an_internal_error_exits_4_and_not_1(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("good", count=6)
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "tomllib.py").write_text("1 / 0")
    (shadow / "tomli.py").write_text("1 / 0")
    done = rnndiag("check", "good", cwd=tmp_path, env={"PYTHONPATH": str(shadow)})
    assert done.returncode == 4, done.stdout + done.stderr
    assert "internal error: ZeroDivisionError" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failed_proof_exits_3_even_where_a_check_failed(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run(
        "odd",
        decay=0.8,
        recording=lambda i: {"verdict": "inexact", "reasons": {"rnn.l0": "the sum law fails"}},
    )
    write_config(tmp_path, REACH)
    done = rnndiag("check", "odd", cwd=tmp_path)
    assert done.returncode == 3
    assert "CANNOT JUDGE" in done.stdout
    assert "the sum law fails" in done.stdout
    assert "FAIL  reach" in done.stdout


def test_a_baseline_is_written_and_compared_with(make_run: MakeRun, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for seed in range(5):
        make_run(f"seed{seed}", decay=0.95 + 0.001 * rng.normal())
    done = rnndiag(
        "baseline", *[f"seed{i}" for i in range(5)], "-o", "ci/rnndiag.json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"reach of rnn\.l0: none -> 3\d\.\d steps", done.stdout)
    make_run("same", decay=0.9505)
    write_config(tmp_path, '[tool.rnndiag]\nbaseline = "ci/rnndiag.json"\n')
    done = rnndiag("check", "same", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "same against ci/rnndiag.json (5 runs at 4f1c9e2)" in done.stdout
    make_run("other", decay=0.85)
    done = rnndiag("check", "other", cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(
        r"FAIL  reach vs base +-6\d\.\d %    outside noise \(shift over \d+(\.\d+)? % fails\)",
        done.stdout,
    )
    assert "meant to change it?  rnndiag baseline other ... -o ci/rnndiag.json" in done.stdout
    done = rnndiag("baseline", "other", "-o", "ci/rnndiag.json", cwd=tmp_path)
    assert re.search(r"reach of rnn\.l0: 3\d\.\d -> 14\.2 steps", done.stdout)
    assert "noise between seeds is not known" in done.stdout


def test_a_fingerprint_that_differs_exits_3_and_names_the_field(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run("one")
    make_run("two", model_changes=lambda i: {"window_in_use": np.array(20.0)})
    rnndiag("baseline", "one", "-o", "base.json", cwd=tmp_path)
    done = rnndiag("check", "two", "--baseline", "base.json", cwd=tmp_path)
    assert done.returncode == 3
    assert "window is 20, the baseline has 60" in done.stderr
    write_config(tmp_path, '[tool.rnndiag]\ncomparable_across = ["window"]\n')
    assert rnndiag("check", "two", "--baseline", "base.json", cwd=tmp_path).returncode in (0, 1)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "nonsense",
        '{"format": "rnndiag baseline", "version": 99}',
        "[" * 100_000,
        HEAD + '"runs": ["a"], "values": {"reach": {"rnn.l0": [NaN]}}, "fingerprint": {}}',
        HEAD + '"runs": ["a"], "values": {"reach": {"rnn.l0": [1, 2]}}, "fingerprint": {}}',
        HEAD + '"runs": 3, "values": {}, "fingerprint": {}}',
    ],
)
def test_a_baseline_that_cannot_be_used_exits_3(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    run = make_run("one", count=6)
    base = tmp_path / "base.json"
    base.write_text(content)
    assert main(["check", str(run.path), "--baseline", str(base)]) == 3
    assert "baseline" in capsys.readouterr().err


def test_all_outputs_at_once_agree(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("short", decay=0.85, layers=("a.l0", "b.l0"))
    write_config(tmp_path, REACH)
    summary = tmp_path / "summary.md"
    done = rnndiag(
        "check",
        "short",
        "--json",
        "o.json",
        "--junit",
        "o.xml",
        "--markdown",
        "o.md",
        "--github",
        cwd=tmp_path,
        env={"GITHUB_STEP_SUMMARY": str(summary)},
    )
    assert done.returncode == 1
    content = json.loads((tmp_path / "o.json").read_text())
    failed = [one for one in content["findings"] if one["status"] == "fail"]
    assert content["outcome"]["code"] == 1
    assert {one["layer"] for one in failed} == {"a.l0", "b.l0"}
    suite = ElementTree.parse(tmp_path / "o.xml").find("testsuite")
    assert suite is not None
    assert suite.get("failures") == "2"
    assert len(suite.findall("testcase")) == int(suite.get("tests", "0"))
    assert summary.read_text() == (tmp_path / "o.md").read_text()
    assert summary.read_text().startswith("## rnndiag: FAIL, 1 failed")
    assert done.stdout.count("::error title=rnndiag reach in ") == 2


def test_help_is_there_without_numpy(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('not for help')")
    for words in (["--help"], ["check", "--help"], ["baseline", "--help"]):
        done = rnndiag(*words, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        assert "exit codes" in done.stdout or words[0] == "baseline"


def test_the_check_needs_no_torch(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("good", count=6)
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    for package in ("torch", "lightning", "pytorch_lightning", "scipy"):
        (shadow / f"{package}.py").write_text("raise ImportError('not here')")
    done = rnndiag("check", "good", cwd=tmp_path, env={"PYTHONPATH": str(shadow)})
    assert done.returncode == 0, done.stderr
    shutil.rmtree(shadow)
