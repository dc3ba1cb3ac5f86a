"""Gates and units against plain loops over steps, sequences and units."""

from __future__ import annotations

import math

import pytest
import torch
from spectra.hand_made import by_hand, draw_run
from torch import Tensor

import rnndiag
from rnndiag.engine.cells import Cell
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.spectra import gate_statistics
from rnndiag.engine.spectra.gate_statistics import GateStatistics
from rnndiag.engine.spectra.summary import four_numbers
from rnndiag.engine.unroll import unroll

SIGMOID_ROWS = {
    "lstm": {"i": 0, "f": 1, "o": 3},
    "gru": {"r": 0, "z": 1},
    "coupled_lstm": {"f": 0, "o": 2},
    "lecture_gru": {"r": 0, "z": 1},
}
CARRIED = {"lstm": "f", "gru": "z", "coupled_lstm": "f", "lecture_gru": "z"}


def statistics(run: LayerRun) -> GateStatistics:
    found = rnndiag.gate_statistics(run)
    assert found is not None
    return found


def gate_values(run: LayerRun) -> dict[str, list[list[Tensor]]]:
    """Value (H,) of each sigmoid gate at each existing step: name -> steps -> sequences."""
    units = run.weights["bias_ih"].shape[0] // len(run.cell.gates)
    values: dict[str, list[list[Tensor]]] = {name: [] for name in SIGMOID_ROWS[run.cell.name]}
    for t in range(run.T):
        for name, row in SIGMOID_ROWS[run.cell.name].items():
            rows, here = slice(row * units, (row + 1) * units), []
            for b in range(run.B):
                if run.lengths is not None and t >= run.lengths[b]:
                    continue
                h = run.initial[0][b] if t == 0 else run.states[0][t - 1, b]
                a = run.weights["weight_ih"][rows] @ run.inputs[t, b] + run.weights["bias_ih"][rows]
                a = a + run.weights["weight_hh"][rows] @ h + run.weights["bias_hh"][rows]
                here.append(1 / (1 + torch.exp(-a)))
            values[name].append(here)
    return values


@pytest.mark.parametrize("cell", SIGMOID_ROWS)
def test_gates_against_plain_loops(cell: str) -> None:
    run = draw_run(cell, steps=12, gain=6.0, lengths=[12, 9, 3])
    found = statistics(run)
    values = gate_values(run)
    assert found.gates == tuple(values)
    for i, by_step in enumerate(values.values()):
        everything = torch.stack([value for step in by_step for value in step])
        assert float((everything > 0.95).double().mean()) > 0.02
        assert float(found.low[i]) == pytest.approx(float((everything < 0.05).double().mean()))
        assert float(found.high[i]) == pytest.approx(float((everything > 0.95).double().mean()))
        assert torch.allclose(found.unit_low[i], (everything < 0.05).double().mean(0))
        assert torch.allclose(found.unit_high[i], (everything > 0.95).double().mean(0))
        assert torch.allclose(found.unit_mean[i], everything.mean(0))
        for t, step in enumerate(by_step):
            assert float(found.mean[i, t]) == pytest.approx(float(torch.stack(step).mean()))
    assert found.activation_derivative is None
    assert found.saturated_units is None
    assert found.dead_units is None


@pytest.mark.parametrize("cell", CARRIED)
def test_time_constants_and_openness(cell: str) -> None:
    """The lectures' GRU swaps z and 1 - z: what is carried on is 1 - z there, and openness is z."""
    run = draw_run(cell, steps=10, lengths=[10, 6, 1])
    by_step = gate_values(run)[CARRIED[cell]]
    carried = [[1 - v if cell == "lecture_gru" else v for v in step] for step in by_step]
    everything = torch.stack([value for step in carried for value in step])
    found = statistics(run)
    assert found.forget_time is not None
    assert found.openness is not None
    assert found.unit_forget_time is not None
    times = (1 / (1 - everything)).flatten()
    expected = [times.mean(), *[times.quantile(q) for q in (0.05, 0.5, 0.95)]]
    assert torch.allclose(found.forget_time, torch.stack(expected))
    assert torch.allclose(found.unit_forget_time, 1 / (1 - everything.mean(0)))
    openness = torch.stack([1 - torch.stack(step).mean() for step in carried])
    assert torch.allclose(found.openness, openness)


