"""Runs made to hurt: each is refused or skipped in little time and 200 MB, and what is good beside it is read."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from sample_run import Write, recording, same, segment_of

from rnndiag.run.run import open_run
from rnndiag.store import npz, stored, tar
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.text import to_json

GOOD = (0, 10)
MOST_SECONDS = 10
"""Of CPU time: no measurement, only that no run keeps its reader busy for as long as it likes."""

READ = """
import json, resource, sys, time
from pathlib import Path
from rnndiag.errors import RunUnreadable
from rnndiag.run.run import open_run
from rnndiag.store.text import to_json
def megabytes():
    # ru_maxrss lives through exec and so counts the process that started this one; VmHWM does not
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
begin = time.process_time()
answer = {"steps": [], "layers": [], "problems": [], "asked": [], "refused": ""}
try:
    run = open_run(sys.argv[1])
    answer["layers"] = run.layers
    for quantity in run.quantities:
        try:
            run.select(quantity)
        except RunUnreadable as fault:
            answer["asked"].append(str(fault))
    answer["steps"] = [r.step for r in run.recordings]
    answer["problems"] = [str(p) for p in run.verify()]
    repr(run), run.outlines, to_json(run.provenance)
except RunUnreadable as fault:
    answer["refused"] = str(fault)
answer["seconds"] = time.process_time() - begin
answer["megabytes"] = megabytes()
print(json.dumps(answer))
"""


def read(run: Path) -> dict[str, object]:
    """Open, read and verify in a process of its own; its time and memory are held to the limits."""
    done = subprocess.run([sys.executable, "-c", READ, str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    assert float(str(answer["seconds"])) < MOST_SECONDS
    assert float(str(answer["megabytes"])) < 200
    return answer


def append(run: Path, content: bytes, name: str = "step-000000000020-train.npz") -> None:
    """Put a member after the two good recordings."""
    with open(segment_of(run), "ab") as file:
        file.write(tar.member(name, content, time.time()))


def packed(entries: dict[str, bytes], step: int = 20) -> bytes:
    """An npz file in our form with these entries, all checksums right."""
    facts = {stored.FACTS: to_json({"step": step, "phase": "train", "time": 0, "verdict": "exact"})}
    return npz.pack([(name, (data,)) for name, data in {**facts, **entries}.items()])


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + size + text + data


def header(descr: str = "'<f4'", shape: str = "(1,)", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


class Boom:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/rnndiag-was-executed",)


def with_numpy(**entries: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **entries)
    return file.getvalue()


@cache
def zip_bomb() -> bytes:
    """200 MB in 200 kB."""
    return with_numpy(a=np.zeros(50_000_000, np.float32))


@cache
def too_many_arrays() -> bytes:
    return with_numpy(**{f"a{n}": np.zeros(0) for n in range(5000)})


def overlapping() -> bytes:
    """Two entries of a right directory, pointing at the same bytes."""
    data = bytearray(packed({"a@b.npy": npy(header()), "c@d.npy": npy(header())}))
    tail = bytes(data[-npz.TAIL_BYTES :])
    start, end = npz.directory_span(tail, len(data))
    listing = bytearray(data[start:end])
    last = listing.rindex(b"PK\1\2")
    listing[last + 42 : last + 46] = listing[46 + 9 + 42 : 46 + 9 + 46]
    guard = b"%08x" % zlib.crc32(tail[:22], zlib.crc32(bytes(listing)))
    return bytes(data[:start]) + bytes(listing) + tail[:-8] + guard


def claims_many() -> bytes:
    data = packed({})
    tail = bytearray(data[-npz.TAIL_BYTES :])
    start, end = npz.directory_span(bytes(tail), len(data))
    tail[8:12] = struct.pack("<HH", 65535, 65535)
    tail[-8:] = b"%08x" % zlib.crc32(bytes(tail[:22]), zlib.crc32(data[start:end]))
    return data[: -npz.TAIL_BYTES] + bytes(tail)


RECORDINGS: dict[str, Callable[[], bytes]] = {
    "pickle": lambda: packed({"a@b.npy": npy(header("'|O'"), pickle.dumps(Boom()))}),
    "bare pickle": lambda: pickle.dumps(Boom()),
    "pickle by numpy": lambda: with_numpy(a=np.array([Boom()], object)),
    "object dtype": lambda: packed({"a@b.npy": npy(header("[('a', '|O')]"), bytes(8))}),
    "structured": lambda: packed({"a@b.npy": npy(header("[('a', '<f4')]"), bytes(4))}),
    "code in the header": lambda: packed({"a@b.npy": npy("__import__('os').system('true')")}),
    "deep header": lambda: packed({"a@b.npy": npy("(" * 60000)}),
    "huge shape": lambda: packed({"a@b.npy": npy(header(shape="(1000000000000,)"), bytes(4))}),
    "product overflows": lambda: packed({"a@b.npy": npy(header(shape="(4294967296, 4294967296)"))}),
    "empty but endless": lambda: packed({"a@b.npy": npy(header(shape="(1000000000000, 0)"))}),
    "huge integer in a shape": lambda: packed({"a@b.npy": npy(header(shape=f"({'9' * 5000},)"))}),
    "many dims": lambda: packed({"a@b.npy": npy(header(shape=f"({'1, ' * 40})"), bytes(4))}),
    "fortran": lambda: packed({"a@b.npy": npy(header(order="True"), bytes(4))}),
    "format 3 of numpy": lambda: packed({"a@b.npy": npy(header(), bytes(4), b"\x03\x00")}),
    "half an array": lambda: packed({"a@b.npy": npy(header(shape="(9,)"), bytes(4))}),
    "zip bomb": zip_bomb,
    "overlapping": overlapping,
    "claims many arrays": claims_many,
    "too many arrays": too_many_arrays,
    "deep facts": lambda: npz.pack([(stored.FACTS, (b'{"a":' * 50_000,))]),
    "deep labels": lambda: packed({stored.LABELS: b"[" * 500_000}),
    "labels of another form": lambda: packed({stored.LABELS: b'{"of": [3]}', "a@b.npy": npy(header(), bytes(4))}),
    "infinite label": lambda: packed(
        {stored.LABELS: b'{"lists":[],"of":{"a@b.npy":{"x":Infinity}},"described":{}}', "a@b.npy": npy(header())}
    ),
    "huge integer as step": lambda: npz.pack([(stored.FACTS, (b'{"step": ' + b"9" * 5000 + b"}",))]),
    "negative step": lambda: npz.pack([(stored.FACTS, (b'{"step": -1}',))]),
    "another step": lambda: packed({}, step=30),
    "large facts": lambda: npz.pack([(stored.FACTS, (b'{"step": 20, "a": "' + b"x" * (5 << 20) + b'"}',))]),
    "not json": lambda: npz.pack([(stored.FACTS, (b"\xff\xfe",))]),
    "empty": lambda: b"",
    "an empty zip": lambda: npz.pack([]),
}  # fmt: skip


def test_large_labels_of_many_recordings_are_not_all_kept(write: Write) -> None:
    run = write(GOOD, close=False)
    for step in range(20, 50):
        labels = {"lists": [[f"{step}.{i:x}" for i in range(80_000)]], "described": {}}
        labels["of"] = {"a@b.npy": {"x": 0}}
        loss = with_numpy_array(np.float64(1.0))
        entries = {stored.LABELS: to_json(labels), stored.entry_name("loss", "model"): loss}
        append(run, packed(entries, step), f"step-{step:012d}-train.npz")
    assert read(run)["steps"] == [*GOOD, *range(20, 50)]


def with_numpy_array(value: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


LABELLED = ("labels of another form", "infinite label")


@pytest.mark.parametrize("kind", RECORDINGS)
def test_a_hostile_recording_is_skipped(write: Write, kind: str) -> None:
    run = write(GOOD, close=False)
    append(run, RECORDINGS[kind]())
    with open(segment_of(run), "ab") as file:
        content = stored.pack(recording(30))
        file.write(tar.member("step-000000000030-train.npz", content, time.time()))
    opened = open_run(run)
    found = {r.step: r for r in opened.recordings}
    for step in (*GOOD, 30):
        assert same(found[step], recording(step))
    assert 20 not in found or not found[20].measurements or kind in LABELLED
    opened.verify()
    for key in opened.collector.keys:
        opened.find(*key)
    assert opened.problems
    assert all(p.step == 20 for p in opened.problems)
    assert not Path("/tmp/rnndiag-was-executed").exists()


HEAVY = ("zip bomb", "deep header", "deep labels", "huge shape", "too many arrays", "large facts")


@pytest.mark.parametrize("kind", HEAVY)
def test_a_heavy_recording_costs_little(write: Write, kind: str) -> None:
    run = write(GOOD, close=False)
    append(run, RECORDINGS[kind]())
    answer = read(run)
    assert answer["steps"] in ([*GOOD], [*GOOD, 20])
    assert len(answer["problems"]) == 1  # type: ignore[arg-type]


def only(run: Path, content: bytes) -> None:
    segment_of(run).write_bytes(content)


def symlink(run: Path) -> None:
    file = segment_of(run)
    file.rename(run / "elsewhere.tar")
    file.symlink_to(run / "elsewhere.tar")


def fifo(run: Path) -> None:
    file = segment_of(run)
    file.unlink()
    os.mkfifo(file)


def folder(run: Path) -> None:
    file = segment_of(run)
    file.unlink()
    file.mkdir()


def sparse_terabyte(run: Path) -> None:
    os.truncate(segment_of(run), 1 << 40)


def sparse_gigabyte(run: Path) -> None:
    os.truncate(segment_of(run), 1 << 30)


def deep_open(run: Path) -> None:
    only(run, tar.json_member(tar.OPEN, b'{"a":' * 200_000, 0))


def large_open(run: Path) -> None:
    only(run, tar.json_member(tar.OPEN, b'{"a":"' + b"x" * (3 << 20) + b'"}', 0))


def huge_version(run: Path) -> None:
    facts = b'{"format": "rnndiag", "version": [' + b"1" * 4000 + b", 0]}"
    only(run, tar.json_member(tar.OPEN, facts, 0))


def claims_terabyte(run: Path) -> None:
    block = bytearray(tar.member("step-000000000020-train.npz", b"", 0)[:512])
    block[124:136] = b"77777777777\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with open(segment_of(run), "ab") as file:
        file.write(block)


def gzipped(run: Path) -> None:
    with tarfile.open(segment_of(run), "w:gz") as archive:
        info = tarfile.TarInfo("open.json")
        info.size = 4096
        archive.addfile(info, io.BytesIO(os.urandom(4096)))


def million_members(run: Path) -> None:
    """250 MB of empty members."""
    blocks = b"".join(tar.member(f"step-{n:012d}-train.npz", b"", 0) for n in range(1000, 2000))
    with open(segment_of(run), "ab") as file:
        for _ in range(500):
            file.write(blocks)


def million_marks(run: Path) -> None:
    """Damage full of what looks like headers."""
    block = (bytes(257) + b"ustar\x00").ljust(512, b"x")
    with open(segment_of(run), "ab") as file:
        file.write(block * 100_000)


def absurd_registry(run: Path) -> None:
    facts = {
        "format": "rnndiag",
        "version": [1, 0],
        "registry": {"loss": {"dims": ["a"] * 9}, "x": 3, "y": {"dims": [["z"]]}},
        "coordinates": {"stat": "abcd", "lag": [1, 2]},
        "started": "yesterday",
        "process": ["host"],
        "resumed_from_step": 1e300,
        "provenance": ["a", "list"],
    }
    file = segment_of(run)
    rest = file.read_bytes()
    end = tar.header(rest[:512], 0)
    assert end is not None
    only(run, tar.json_member(tar.OPEN, to_json(facts), 0) + rest[end.end :])


def far_segment(run: Path) -> None:
    """A file whose number says that a billion others are missing."""
    file = segment_of(run)
    shutil.copy(file, file.with_name(file.name.replace("-0000.tar", "-999999999.tar")))


def clashing_shapes(run: Path) -> None:
    """Two arrays of 40 kB that side by side, padded, would take 800 MB."""
    for step, shape in ((20, "(1, 10000)"), (30, "(10000, 1)")):
        content = packed({"a@b.npy": npy(header(shape=shape), bytes(40_000))}, step)
        append(run, content, f"step-{step:012d}-train.npz")


def deep_provenance(run: Path) -> None:
    """As deep as the parser allows, so that printing it is deeper."""
    file = segment_of(run)
    rest = file.read_bytes()
    end = tar.header(rest[:512], 0)
    assert end is not None
    deep = b'"provenance": {"command": ' + b"[" * 970 + b"]" * 970 + b"}"
    facts = b'{"format": "rnndiag", "version": [1, 0], ' + deep + b"}"
    only(run, tar.json_member(tar.OPEN, facts, 0) + rest[end.end :])


RUNS: dict[str, tuple[Callable[[Path], None], str]] = {
    "symlink": (symlink, "not a regular file, skipped"),
    "fifo": (fifo, "not a regular file, skipped"),
    "folder": (folder, "not a regular file, skipped"),
    "sparse terabyte": (sparse_terabyte, "bytes is refused: compressed, pickled or oversized"),
    "sparse gigabyte": (sparse_gigabyte, "damaged bytes skipped, no recording follows"),
    "deep open.json": (deep_open, "open.json is unreadable (JSON nested too deeply)"),
    "large open.json": (large_open, "open.json is unreadable"),
    "huge version": (huge_version, "open.json is unreadable (an integer of 4000 digits)"),
    "claims a terabyte": (claims_terabyte, "a member of 8589934591 bytes is refused"),
    "gzip": (gzipped, "open.json is unreadable (it is not the first member)"),
    "a million members": (million_members, "more than 50002 members in one file is refused"),
    "a million marks": (million_marks, "damaged bytes skipped"),
    "absurd registry": (absurd_registry, ""),
    "a far segment": (
        far_segment,
        "segments 1, 2, 3, 4, 5 and 999999993 more before it are missing",
    ),
    "clashing shapes": (clashing_shapes, "side by side its 80000 bytes would take 800000000"),
    "deep provenance": (deep_provenance, ""),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_hostile_run_is_refused_or_skipped(write: Write, kind: str) -> None:
    hurt, words = RUNS[kind]
    run = write(GOOD, close=False)
    hurt(run)
    answer = read(run)
    told = f"{answer['refused']} {answer['problems']} {answer['asked']}"
    assert words in told
    if not answer["refused"]:
        assert answer["steps"][:2] == [*GOOD]  # type: ignore[index]


def test_names_spelt_another_way_are_not_ours(write: Write) -> None:
    """What is listed can be asked for; two spellings of one name are not two arrays."""
    run = write(GOOD, close=False)
    names = ("loss@a@b.npy", "loss@rnn%2el0.npy", "loss@%41.npy", "loss@A.npy")
    append(run, packed({name: npy(header(), bytes(4)) for name in names}))
    opened = open_run(run)
    assert opened.layers_of("loss") == ("model", "A")
    for key in opened.collector.keys:
        assert opened.find(*key) is not None


@pytest.mark.parametrize("dim", ["step", "layer"])
def test_no_array_brings_a_dim_of_the_reader(write: Write, dim: str) -> None:
    run = write(GOOD, close=False)
    labels = {
        "lists": [],
        "of": {},
        "described": {"a@b.npy": {"dims": [dim], "unit": "1", "scale": "log"}},
    }
    append(run, packed({stored.LABELS: to_json(labels), "a@b.npy": npy(header(), bytes(4))}))
    assert open_run(run)["a", "b"].dims == ("step", "dim0")
    with pytest.raises(npz.Refused, match=f"a of b has a dim '{dim}', which the reader adds"):
        stored.pack(Recording(0, measurements=(Measurement("a", np.zeros(1), (dim,), layer="b"),)))


def test_no_name_leaves_the_directory(write: Write, tmp_path: Path) -> None:
    """Nothing is ever extracted: names that point elsewhere are names."""
    run = write(GOOD, close=False)
    append(run, b"x", "../../evil.npz")
    append(run, packed({"..%2F..%2Fetc@%2Fpasswd.npy": npy(header(), bytes(4))}))
    opened = open_run(run)
    assert opened.layers[-1] == "/passwd"
    assert opened["../../etc", "/passwd"].values.shape == (1, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_escape_codes_stay_text_on_the_screen(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    from rnndiag.cli import main

    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    run = write(
        GOOD, close=False, provenance={"command": f"train {evil}", "versions": {evil: evil}}
    )
    name = stored.entry_name("loss", evil)
    append(run, packed({name: npy(header(), bytes(4)), "q@l.npy": b"broken " + evil.encode()}))
    for argv in (["show", str(run)], ["show", str(run), "-q", "loss"], ["verify", str(run)]):
        main(argv)
    shown = capsys.readouterr()
    assert "\\x1b" in shown.out
    assert not {"\x1b", "\x07", "\u202e"} & {*shown.out, *shown.err}
    assert all(c.isprintable() or c == "\n" for c in shown.out + shown.err)


def test_a_zip_bomb_is_a_bomb() -> None:
    """The corpus is what it says: numpy alone would unpack 200 MB from 200 kB."""
    with zipfile.ZipFile(io.BytesIO(RECORDINGS["zip bomb"]())) as archive:
        assert archive.infolist()[0].file_size > 1.9e8
