"""Flipped bits, cut files, full disks: detected or harmless, the other recordings kept, one sentence each."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sample_run import LAYER, Write, recording, same, segment_of

from rnndiag.errors import RunUnreadable
from rnndiag.run.run import Run, open_run
from rnndiag.store import npz, stored, tar
from rnndiag.store.limits import JSON_BYTES
from rnndiag.store.text import to_json

STEPS = range(0, 80, 10)


@pytest.fixture(autouse=True)
def writer_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process writes the runs and lives on; the reader is to believe that it does not."""
    monkeypatch.setattr("rnndiag.store.status.is_alive", lambda process: False)


def sound(run: Run) -> int:
    """How many recordings are whole. Anything that differs from what was written must be told in `problems`."""
    found = [*run.recordings]
    assert {r.step for r in found} <= {*STEPS}
    changed = {r.step for r in found if not same(r, recording(r.step))}
    assert changed <= {problem.step for problem in run.problems}
    return len(found) - len(changed)


def check(damaged: Path, lost_at_most: int) -> str:
    """Open, read and verify; what kind of damage was seen."""
    try:
        run = open_run(damaged)
    except RunUnreadable:
        run = open_run(damaged, salvage=True)
        assert run.problems[0].kind == "salvaged"
        assert sound(run) == len(STEPS)
        return "open"
    whole = sound(run)
    problems = run.verify()
    assert whole >= len(STEPS) - lost_at_most
    if whole < len(STEPS):
        assert problems
    assert len({str(problem) for problem in problems}) == len(problems)
    return problems[0].kind if problems else "harmless"


def test_every_flipped_bit_is_seen_or_harmless(write: Write) -> None:
    run = write(STEPS)
    file = segment_of(run)
    data = file.read_bytes()
    chance = random.Random(1)
    seen: dict[str, int] = {}
    for _ in range(500):
        at = chance.randrange(len(data))
        flipped = bytearray(data)
        flipped[at] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        kind = check(run, 1)
        seen[kind] = seen.get(kind, 0) + 1
    assert {"array", "recording", "open", "harmless"} <= set(seen)


def test_every_bit_of_a_recordings_directory_and_header(write: Write) -> None:
    """The places where a flip could rename an array or move it, all of them."""
    run = write(STEPS)
    file = segment_of(run)
    data = file.read_bytes()
    place = open_run(run).groups[3][0]
    header = range(place.start - tar.BLOCK, place.start - tar.BLOCK + 345)
    end = range(place.start + place.size - 700, place.start + place.size)
    for at in (*header, *end):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        file.write_bytes(flipped)
        assert sound(open_run(run)) >= len(STEPS) - 1


def test_every_truncation_keeps_what_is_before_it(write: Write) -> None:
    run = write(STEPS)
    file = segment_of(run)
    data = file.read_bytes()
    places = [group[0] for group in open_run(run).groups]
    chance = random.Random(2)
    for length in (*chance.sample(range(len(data)), 200), *(place.start for place in places)):
        file.write_bytes(data[:length])
        before = [place for place in places if place.start + place.size <= length]
        found = open_run(run)
        assert sound(found) == len(before) == len(found)
        cut = [problem for problem in found.problems if problem.kind == "cut off"]
        assert len(found.problems) == len(cut) <= 1
        if cut:
            assert f"the {len(before)} before it are used" in str(cut[0])
        if length <= places[-1].start:
            assert found.status.word == "not closed"


def test_a_cut_recording_is_named_with_its_missing_bytes(write: Write) -> None:
    run = write(STEPS)
    file = segment_of(run)
    place = open_run(run).groups[-1][0]
    file.write_bytes(file.read_bytes()[: place.start + place.size - 123])
    (problem,) = open_run(run).problems
    assert str(problem) == (
        f"recordings/{file.name}: the last recording (step 70) was cut off, 123 bytes are missing, "
        "the 7 before it are used."
    )


def test_a_damaged_array_leaves_the_others(write: Write) -> None:
    run = write(STEPS)
    file = segment_of(run)
    data = bytearray(file.read_bytes())
    opened = open_run(run)
    place = opened.groups[2][0]
    start, size, _ = opened.collector.directory(place)["adjoint_norm@rnn.l0.npy"]
    data[place.start + start + size - 1] ^= 0x10
    file.write_bytes(data)
    opened = open_run(run)
    found = opened.at(20)
    assert ("adjoint_norm", LAYER) not in found
    assert np.array_equal(
        found["credit_profile", LAYER].values, opened.first["credit_profile", LAYER].values
    )
    assert opened["adjoint_norm", LAYER].steps.tolist() == [0, 10, 30, 40, 50, 60, 70]
    (problem,) = opened.problems
    assert "array adjoint_norm of layer rnn.l0 at step 20 (train) is damaged and left out" in str(
        problem
    )
    assert problem.step == 20


