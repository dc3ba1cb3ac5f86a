"""A run made by a stranger, or damaged, harms nobody who reads it: it runs no code and shows no credentials."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from closed_form_runs import PROVENANCE, measurements, of_model
from sample_run import segment_of

import rnndiag
from rnndiag.cli import main
from rnndiag.errors import CannotJudge
from rnndiag.health.result import cannot_judge
from rnndiag.health.writers.json_file import json_text
from rnndiag.health.writers.markdown import markdown_text
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.redact import redact_addresses
from rnndiag.store.writer import RunWriter

MakeRun = Callable[..., rnndiag.Run]
SECRET = "s3cr3t/p@ss"


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
