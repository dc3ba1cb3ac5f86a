"""2,000 mutated runs and configurations: no traceback, and no pass that the unharmed run would not have had."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnndiag.cli import main
from rnndiag.run.run import Run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG = """\
[tool.rnndiag]
baseline = "base.json"

[tool.rnndiag.checks]
window = "last 20%"
min_recordings = 5
false_alarm = 0.01

[tool.rnndiag.checks.nonfinite]
max = 0
window = "all"

[tool.rnndiag.checks.reach]
min = 40
max = 180
change = "noise"
shift = "10%"

[tool.rnndiag.checks.decay]
max = 1.02
layers = ["rnn.*"]
level = "warn"
"""
ROUNDS = 1000
BAD_WORDS = (
    "reach",
    "1e999",
    "-1",
    "nan",
    "[[",
    '"',
    "\\u0000",
    "9" * 400,
    "\ud800",
    "last 0",
    "=",
    "tool",
    "{}",
    "\x1b[2J",
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to three mutations: flips, cuts, doublings, zeroes, foreign words."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(max(len(out), 1))
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            del out[at : at + rng.randint(1, 200)]
        elif kind == 3:
            out[at:at] = out[max(0, at - rng.randint(1, 600)) : at]
        elif kind == 4:
            out[at : at + 30] = bytes(min(30, len(out) - at))
        else:
            out[at:at] = rng.choice(BAD_WORDS).encode("utf-8", "surrogatepass")
    return bytes(out)


@pytest.fixture
def failing(make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that fails its configuration, which lies beside it: an exit code of 0 would be a pass out of nothing."""
    run = make_run("run", decay=0.8, count=6)
    monkeypatch.chdir(tmp_path)
    assert main(["baseline", "run", "-o", "base.json"]) == 0
    (tmp_path / "pyproject.toml").write_text(CONFIG)
    assert main(["check", "run"]) == 1
    return Path(run.path)


@pytest.mark.slow
def test_mutated_runs(failing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segment = next((failing / "recordings").iterdir())
    whole = segment.read_bytes()
    rng = random.Random(1)
    codes = []
    for _ in range(ROUNDS):
        segment.write_bytes(mutated(whole, rng))
        codes.append(main(["check", "run", "--baseline", "base.json"]))
        told = capsys.readouterr()
        assert codes[-1] in (1, 3), told.err
        assert "Traceback" not in told.err + told.out
        assert "\x1b" not in told.err + told.out
    assert codes.count(3) > ROUNDS // 2


@pytest.mark.slow
def test_a_mutated_healthy_run_passes_only_unharmed(
    make_run: Callable[..., Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("healthy", count=6)
    words = ["check", str(run.path)]
    assert main(words) == 0
    passed = capsys.readouterr().out
    segment = next((Path(run.path) / "recordings").iterdir())
    whole = segment.read_bytes()
    rng = random.Random(2)
    for _ in range(ROUNDS // 4):
        segment.write_bytes(mutated(whole, rng))
        code = main(words)
        told = capsys.readouterr()
        assert code in (0, 1, 3), told.err
        unfinished = "warn  unfinished" in told.out
        assert code != 0 or told.out == passed or unfinished


@pytest.mark.slow
def test_mutated_configurations_and_baselines(
    failing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(3)
    files = {
        tmp_path / name: (tmp_path / name).read_bytes() for name in ("pyproject.toml", "base.json")
    }
    seen = set()
    for turn in range(ROUNDS):
        path = list(files)[turn % 2]
        path.write_bytes(mutated(files[path], rng))
        code = main(["check", "run"])
        told = capsys.readouterr()
        assert code in (0, 1, 2, 3), told.err
        assert "Traceback" not in told.err + told.out
        if code == 0:
            assert_nothing_forbidden(path, told.out)
        seen.add(code)
        path.write_bytes(files[path])
    assert {1, 2, 3} <= seen
    shutil.rmtree(failing)


def assert_nothing_forbidden(path: Path, told: str) -> None:
    """A pass needs a configuration that, read by itself, no longer forbids the run's reach of 10.3 steps."""
    table: Any = tomllib.loads(path.read_text()) if path.name == "pyproject.toml" else {}
    for key in ("tool", "rnndiag", "checks", "reach"):
        table = table.get(key, {})
    assert path.name == "pyproject.toml", told
    assert not table.get("min", 0) > 10.3 or table.get("level") in ("warn", "off"), (table, told)
