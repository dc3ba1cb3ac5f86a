"""The console command: every fault a sentence and an exit code; show, verify, export and compact on real runs."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sample_run import LAYER, Write, recording, segment_of

from rnndiag import cli
from rnndiag.cli import COMMANDS, main
from rnndiag.cli.compact import size
from rnndiag.errors import BadConfig, CannotJudge, RnndiagError
from rnndiag.run.run import open_run
from rnndiag.store.measurement import Measurement
from rnndiag.store.quantities import QUANTITIES
from rnndiag.store.recording import Recording
from rnndiag.store.text import size_text
from rnndiag.store.writer import RunWriter

ROOT = Path(__file__).parents[2]
Screen = pytest.CaptureFixture[str]


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    return done.stdout


def test_help_names_every_command_and_loads_nothing(capsys: Screen) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, (_, about) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(about)}$", shown, re.MULTILINE)
    loaded = python(
        "import sys\nfrom rnndiag.cli import main\n"
        "main(['--help']); main(['show', '--help']); main(['export', '--help'])\n"
        "print('LOADED', 'numpy' in sys.modules)"
    )
    assert "LOADED False" in loaded


def test_a_completion_script_knows_commands_and_options(
    capsys: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "shtab, which is not installed. Write: pip install shtab" in capsys.readouterr().err
    monkeypatch.undo()
    pytest.importorskip("shtab")
    for shell in ("bash", "zsh"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert all(name in script for name in COMMANDS)
        assert "--min-recordings" in script


def test_no_command_is_a_usage_error(capsys: Screen) -> None:
    assert main([]) == 2
    assert "usage: rnndiag COMMAND" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert re.fullmatch(r"rnndiag [0-9.]+\S*\n", capsys.readouterr().out)


def test_a_misspelt_command_is_answered(capsys: Screen) -> None:
    assert main(["shwo"]) == 2
    assert capsys.readouterr().err == "rnndiag: There is no command 'shwo'. Did you mean 'show'?\n"
    assert main(["xyzzy"]) == 2
    assert "It is one of report, compare" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["show", "verify", "compact", "export"])
def test_wrong_options_are_usage_errors(name: str, capsys: Screen) -> None:
    assert main([name, "--nonsense"]) == 2
    assert "usage: rnndiag" in capsys.readouterr().err
    assert main([name, "--help"]) == 0


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (BadConfig("A.", "B."), 2, "rnndiag: A. B.\n"),
        (CannotJudge("A."), 3, "rnndiag: A.\n"),
        (RnndiagError("A."), 4, "rnndiag: A.\n"),
        (KeyError("k"), 4, "rnndiag: internal error: KeyError: 'k'."),
        (
            PermissionError(13, "Permission denied", "x.csv"),
            2,
            "rnndiag: Permission denied (x.csv).\n",
        ),
        (KeyboardInterrupt(), 130, "rnndiag: interrupted\n"),
    ],
)
def test_every_fault_has_its_exit_code(
    fault: BaseException, code: int, words: str, capsys: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(words: list[str]) -> int:
        raise fault

    monkeypatch.setattr(cli, "_command", fail)
    assert main(["show"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(words)
    assert "Traceback" not in shown


def test_a_traceback_on_request(capsys: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNDIAG_TRACEBACK", "1")
    assert main(["show", "/nowhere"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_fault(write: Write) -> None:
    run = write(range(200))
    command = f"{sys.executable} -m rnndiag export {run} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.startswith("step,phase")
    assert done.stderr == ""


def test_show_says_what_is_there(write: Write, capsys: Screen) -> None:
    provenance = {
        "versions": {"rnndiag": "0.1.0", "torch": "2.13.0"},
        "git": {"commit": "4f1c9e2" * 6, "dirty": True},
        "command": ["train.py", "--lr", "0.1"],
    }
    run = write(range(0, 50, 10), provenance=provenance, world_size=2)
    write(range(0, 50, 10), rank=1, world_size=2)
    assert main(["show", str(run)]) == 0
    shown = capsys.readouterr().out
    for words in (
        f"{run}: finished",
        "5 recordings, steps 0 to 40",
        "2 ranks (0, 1): pooled",
        "rnndiag 0.1.0, torch 2.13.0",
        "git 4f1c9e24f1c9 with uncommitted changes",
        "command: train.py --lr 0.1",
        "proofs: 5 unverified",
        f"{LAYER}   reach ",
        "credit_profile             1 layer; lag x profile_stat; 1, log",
        "loss                       the model; one number; loss, linear",
        "no problems seen",
    ):
        assert words in shown


def test_show_one_quantity(write: Write, capsys: Screen) -> None:
    run = write(range(0, 50, 10))
    assert main(["show", str(run), "loss"]) == 0
    named = capsys.readouterr().out
    assert main(["show", str(run), "-q", "loss"]) == 0
    shown = capsys.readouterr().out
    assert named == shown
    assert QUANTITIES["loss"].meaning in shown
    assert "all recordings: 1 to 41, median 21" in shown
    assert "step 40: 41 to 41" in shown
    assert main(["show", str(run), "-q", "nothing"]) == 3


def test_show_as_json(write: Write, capsys: Screen) -> None:
    run = write(range(0, 50, 10), provenance={"seed": 1})
    assert main(["show", str(run), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["runs"]
    assert (told["status"], told["recordings"], told["steps"]) == ("finished", 5, [0, 40])
    assert told["quantities"]["loss"] == ["model"]
    assert told["problems"] == []


def test_show_many_runs_and_names_the_unreadable(
    write: Write, capsys: Screen, tmp_path: Path
) -> None:
    write([0], name="logs/a")
    segment_of(write([0], name="logs/b")).write_bytes(b"x" * 999)
    assert main(["show", f"{tmp_path}/logs/*"]) == 0
    shown = capsys.readouterr().out
    assert "logs/a: finished" in shown
    assert "not shown:" in shown
    assert main(["show"]) == 2
    assert main(["show", str(tmp_path / "nowhere")]) == 3


def test_the_registry_in_words_and_for_docs(capsys: Screen) -> None:
    assert main(["show", "--registry"]) == 0
    shown = capsys.readouterr().out
    assert main(["show", "--registry", "--markdown"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + len(QUANTITIES)
    for name, quantity in QUANTITIES.items():
        assert quantity.meaning in shown
        assert sum(line.startswith(f"| `{name}` |") for line in table) == 1
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 7 for line in table)


def test_verify_tells_whole_from_damaged(write: Write, capsys: Screen) -> None:
    run = write(range(0, 50, 10))
    assert main(["verify", str(run)]) == 0
    assert f"{run}: whole, 5 recordings of 1 rank(s), finished" in capsys.readouterr().out
    opened = open_run(run)
    place = opened.groups[2][0]
    start, length, _ = opened.collector.directory(place)["adjoint_norm@rnn.l0.npy"]
    data = bytearray(segment_of(run).read_bytes())
    data[place.start + start + length // 2] ^= 1
    segment_of(run).write_bytes(data)
    assert main(["verify", str(run)]) == 1
    shown = capsys.readouterr().out
    assert "DAMAGED" in shown
    assert "step 20" in shown
    assert main(["verify", str(run), "/nowhere"]) == 3


def test_a_resume_is_no_damage(write: Write, capsys: Screen) -> None:
    run = write(range(0, 50, 10))
    write([30, 40], resumed_from_step=20)
    assert main(["verify", str(run)]) == 0
    assert "superseded" in capsys.readouterr().out


def test_export_csv_holds_every_number(write: Write, tmp_path: Path, capsys: Screen) -> None:
    run = write(range(0, 30, 10))
    file = tmp_path / "out.csv"
    assert main(["export", str(run), "-o", str(file)]) == 0
    assert "numbers of 5 quantities and layers" in capsys.readouterr().err
    with open(file, newline="") as text:
        rows = list(csv.DictReader(text))
    for step in (0, 10, 20):
        for m in recording(step).measurements:
            own = [r for r in rows if r["step"] == str(step) and r["quantity"] == m.name]
            values = np.array([float(r["value"]) for r in own], m.values.dtype)
            assert values.tobytes() == m.values.tobytes()
            assert {r["unit"] for r in own} == {m.unit}
    assert rows[0]["lag"] == "0"
    assert rows[0]["profile_stat"] == "profile"


def test_export_chooses(write: Write, capsys: Screen) -> None:
    run = write(range(0, 100, 10))
    assert main(["export", str(run), "-q", "loss", "--steps", "20:40"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert [row[0] for row in rows] == ["step", "20", "30", "40"]
    assert main(["export", str(run), "-q", "loss", "--steps", "70", "--format", "json"]) == 0
    (series,) = json.loads(capsys.readouterr().out)["series"]
    assert (series["steps"], series["values"]) == ([70], [71.0])
    assert main(["export", str(run), "-l", LAYER, "-q", "credit_profile", "--steps", ":0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 12 * 6
    for wrong, code in (
        (["-q", "nothing"], 3),
        (["-l", "rnn.l9"], 3),
        (["--steps", "a:b"], 2),
        (["-o", "x.parquet"], 2),
        (["--rank", "7"], 3),
        (["--steps", "5:6"], 3),
        (["--steps", "40:20"], 3),
    ):
        assert main(["export", str(run), *wrong]) == code


def test_export_json_is_strict(tmp_path: Path, capsys: Screen) -> None:
    with RunWriter(tmp_path / "run") as writer:
        values = np.array([1.5, np.nan, np.inf, -np.inf, 0.1], np.float32)
        made = (
            Measurement("q", values, ("n",), layer="=cmd()"),
            Measurement("z", np.array([1 + 2j]), ("n",)),
            Measurement("b", np.array([True]), ("n",)),
        )
        writer.append(Recording(0, measurements=made))
    assert main(["export", str(tmp_path / "run"), "--format", "json"]) == 0

    def refuse(name: str) -> None:
        raise AssertionError(name)

    told = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert [s["values"] for s in told["series"]] == [
        [[1.5, None, "inf", "-inf", 0.1]],
        [[[1.0, 2.0]]],
        [[True]],
    ]
    assert main(["export", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert ",'=cmd()," in shown


def test_compact_by_the_command(write: Write, capsys: Screen) -> None:
    run = write(range(100))
    assert main(["compact", str(run), "--max-bytes", "80k", "--dry-run"]) == 0
    assert "would take" in capsys.readouterr().out
    assert main(["compact", str(run), "--max-bytes", "80k"]) == 0
    assert "of 100 recordings kept" in capsys.readouterr().out
    assert open_run(run).size <= 80_000
    assert main(["compact", str(run), "--max-bytes", "1k"]) == 2
    assert main(["compact", str(run), "--max-bytes", "lots"]) == 2


def test_sizes_in_words() -> None:
    sizes = [size(text) for text in ("5", "500M", "1GiB", "1.5 kB", "2kib")]
    assert sizes == [5, 500_000_000, 1 << 30, 1500, 2048]
    assert [size_text(n) for n in (0, 999, 1000, 4.8e6, 2.5e12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "4.8 MB",
        "2.5e+03 GB",
    ]


def test_export_of_nothing_is_told(write: Write, capsys: Screen) -> None:
    run = str(write([0, 10]))
    empty = str(write([], name="empty"))
    for argv, words in (
        ([run, "--rank", "7"], "nothing of rank 7. It has rank 0."),
        ([run, "--steps", "5:6"], "nothing to export at steps 5:6. It has steps 0, 10."),
        ([empty], "empty holds no recordings."),
        ([empty, "-l", "rnn"], "empty holds no recordings."),
    ):
        assert main(["export", *argv]) == 3
        assert words in capsys.readouterr().err


def test_export_keeps_a_dim_called_unit(tmp_path: Path, capsys: Screen) -> None:
    """`recurrent_eigenvalues` runs over units: the index must not be lost to the unit of measure."""
    values = np.arange(6.0).reshape(1, 3, 2)
    with RunWriter(tmp_path / "run") as writer:
        made = Measurement.of("recurrent_eigenvalues", values, LAYER)
        writer.append(Recording(0, measurements=(made,)))
    assert main(["export", str(tmp_path / "run")]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert len({*rows[0]}) == len(rows[0])
    table = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert [row["unit_dim"] for row in table] == ["0", "0", "1", "1", "2", "2"]
    assert {row["unit"] for row in table} == {"1"}


def test_export_of_hostile_names_is_text(tmp_path: Path, capsys: Screen) -> None:
    with RunWriter(tmp_path / "run") as writer:
        for step in range(2):
            made = Measurement("q", np.zeros(1), ("=cmd()",), layer="\x1b[2J\ud800\u202e")
            writer.append(Recording(step, measurements=(made,)))
    assert main(["export", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert shown.startswith("step,phase,quantity,layer,unit,scale,'=cmd(),value\n")
    assert main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "out.csv")]) == 0


def test_show_tells_what_it_cannot_mean(write: Write, capsys: Screen) -> None:
    run = str(write([0]))
    for argv, code, words in (
        ([run, run + "x"], 3, f"No rnndiag run matches {run}x."),
        ([run, "-l", LAYER], 2, "--layer is for one quantity."),
        ([run, "-q", "loss", "--json"], 2, "rnndiag export RUN -q QUANTITY --format json"),
        ([run, "--markdown"], 2, "--markdown is for the registry."),
    ):
        assert main(["show", *argv]) == code
        shown = capsys.readouterr()
        assert words in shown.out + shown.err


def test_a_screen_without_greek_letters(write: Write) -> None:
    for words in (["show", "--registry"], ["show", str(write([0], name="m\u00e9moire"))]):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; from rnndiag.cli import main; sys.exit(main())",
                *words,
            ],
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\\x" in done.stdout or b"\\u" in done.stdout