def test_a_hole_is_passed_and_reading_goes_on(write: Write) -> None:
    run = write(STEPS)
    file = segment_of(run)
    data = bytearray(file.read_bytes())
    places = [group[0] for group in open_run(run).groups]
    begin, end = places[2].start - tar.BLOCK, places[4].start - tar.BLOCK
    data[begin:end] = bytes(end - begin)
    file.write_bytes(data)
    opened = open_run(run)
    assert opened.steps.tolist() == [0, 10, 40, 50, 60, 70]
    texts = [str(problem) for problem in opened.problems]
    assert f"{end - begin} damaged bytes skipped, reading went on at step 40." in texts[0]
    assert "2 of 8 recordings promised at close are missing." in texts[1]


def test_salvage_reads_without_open_json(write: Write) -> None:
    run = write(STEPS)
    file = segment_of(run)
    data = bytearray(file.read_bytes())
    data[tar.BLOCK + 40] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunUnreadable, match=r"open\.json is unreadable.*--salvage"):
        open_run(run)
    opened = open_run(run, salvage=True)
    assert opened.steps.tolist() == [*STEPS]
    assert opened.provenance == {}
    assert "salvaged" in str(opened.problems[0])


def test_a_missing_segment_in_the_middle_is_named(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnndiag.store.limits.SEGMENT_RECORDINGS", 3)
    run = write(STEPS)
    files = sorted((run / "recordings").iterdir())
    assert len(files) == 3
    assert open_run(run).steps.tolist() == [*STEPS]
    files[1].unlink()
    opened = open_run(run)
    assert opened.steps.tolist() == [0, 10, 20, 60, 70]
    assert "segment 1 before it is missing" in str(opened.problems[0])
    assert "3 of 8 recordings promised at close are missing" in str(opened.problems[1])


def test_a_newer_format_is_refused_in_one_sentence(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnndiag.store.limits.FORMAT", (2, 3))
    run = write(STEPS)
    monkeypatch.undo()
    with pytest.raises(
        RunUnreadable, match=r"written in format 2\.3, this rnndiag reads up to 1\.0: upgrade"
    ):
        open_run(run)


def test_a_newer_minor_format_and_unknown_quantities_are_read(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rnndiag.store.quantities import QUANTITIES, Quantity

    monkeypatch.setattr("rnndiag.store.limits.FORMAT", (1, 9))
    new = Quantity("credit_profile", ("lag", "flavour"), "spoons", "Of the future.")
    monkeypatch.setitem(QUANTITIES, "credit_profile", new)
    run = write(STEPS)
    monkeypatch.undo()
    found = open_run(run)["credit_profile", LAYER]
    assert (found.dims, found.unit) == (("step", "lag", "flavour"), "spoons")


def test_facts_of_a_later_version_are_kept(write: Write) -> None:
    run = write([0], close=False)
    facts = {"step": 10, "phase": "train", "time": 1.0, "weather": ["rain"], "notes": {"a": 1}}
    content = npz.pack([(stored.FACTS, (to_json(facts),))])
    with open(segment_of(run), "ab") as file:
        file.write(tar.member(tar.recording_name(10, "train"), content, 0))
    assert open_run(run).last.notes == {"weather": ["rain"], "a": 1}


# Twelve recordings of 4 kB against a limit of 30 kB on any file that the process writes.
FULL = """
import logging, resource, sys
import numpy as np
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter

logging.basicConfig()
resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))
writer = RunWriter(sys.argv[1])
values = np.arange(500.0)
for step in range(12):
    print(writer.append(Recording(step, measurements=(Measurement("q", values + step, ("n",)),))))
print(len(writer.problems), writer.stopped)
writer.close()
"""


def test_a_full_disk_leaves_a_clean_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(run)], capture_output=True, text=True, check=True
    )
    *kept, end = done.stdout.split("\n")[:-1]
    stored = kept.count("True")
    assert 0 < stored < 12
    assert kept == ["True"] * stored + ["False"] * (12 - stored)
    assert end == "4 True"
    assert done.stderr.count("could not write step") == 1
    assert "dropped, training goes on" in done.stderr
    assert "recording stopped after 3 recordings in a row" in done.stderr
    opened = open_run(run)
    assert len(opened) == stored
    assert opened.verify() == ()
    assert [r["q"].values[0] for r in opened.recordings] == [*range(stored)]
    assert segment_of(run).stat().st_size % tar.BLOCK == 0


def test_provenance_that_is_too_large_gives_way(write: Write) -> None:
    huge = {"config": "x" * (2 * JSON_BYTES), "versions": {"rnndiag": "0.1"}}
    found = open_run(write(STEPS, provenance=huge))
    assert found.provenance["versions"] == {"rnndiag": "0.1"}
    assert "bytes are too many" in found.provenance["config"]
    assert found.problems == ()
