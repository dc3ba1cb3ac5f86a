"""Refusals, notes, the printed table, and the pytest helper of `gradcheck_recurrence`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from planted_scan import PlantedScan
from torch import Tensor, nn

import rnndiag
from rnndiag.engine.gradcheck.patterns import Paths, name_paths
from rnndiag.errors import BadArgument, NotSupported
from rnndiag.pytest_plugin import RnndiagFixture


def scan_options(bug: str = "", steps: int = 9) -> dict[str, object]:
    torch.manual_seed(0)
    return {
        "kernel": PlantedScan(bug, 4),
        "inputs": torch.randn(steps, 2, 3),
        "state": torch.randn(2, 4),
        "chunk": 4,
    }


def test_table_prints_every_cell_and_the_faults() -> None:
    result = rnndiag.gradcheck_recurrence(**scan_options("internal seams cut"))
    lines = str(result).splitlines()
    assert lines[0].startswith("gradcheck_recurrence: WRONG in ")
    assert lines[1].split() == ["T=1", "T=3", "T=4", "T=5", "T=8", "T=9"]
    (row,) = [line for line in lines if line.startswith("final state -> inputs")][:1]
    assert row.split("  ")[-1].endswith("seam 4")
    assert "T=5, T=8, T=9" in "".join(result.faults)
    assert any(line.startswith("same values twice: ok") for line in lines)


def test_right_result_says_how_many_cells_it_compared() -> None:
    result = rnndiag.gradcheck_recurrence(**scan_options())
    assert str(result).startswith(f"gradcheck_recurrence: right in all {len(result.table)} cells")


def test_results_are_repeatable_and_leave_the_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    first = rnndiag.gradcheck_recurrence(**scan_options("wrong for odd lengths"))
    torch.set_rng_state(state)
    torch.manual_seed(0)
    expected = torch.rand(3)
    options = scan_options("wrong for odd lengths")
    torch.manual_seed(0)
    second = rnndiag.gradcheck_recurrence(**options)
    assert torch.equal(torch.rand(3), expected)
    assert first.table == second.table


def test_zero_state_and_missing_parameters_are_noted() -> None:
    def kernel(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return h + x.cumsum(0), h + x.sum(0)

    result = rnndiag.gradcheck_recurrence(
        kernel, inputs=torch.randn(5, 2, 3), state=torch.zeros(2, 3)
    )
    assert result
    assert any("state is all zeros" in note for note in result.notes)
    assert any("no parameters" in note for note in result.notes)


def test_kernel_that_raises_for_some_lengths_is_not_right() -> None:
    def kernel(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        if len(x) == 1:
            raise RuntimeError("no such kernel")
        return h + x.cumsum(0), h + x.sum(0)

    result = rnndiag.gradcheck_recurrence(
        kernel, inputs=torch.randn(5, 2, 3), state=torch.randn(2, 3)
    )
    assert not result
    assert "raises RuntimeError: no such kernel" in result.faults[0]


def test_detached_final_state_is_named() -> None:
    rnn = nn.RNN(3, 4)

    def kernel(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        outputs, final = rnn(x, h)
        return outputs, final.detach()

    result = rnndiag.gradcheck_recurrence(
        kernel, inputs=torch.randn(5, 2, 3), state=torch.randn(1, 2, 4)
    )
    assert all("lost at the end of the call" in f for f in result.faults if "final" in f[:5])
    assert {cell.seam for cell in result.wrong if cell.run == "whole" and cell.steps == 5} >= {5}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"chunk": 0}, "chunk is 0"),
        ({"inputs": torch.randn(5)}, "two leading dimensions"),
        ({"inputs": "text"}, "not a tensor"),
        ({"lengths": [1, 2, 3]}, "one length per sequence"),
        ({"lengths": [1, 12]}, "one length per sequence"),
        ({"parameters": [torch.zeros(2)]}, "leaf tensor that requires a gradient"),
        ({"kernel": lambda x, h: x}, "not \\(outputs, final state\\)"),
        ({"kernel": lambda x, h: (x, h[:1])}, "initial state"),
        ({"kernel": lambda x, h: (x[0], h)}, "first two dimensions"),
        ({"kernel": lambda x, h: (x * 2, h)}, "batch_first"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(change: dict[str, object], word: str) -> None:
    with pytest.raises(BadArgument, match=word):
        rnndiag.gradcheck_recurrence(**{**scan_options(), **change})


def test_complex_states_are_refused() -> None:
    def kernel(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return h + x.cumsum(0), h + x.sum(0)

    z = torch.randn(5, 2, 3, dtype=torch.complex64)
    with pytest.raises(NotSupported, match="view_as_real"):
        rnndiag.gradcheck_recurrence(kernel, inputs=z, state=z[0], batch_first=False)


def test_fixture_fails_a_test_with_the_table(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    fixture = RnndiagFixture(tmp_path, request.config)
    assert fixture.gradcheck(**scan_options())
    with pytest.raises(AssertionError, match=r"(?s)WRONG.*seam 4"):
        fixture.gradcheck(**scan_options("internal seams cut"))


def test_rules_name_lags_seams_and_steps() -> None:
    import numpy as np

    t, s = (axis.ravel() for axis in np.indices((12, 12)))
    s, t = s[s <= t], t[s <= t]
    everything = np.ones(len(s), bool)

    def named(wrong: np.ndarray) -> tuple[int | None, int | None, int | None]:
        place = name_paths(Paths(s, t, wrong, everything), 4, 12)
        assert place is not None
        return place.lag, place.seam, place.step

    assert named(t - s == 3) == (3, None, None)
    assert named(t - s >= 5) == (5, None, None)
    assert named((s < 8) & (t >= 8)) == (None, 8, None)
    assert named((s // 4) != (t // 4)) == (None, 4, None)
    assert named((s < 7) & (t >= 7)) == (None, None, 7)
    assert named(s == 6) == (None, None, 6)
    assert named(everything) == (0, None, None)
    scattered = np.random.default_rng(0).random(len(s)) < 0.3
    place = name_paths(Paths(s, t, scattered, everything), 4, 12)
    assert place is not None
    assert place.lag == int((t - s)[scattered].min())
    assert "on some paths" in place.text
