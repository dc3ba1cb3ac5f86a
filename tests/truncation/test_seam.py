"""Across the seam of chunked training: against the whole sequence in one run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from truncation.naive import Problem, problem

from rnndiag import LayerRun, SeamMemory, credit_matrix, seam_sweep
from rnndiag.errors import BadArgument, NotSupported


def cut(run: LayerRun, start: int, stop: int) -> LayerRun:
    """One chunk of a run, as a capture of chunked training would see it."""
    initial = run.initial if start == 0 else tuple(part[start - 1] for part in run.states)
    return replace(
        run,
        inputs=run.inputs[start:stop],
        states=tuple(part[start:stop] for part in run.states),
        direct=tuple(part[start:stop] for part in run.direct),
        initial=initial,
        gates=None,
    )


def beyond(p: Problem, seam: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of the losses from `seam` on: whole, and with the states before the seam detached."""
    T = p.T
    return p.gradient([(0, T, range(seam, T))]), p.gradient([(seam, T, range(seam, T))])


@pytest.mark.parametrize("cells", [("lstm",), ("gru", "lstm")])
def test_the_seam_gives_what_the_whole_run_gives(cells: tuple[str, ...]) -> None:
    p = problem(*cells, T=12)
    q = problem(*cells, T=12, losses=range(8, 12))
    runs = [q.runs[layer] for layer in range(len(cells))]
    stack = len(cells) > 1
    chunks = [[cut(run, a, b) for run in p.runs] for a, b in ((0, 3), (3, 8))]
    last = [cut(run, 8, 12) for run in runs]
    if stack:
        for layer, own in enumerate(last):
            last[layer] = replace(own, direct=cut(q.runs[layer], 8, 12).direct)
    earlier = chunks if stack else [chunk[0] for chunk in chunks]
    seam = seam_sweep(earlier, last if stack else last[0])  # type: ignore[arg-type]
    full, kept = beyond(q, 8)
    assert seam.kept_steps == 8
    assert seam.own_steps == 4
    off = float((full - kept).norm() / full.norm())
    assert seam.gradient_beyond == pytest.approx(off, rel=1e-9)
    along = float(full @ kept / full.norm() / kept.norm())
    assert seam.cosine == pytest.approx(along, rel=1e-9)
    matrix = credit_matrix(q.runs if stack else q.run)
    lost = float(matrix[8:, :8].sum() / matrix[8:].sum())
    assert seam.credit_beyond == pytest.approx(lost, rel=1e-9)
    assert len(seam.log_profile) == 12
    assert "Cutting the state every 4 steps throws away" in seam.sentence
    assert seam.notes == ()


def test_moved_weights_are_noted() -> None:
    p = problem("lstm", T=8)
    first, last = cut(p.run, 0, 4), cut(p.run, 4, 8)
    moved = {key: value * 1.01 for key, value in first.weights.items()}
    seam = seam_sweep([replace(first, weights=moved)], last)
    assert "moved by 1.0e-02" in seam.notes[0]


def test_memory_is_bounded() -> None:
    p = problem("gru", T=12)
    memory = SeamMemory(max_steps=7)
    for start in (0, 3, 6, 9):
        memory.keep(cut(p.run, start, start + 3))
    assert [chunk.T for chunk in memory.chunks] == [3, 3]
    assert torch.equal(memory.chunks[0].inputs, p.run.inputs[6:9])
    memory.clear()
    assert memory.chunks == ()


def test_chunks_that_do_not_fit_are_refused() -> None:
    p = problem("gru", T=8)
    first, last = cut(p.run, 0, 4), cut(p.run, 4, 8)
    other = replace(last, initial=tuple(part + 1 for part in last.initial))
    with pytest.raises(NotSupported, match="does not start from the state"):
        seam_sweep([first], other)
    fewer = first.select([0, 1])
    with pytest.raises(NotSupported, match="2 and 4 sequences"):
        seam_sweep([fewer], last)
    backwards = replace(first, reverse=True)
    with pytest.raises(NotSupported, match="runs backwards"):
        seam_sweep([backwards], last)
    ragged = replace(first, lengths=torch.tensor([4, 2, 4, 4]))
    with pytest.raises(NotSupported, match="end inside it"):
        seam_sweep([ragged], last)
    with pytest.raises(BadArgument, match="No earlier chunk"):
        seam_sweep([], last)
    with pytest.raises(BadArgument, match="max_steps is 0"):
        SeamMemory(0)
