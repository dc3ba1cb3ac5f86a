"""kill -9 at any moment: every acknowledged recording is there, nothing else is, and the run opens each time."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rnndiag.errors import RunUnreadable
from rnndiag.run.run import Run, open_run

MOMENTS = 50

# Forks one writer per line read, each in a directory of its own. A writer records as fast as it can, and notes
# each step in a file once `append` has said that it is stored.
NURSERY = """
import os, signal, struct, sys
import numpy as np
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    folder = line.strip()
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    said = os.open(folder + ".said", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    writer = RunWriter(folder)
    for step in range(10**9):
        values = np.arange(2000, dtype=np.int64) * (step + 1)
        many = tuple(Measurement(f"q{n}", values + n, ("n",)) for n in range(1 + step % 5))
        assert writer.append(Recording(step, measurements=many))
        os.write(said, struct.pack("<q", step))
"""


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", NURSERY]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def start(nursery: subprocess.Popen[str], folder: Path) -> int:
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write(f"{folder}\n")
    nursery.stdin.flush()
    return int(nursery.stdout.readline())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    while is_alive(pid):
        time.sleep(0.0005)


def acknowledged(folder: Path) -> int:
    data = Path(f"{folder}.said").read_bytes()
    steps = struct.unpack(f"<{len(data) // 8}q", data[: len(data) // 8 * 8])
    assert steps == tuple(range(len(steps)))
    return len(steps)


def hold(run: Run, at_least: int) -> None:
    """All acknowledged recordings, at most the one after them, and each with the numbers of its step."""
    steps = run.steps.tolist()
    assert steps == list(range(len(steps)))
    assert at_least <= len(steps) <= at_least + 1
    for found in run.recordings:
        assert len(found.measurements) == 1 + found.step % 5
        for n, m in enumerate(found.measurements):
            assert np.array_equal(m.values, np.arange(2000) * (found.step + 1) + n)
    assert len([*run.recordings]) == len(steps)


def poll(folder: Path, until: float) -> Run | None:
    """Read along with the writer; what was seen once stays."""
    run, seen = None, 0
    while time.perf_counter() < until:
        try:
            run = run or open_run(folder)
        except RunUnreadable:
            continue  # it has not begun
        run.refresh()
        assert len(run) >= seen
        seen = len(run)
        if seen:
            assert run.last["q0"].values[1] == run.last.step + 1
        assert run.problems == ()
    return run


@pytest.mark.parametrize("polling", [False, True], ids=["alone", "with a reader"])
def test_no_acknowledged_recording_is_lost(
    tmp_path: Path, nursery: subprocess.Popen[str], polling: bool
) -> None:
    chance = random.Random(7 + polling)
    recorded = 0
    for moment in range(MOMENTS):
        folder = tmp_path / f"run{moment}"
        pid = start(nursery, folder)
        begun = tmp_path / f"run{moment}.said"
        # a moment before or after the first recordings
        stored = 8 * chance.choice([0, 0, 1, 2, 5, 10])
        while not begun.exists() or begun.stat().st_size < stored:
            time.sleep(0.0005)
        end = time.perf_counter() + chance.uniform(0, 0.02)
        run = poll(folder, end) if polling else None
        time.sleep(max(0.0, end - time.perf_counter()))
        kill(pid)
        try:
            fresh = open_run(folder)
        except RunUnreadable:
            assert acknowledged(folder) == 0  # killed before the directory was there
            continue
        hold(fresh, acknowledged(folder))
        cut = [problem for problem in fresh.problems if problem.kind == "cut off"]
        assert len(fresh.problems) == len(cut) <= 1
        if fresh.facts:  # else it was killed before the file said whose it is
            assert fresh.status.word == "not closed"
        if run is not None:
            run.refresh()
            hold(run, acknowledged(folder))
        recorded += len(fresh)
    assert recorded >= MOMENTS
