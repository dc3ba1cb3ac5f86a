"""A run made by a stranger, or damaged, harms nobody who reads it: no file of another, no code, no terminal, no log."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from closed_form_runs import PROVENANCE, measurements, of_model
from sample_run import segment_of, writes_below

import rnndiag
from rnndiag.cli import COMMANDS, main
from rnndiag.errors import CannotJudge, RunNotWritten, RunUnreadable
from rnndiag.health import exit_code
from rnndiag.health.finding import Finding
from rnndiag.health.result import cannot_judge, evaluate_runs
from rnndiag.health.writers.json_file import json_text
from rnndiag.health.writers.markdown import markdown_text
from rnndiag.store.compact import NEW, compact
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.redact import redact_addresses
from rnndiag.store.safe_text import safe_line
from rnndiag.store.scan import FOLDER, SET_ASIDE
from rnndiag.store.whole_files import append_text, read_regular, write_whole
from rnndiag.store.writer import RunWriter

MakeRun = Callable[..., rnndiag.Run]
SECRET = "s3cr3t/p@ss"
EVIL = "\x1b]0;owned\x07\u202e\n::error title=x::owned\n##[command]##vso[task]\r\u2066"


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


# 1 and 2: files of others


@pytest.mark.parametrize("name", [FOLDER, SET_ASIDE, NEW])
def test_compact_leaves_recordings_behind_a_link_alone(tmp_path: Path, name: str) -> None:
    write = writes_below(tmp_path)
    mine, theirs = write(range(40), name="mine"), write(range(40), name="theirs")
    before = files_of(theirs)
    if name == FOLDER:
        (mine / FOLDER).rename(tmp_path / "away")
    (mine / name).symlink_to(theirs / FOLDER, target_is_directory=True)
    with pytest.raises(RunUnreadable, match="is a link"):
        compact(mine, 20_000)
    assert main(["compact", str(mine), "--max-bytes", "20k"]) == 3
    assert files_of(theirs) == before


def test_set_aside_recordings_are_not_read_through_a_link(tmp_path: Path) -> None:
    write = writes_below(tmp_path)
    theirs = write(range(10), name="theirs")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / SET_ASIDE).symlink_to(theirs / FOLDER, target_is_directory=True)
    with pytest.raises(RunUnreadable, match="No rnndiag run"):
        rnndiag.open_run(tmp_path / "mine")


def test_recordings_are_not_read_through_a_link_out_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = writes_below(tmp_path)(range(10), name="theirs")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / FOLDER).symlink_to(theirs / FOLDER, target_is_directory=True)
    assert main(["check", str(tmp_path / "mine")]) == 3
    told = capsys.readouterr().err
    assert "recordings is a link that leads out of the run" in told
    assert "Name the directory that the link leads to" in told


def test_recordings_are_read_through_a_link_within_the_run(tmp_path: Path) -> None:
    run = writes_below(tmp_path)(range(10), name="run")
    (run / FOLDER).rename(run / "kept")
    (run / FOLDER).symlink_to("kept", target_is_directory=True)
    assert len(rnndiag.open_run(run)) == 10


def test_a_run_is_not_written_through_a_link_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FOLDER).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(RunNotWritten, match="leads out of the run"):
        RunWriter(tmp_path / "run")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_report_replaces_a_link_and_leaves_its_target(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(count=6)
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    page = Path(run.path) / "report.html"
    page.symlink_to(mine)
    guessed = [
        Path(run.path) / f".report.html.{os.getpid()}",
        tmp_path / f".b.json.{os.getpid()}.part",
    ]
    for guess in guessed:
        guess.symlink_to(mine)
    assert main(["report", str(run.path)]) == 0
    assert main(["baseline", str(run.path), "-o", str(tmp_path / "b.json")]) == 0
    assert mine.read_text() == "mine"
    assert not page.is_symlink()
    assert page.read_text().startswith("<!doctype html>")
    assert all(guess.is_symlink() for guess in guessed)
    assert not list(tmp_path.rglob("*.part")) or all(
        p.is_symlink() for p in tmp_path.rglob("*.part")
    )


@pytest.mark.parametrize(
    "words",
    [
        ["check", "{run}", "--json", "{out}"],
        ["check", "{run}", "--junit", "{out}"],
        ["check", "{run}", "--markdown", "{out}"],
        ["report", "{run}", "-o", "{out}"],
        ["report", "{run}", "--json", "{out}"],
        ["compare", "{run}", "{run}", "-o", "{out}"],
        ["compare", "{run}", "{run}", "--json", "{out}"],
        ["export", "{run}", "--format", "csv", "-o", "{out}"],
        ["export", "{run}", "--latex", "-o", "{out}"],
        ["baseline", "{run}", "-o", "{out}"],
    ],
)
def test_no_output_follows_a_link(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # compare writes its page into the working directory
    run = make_run(count=6)
    mine, out = tmp_path / "mine.txt", tmp_path / "out"
    mine.write_text("mine")
    out.symlink_to(mine)
    assert main([word.format(run=run.path, out=out) for word in words]) == 0
    assert mine.read_text() == "mine"
    assert out.stat().st_size > 10


def test_a_step_summary_behind_a_link_is_not_appended_to(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match=r"[Ll]ink|symbolic"):
        append_text(tmp_path / "link", "more")
    append_text(tmp_path / "new", "a")
    append_text(tmp_path / "new", "b")
    assert (tmp_path / "new").read_text() == "ab"


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    write_whole(target, "before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(target, "after")
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path, "x")


# 3: damaged and ill-shaped arrays (the fuzz is in test_fuzz.py)


def test_every_array_damaged_by_one_bit_is_left_out_and_named(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(count=6)
    segment = segment_of(Path(run.path))
    whole = segment.read_bytes()
    group = run.groups[3][0]
    codes = {}
    for name, (start, size, _) in run.collector.directory(group).items():
        data = bytearray(whole)
        data[group.start + start + size - 1] ^= 16
        segment.write_bytes(data)
        for command in (
            ["check", str(run.path)],
            ["compare", str(run.path), str(run.path), "-o", str(tmp_path / "c.html")],
        ):
            codes[name, command[0]] = main(command)
        main(["report", str(run.path), "-o", str(tmp_path / "r.html")])
    told = capsys.readouterr()
    assert set(codes.values()) <= {0, 1, 3}, codes
    assert "internal error" not in told.err


@pytest.mark.parametrize(
    "shape", [(), (3,), (60,), (60, 6, 2), (0,), (0, 6), (1, 1)], ids=lambda shape: str(shape)
)
def test_arrays_of_any_shape_end_no_command(
    tmp_path: Path, shape: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    quantities = {m.name for m in (*measurements("rnn.l0", 0.9), *of_model())}
    with RunWriter(tmp_path / "run", PROVENANCE, durable=False) as writer:
        for step in range(6):
            found = {m.name: m for m in (*measurements("rnn.l0", 0.9), *of_model())}
            name = sorted(quantities)[(3 * step + len(shape)) % len(quantities)]
            known = found[name]
            dims = (
                known.dims
                if len(known.dims) == len(shape)
                else tuple(f"d{k}" for k in range(len(shape)))
            )
            found[name] = Measurement(
                name, np.ones(shape), dims, known.unit, known.scale, known.layer
            )
            writer.append(Recording(step, verdict="exact", measurements=tuple(found.values())))
    run = str(tmp_path / "run")
    codes = [
        main(["check", run]),
        main(["report", run]),
        main(["compare", run, run, "-o", str(tmp_path / "c.html")]),
        main(["show", run]),
    ]
    assert set(codes) <= {0, 1, 3}, capsys.readouterr().err


# 4: terminals and CI logs


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


# 5: credentials, and stores that do not answer

URLS = {
    f"s3://AKIA:{SECRET}@host/bucket/run": SECRET,
    "https://user:hunter2@host:8080/run": "hunter2",
    "https://host/run?X-Amz-Signature=abcdef0123&x=1": "abcdef0123",
    "https://acct.blob.core.windows.net/c/run?sv=1&sig=Zm9v%3D": "Zm9v%3D",
    "https://ghp_token123@host/run": "ghp_token123",
}


@pytest.mark.parametrize(("url", "secret"), URLS.items())
def test_credentials_of_an_address_are_shown_nowhere(url: str, secret: str) -> None:
    assert secret not in redact_addresses(f"cannot read {url}: refused")
    reason = CannotJudge(f"cannot judge {url}", f"rnndiag check {url}")
    told = cannot_judge([url], reason)
    for text in (markdown_text(told), json_text(told)):
        assert secret not in text
        assert secret not in re.sub(r"&#(\d+);", lambda m: chr(int(m[1])), text)


class Refusing:
    """A store of fsspec whose client raises what no file system raises."""

    class Refused(Exception):
        pass

    def ls(self, *_: object, **__: object) -> list[str]:
        raise self.Refused("connect to https://user:hunter2@host failed: refused")

    isdir = info = ls


def test_a_store_that_refuses_is_a_run_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    core = SimpleNamespace(url_to_fs=lambda url: (Refusing(), "run"))
    monkeypatch.setitem(sys.modules, "fsspec", SimpleNamespace(core=core))
    for words in (["check"], ["report", "-o", "x.html"], ["show"], ["verify"]):
        assert main([words[0], "https://user:hunter2@host/run", *words[1:]]) == 3
    told = capsys.readouterr()
    assert "Refused" in told.err
    assert "hunter2" not in told.out + told.err


# 6: code


def test_doctor_imports_nothing_from_the_working_directory(tmp_path: Path) -> None:
    for name in ("torch", "json", "numpy", "lightning"):
        (tmp_path / f"{name}.py").write_text("open('owned', 'w').close()\n")
    script = "import sys; sys.path.pop(0); from rnndiag.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(rnndiag.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert not (tmp_path / "owned").exists(), done.stderr
    assert "torch" in done.stdout


@pytest.mark.parametrize("factory", ["model.py:make", "./sub/../model.py:make", "link.py:make"])
def test_a_factory_inside_of_a_snapshot_is_not_run_untrusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], factory: str
) -> None:
    folder = tmp_path / "snapshot"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.py").write_text("open('owned', 'w').close()\n")
    (tmp_path / "outside.py").write_text("open('owned', 'w').close()\n")
    (folder / "link.py").symlink_to(tmp_path / "outside.py")
    (folder / "snapshot.json").write_text(json.dumps({"factory": factory}))
    (folder / "numbers.json").write_text("{}")
    for words in (["check"], ["baseline"], ["need"]):
        assert main([*words, "--snapshot", str(folder)]) == 3
        told = capsys.readouterr().err
        assert "lies inside of the snapshot" in told
        assert "--trust" in told
    assert not Path("owned").exists()


# 7: pipes


@pytest.mark.parametrize("option", ["--baseline", "--config"])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(
    make_run: MakeRun, tmp_path: Path, option: str
) -> None:
    run = make_run(count=6)
    os.mkfifo(tmp_path / "pipe")
    assert main(["check", str(run.path), option, str(tmp_path / "pipe")]) in (2, 3)
    with pytest.raises(OSError, match="not a regular file"):
        read_regular(tmp_path / "pipe", 100)


def test_a_pipe_in_the_place_of_a_page_is_replaced(make_run: MakeRun) -> None:
    run = make_run(count=6)
    os.mkfifo(Path(run.path) / "report.html")
    assert main(["report", str(run.path)]) == 0
    assert (Path(run.path) / "report.html").is_file()


# 8: the page


def test_a_page_runs_its_own_script_and_nothing_else(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(count=6)
    main(["compare", str(run.path), str(run.path), "-o", str(tmp_path / "compare.html")])
    pages = [rnndiag.write_report(run, tmp_path / "page.html"), tmp_path / "compare.html"]
    for page in pages:
        text = page.read_text()
        found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
        assert found is not None
        rules = found[1].replace("&#39;", "'")
        assert "default-src 'none'" in rules
        (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
        digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in rules
        assert not re.search(r"<[^>]+\son\w+=", text)


# 9: names that other programs would read as formulas


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


# the verdict of a hostile run


def test_a_hostile_run_is_never_a_pass(tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "run")
    assert exit_code(rnndiag.check(run, config={"checks": {"min_recordings": 2}})) == 3
