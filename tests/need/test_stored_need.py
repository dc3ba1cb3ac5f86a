"""A need goes into a run and comes out with the same verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from need.test_need_verdict import FAR, QUIET

from rnndiag.stats.need import Group, needs_in
from rnndiag.stats.need.stored import need_measurements
from rnndiag.store.reader import StoredRun
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter


def test_stored_need_is_read_back_as_it_was(tmp_path: Path) -> None:
    groups = (
        Group(1, 7, 0.0, 0.0, 0.0, 1.0, 1.0, False),
        Group(8, 15, 0.1, 0.05, 0.15, 0.01, 0.02, True),
    )
    need = replace(QUIET, further=FAR, groups=groups, reach=11.25, peak_lag=9.0, used_memory=None)
    with RunWriter(tmp_path / "run") as writer:
        writer.append(Recording(3, measurements=need_measurements(QUIET)))
        writer.append(Recording(5, measurements=need_measurements(need)))
    (found,) = needs_in(StoredRun(tmp_path / "run"))
    assert found == replace(
        need, plain_steps=found.plain_steps, autocorrelation=found.autocorrelation
    )
    assert (found.lead, found.sentence) == (need.lead, need.sentence)


def test_run_without_a_need_has_none() -> None:
    assert needs_in([Recording(1)]) == ()