def test_a_forget_gate_at_nine_tenths_keeps_ten_steps() -> None:
    weights = {
        "weight_ih": torch.zeros(8, 1, dtype=torch.float64),
        "weight_hh": torch.zeros(8, 2, dtype=torch.float64),
        "bias_ih": torch.zeros(8, dtype=torch.float64),
    }
    weights["bias_ih"][2:4] = math.log(9.0)
    zeros = torch.zeros(1, 2, dtype=torch.float64)
    inputs = torch.zeros(5, 1, 1, dtype=torch.float64)
    found = statistics(by_hand("lstm", weights, inputs, (zeros, zeros)))
    assert found.forget_time is not None
    assert found.forget_time.tolist() == pytest.approx([10.0] * 4)
    weights["bias_ih"][2:4] = 100.0
    stuck = statistics(by_hand("lstm", weights, inputs, (zeros, zeros)))
    assert stuck.forget_time is not None
    assert stuck.forget_time.tolist() == [math.inf] * 4
    assert float(stuck.high[1]) == 1.0


def test_derivatives_and_saturated_units_of_tanh() -> None:
    run = draw_run("elman_tanh", steps=9, lengths=[9, 5, 2])
    run.weights["weight_ih"][0] = 0
    run.weights["weight_hh"][0] = 0
    run.weights["bias_ih"][0] = 3.0
    run = by_hand("elman_tanh", dict(run.weights), run.inputs, run.initial, [9, 5, 2])
    found = statistics(run)
    assert found.activation_derivative is not None
    assert found.unit_derivative is not None
    h = run.states[0]
    for t in range(9):
        slope = (1 - h[t][run.mask()[t]] ** 2).flatten()
        expected = [slope.mean(), *[slope.quantile(q) for q in (0.05, 0.5, 0.95)]]
        assert torch.allclose(found.activation_derivative[t], torch.stack(expected))
    assert torch.allclose(found.unit_derivative, (1 - h[run.mask()] ** 2).mean(0))
    assert found.saturated_units == pytest.approx(1 / 5)
    assert found.dead_units is None
    assert found.gates == ()


def test_dead_relu_units() -> None:
    """Unit 2 is at rest at every step; padding, which is zero everywhere, makes nobody dead."""
    run = draw_run("elman_relu", steps=9)
    weights = dict(run.weights)
    weights["bias_ih"] = torch.tensor([5.0, 5.0, -50.0, 5.0, 5.0], dtype=torch.float64)
    run = by_hand("elman_relu", weights, run.inputs, run.initial, [9, 1, 4])
    found = statistics(run)
    assert found.dead_units == pytest.approx(1 / 5)
    assert found.saturated_units == pytest.approx(1 / 5)


def test_steps_that_no_sequence_has_are_nan() -> None:
    run = draw_run("lstm", steps=6, lengths=[4, 2, 3])
    found = statistics(run)
    assert found.mean[:, :4].isfinite().all()
    assert found.mean[:, 4:].isnan().all()
    assert found.openness is not None
    assert found.openness[4:].isnan().all()


@pytest.mark.parametrize("cell", ["elman_relu", "lstm"])
def test_stretches_of_one_step_change_nothing(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = draw_run(cell, steps=6, lengths=[4, 2, 3])
    whole = statistics(run)
    monkeypatch.setattr(gate_statistics, "CHUNK_BYTES", 1)
    for name, value in vars(statistics(run)).items():
        if isinstance(value, Tensor):
            assert torch.allclose(value, getattr(whole, name), atol=1e-13, equal_nan=True), name
        else:
            assert value == pytest.approx(getattr(whole, name)), name


def test_an_unknown_cell_has_none() -> None:
    cell = Cell(name="halving_too", parts=("x",), run_step=lambda w, x, state: (state[0] / 2,))
    inputs = torch.zeros(2, 1, 1)
    assert rnndiag.gate_statistics(unroll(cell, {}, inputs, (inputs,), (inputs[0],))) is None


def test_the_four_numbers() -> None:
    nan, inf = math.nan, math.inf
    values = torch.tensor(
        [[1.0, 3.0, nan, 2.0], [-inf, 0.0, 1.0, 2.0], [nan] * 4], dtype=torch.float64
    )
    found = four_numbers(values)
    assert found[0].tolist() == pytest.approx([2.0, 1.1, 2.0, 2.9])
    assert found[1].tolist() == pytest.approx([-inf, -inf, 0.5, 1.85])
    assert found[2].isnan().all()
