"""J_t against torch.func.jacrev of steps that share no code with rnndiag, for every cell, layer and projection."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reference
import torch
from spectra.hand_made import draw_run, jacobians_by_jacrev
from torch import Tensor, nn

import rnndiag
from rnndiag.engine import cpu_buffers as pages
from rnndiag.engine.cells import CELLS, Cell, module_cell
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.spectra import jacobians as module
from rnndiag.engine.spectra.jacobians import stretch, tangents
from rnndiag.engine.transition import gates
from rnndiag.engine.unroll import unroll
from rnndiag.errors import BadArgument

CASES = [
    *[(cell, 0, False) for cell in reference.STEPS],
    *[(cell, 3, False) for cell in reference.TWO_PARTS],
    ("peephole_lstm", 0, True),
]


def run_of(cell: str, projection: int, matrix: bool) -> LayerRun:
    return draw_run(cell, projection=projection, matrix_peepholes=matrix, lengths=[7, 5, 2])


def worst(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


def test_every_registered_cell_is_a_case() -> None:
    ours = {name for name, cell in CELLS.items() if cell.pointwise is not None}
    assert ours >= set(reference.STEPS)
    assert {case[0] for case in CASES} == set(reference.STEPS)


@pytest.mark.parametrize(("cell", "projection", "matrix"), CASES)
def test_jacobians_are_those_of_jacrev(cell: str, projection: int, matrix: bool) -> None:
    run = run_of(cell, projection, matrix)
    found = rnndiag.jacobians(run)
    assert found.shape == (7, 3, run.S, run.S)
    assert found.abs().amax((-2, -1))[0].min() > 0.01
    assert worst(found, jacobians_by_jacrev(run)) <= 1e-12
    assert not found[5:, 1].any(), "padding has no Jacobian"


@pytest.mark.parametrize(("cell", "projection", "matrix"), CASES)
def test_tangents_are_jacobians_applied(cell: str, projection: int, matrix: bool) -> None:
    run = run_of(cell, projection, matrix)
    draw = torch.Generator().manual_seed(9)
    vectors = torch.randn(7, 3, 4, run.S, dtype=torch.float64, generator=draw)
    expected = vectors @ jacobians_by_jacrev(run).mT
    alive = run.mask()
    held = tangents(run, 0, 7, torch.float64)
    assert worst(held.push(torch.arange(7), vectors)[alive], expected[alive]) <= 1e-12
    late = tangents(run, 3, 7, torch.float64)
    assert worst(late.push(1, vectors[4])[alive[4]], expected[4][alive[4]]) <= 1e-12


@pytest.mark.parametrize("mode", ["RNN", "GRU", "LSTM", "LSTM with proj_size"])
def test_every_layer_and_direction_of_a_stack(mode: str) -> None:
    torch.manual_seed(1)
    kwargs = {"proj_size": 2} if "proj_size" in mode else {}
    net = getattr(nn, mode.split()[0])(3, 4, num_layers=2, bidirectional=True, **kwargs).double()
    lengths = [6, 4]
    inputs = torch.randn(6, 2, 3, dtype=torch.float64)
    _, _, tapes = reference.unroll_module(net, inputs, lengths=lengths)
    assert len(tapes) == 4
    for name, tape in tapes.items():
        states = tape.states()
        run = LayerRun(
            name=name,
            cell=CELLS[reference.CELL_OF_MODE[net.mode]],
            weights={key: value.detach() for key, value in tape.weights[0].items()},
            inputs=torch.stack(tape.inputs).detach(),
            states=states,
            initial=tuple(part.detach() for part in tape.initial),
            direct=tuple(torch.zeros_like(part) for part in states),
            lengths=torch.tensor(lengths),
        )
        assert worst(rnndiag.jacobians(run), jacobians_by_jacrev(run)) <= 1e-12, name


class Leaky(nn.Module):
    """Two state parts of different size, one of which has no gradient into the other."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(5, 3)

    def forward(self, x: Tensor, h: Tensor, slow: Tensor) -> tuple[Tensor, Tensor]:
        new = torch.tanh(self.mix(torch.cat([x, h], -1)))
        return new, 0.9 * slow + new[:, :2].detach()


def test_a_module_of_ones_own() -> None:
    torch.manual_seed(2)
    net = Leaky().double().requires_grad_(False)
    cell = module_cell(net, ("h", "slow"), lambda f, x, state: f(x, *state))
    weights = {key: value.detach() for key, value in net.named_parameters()}
    inputs = torch.randn(5, 2, 2, dtype=torch.float64)
    initial = (torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64))
    direct = (inputs.new_zeros(5, 2, 3), inputs.new_zeros(5, 2, 2))
    run = unroll(cell, weights, inputs, direct, initial)
    found = rnndiag.jacobians(run)
    for t in range(5):
        for b in range(2):
            before = torch.cat(
                [p[b] for p in (initial if t == 0 else [s[t - 1] for s in run.states])]
            )

            def of(state: Tensor, x: Tensor = inputs[t, b]) -> Tensor:
                h, slow = state.split([3, 2])
                new = torch.tanh(net.mix(torch.cat([x, h])))
                return torch.cat([new, 0.9 * slow + new[:2].detach()])

            assert worst(found[t, b], torch.func.jacrev(of)(before)) <= 1e-12
    assert torch.equal(found[..., 3:, :3], torch.zeros(5, 2, 2, 3, dtype=torch.float64))


def test_finite_differences_agree() -> None:
    run = draw_run("lstm", steps=1, batch=1, projection=3)
    found, size = rnndiag.jacobians(run)[0, 0], 1e-6
    step = reference.STEPS["lstm"]
    for column in range(run.S):
        moved = []
        for sign in (1, -1):
            state = torch.cat([part[0] for part in run.initial])
            state[column] += sign * size
            moved.append(torch.cat(step(run.weights, run.inputs[0, 0], run.split(state))))
        assert torch.allclose(found[:, column], (moved[0] - moved[1]) / (2 * size), atol=1e-8)


@pytest.mark.parametrize("cell", ["lstm", "lecture_gru"])
def test_small_chunks_change_nothing(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = draw_run(cell, lengths=[7, 4, 1])
    whole = rnndiag.jacobians(run)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    assert torch.allclose(rnndiag.jacobians(run), whole, rtol=0, atol=1e-15)


def test_chosen_steps_and_stretches() -> None:
    run = draw_run("gru", lengths=[7, 4, 1])
    whole = rnndiag.jacobians(run)
    assert torch.allclose(rnndiag.jacobians(run, [4, 0]), whole[[4, 0]], rtol=0, atol=1e-15)
    part = stretch(run, 2, 6)
    assert part.lengths is not None
    assert part.lengths.tolist() == [4, 2, 0]
    assert torch.allclose(rnndiag.jacobians(part), whole[2:6], rtol=0, atol=1e-15)


def test_precision_is_that_of_the_run() -> None:
    run = draw_run("lstm").to(dtype=torch.float32)
    found = rnndiag.jacobians(run)
    assert found.dtype == torch.float32
    assert worst(found, rnndiag.jacobians(draw_run("lstm")).float()) < 1e-5


@pytest.mark.parametrize("cell", ["elman_tanh", "elman_relu", "linear"])
def test_single_precision_reads_the_derivative_off_the_recorded_state(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = draw_run(cell, lengths=[7, 4, 1])
    run, expected = exact.to(dtype=torch.float32), jacobians_by_jacrev(exact)
    assert worst(rnndiag.jacobians(run), expected) < 2e-6
    assert worst(rnndiag.jacobians(run, [5, 2]), expected[[5, 2]]) < 2e-6
    assert not rnndiag.jacobians(run)[4:, 1].any()
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    assert worst(rnndiag.jacobians(run), expected) < 2e-6


def test_a_single_precision_recording_in_double_keeps_the_digits_of_saturated_units() -> None:
    """h = 1 to the last digit of float32, so 1 - h² is 0; what the step makes of h_{t-1} is not."""
    run = draw_run("elman_tanh", gain=3.0)
    run.weights["weight_ih"].mul_(3.0)
    run = unroll(run.cell, run.weights, run.inputs, run.direct, run.initial)
    turned = run.to(dtype=torch.float32).to(dtype=torch.float64)
    assert (turned.states[0].abs() == 1).any()
    found = rnndiag.jacobians(turned)
    assert (found != 0).any(-1).all(), "no unit is dead"
    reference_step = jacobians_by_jacrev(turned)
    assert torch.allclose(found, reference_step, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_memory_of_a_large_result(dtype: torch.dtype) -> None:
    for rows in (3, 2**11):
        made = pages.empty((rows, 2, 1024), dtype, torch.device("cpu"))
        assert made.shape == (rows, 2, 1024)
        assert made.dtype == dtype
        assert made.is_contiguous()
        assert made.fill_(1.0).sum(-1, dtype=torch.float64).eq(1024).all()


def test_a_step_that_is_not_there_is_refused() -> None:
    with pytest.raises(BadArgument, match="from 0 to 6"):
        rnndiag.jacobians(draw_run("gru"), [7])
    for no_numbers in ([0.5], torch.ones(7, dtype=torch.bool)):
        with pytest.raises(BadArgument, match="from 0 to 6"):
            rnndiag.jacobians(draw_run("gru"), no_numbers)
    assert rnndiag.jacobians(draw_run("gru"), []).shape[0] == 0


def test_gates_that_the_recorder_kept_do_not_mislead() -> None:
    run = draw_run("lstm", lengths=[7, 4, 1])
    whole = rnndiag.jacobians(run)
    kept = replace(run, gates=gates(run.cell, run.weights, run.inputs, run.previous()))
    assert torch.allclose(rnndiag.jacobians(kept, [4, 0]), whole[[4, 0]], rtol=0, atol=1e-15)
    held = tangents(kept, 3, 7, torch.float64)
    eye = torch.eye(run.S, dtype=torch.float64).expand(3, -1, -1)
    assert torch.allclose(held.push(0, eye).mT[0], whole[3, 0], rtol=0, atol=1e-14)


def test_parts_that_see_no_gate_or_nothing_at_all() -> None:
    """One part decays by itself, beside an elementwise h; in a cell of any other form a part is a constant."""

    def pointwise(a_ih: Tensor, a_hh: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.tanh(a_ih + a_hh), 0.5 * state[1]

    inputs = torch.randn(4, 2, 3, dtype=torch.float64)
    direct = (inputs.new_zeros(4, 2, 3), inputs.new_zeros(4, 2, 3))
    weights = {"weight_ih": torch.randn(3, 3).double(), "weight_hh": torch.randn(3, 3).double()}
    start = (torch.ones(2, 3).double(), torch.ones(2, 3).double())
    cell = Cell(
        "decaying", ("h", "n"), ("h",), pointwise=pointwise, elementwise=True, additive=True
    )
    run = unroll(cell, weights, inputs, direct, start)
    found = rnndiag.jacobians(run)
    slope = (1 - run.states[0] ** 2).unsqueeze(-1)
    assert torch.allclose(found[..., :3, :3], slope * weights["weight_hh"], rtol=0, atol=1e-14)
    assert torch.equal(found[..., 3:, 3:], 0.5 * torch.eye(3).double().expand(4, 2, 3, 3))
    assert not found[..., :3, 3:].any()
    assert not found[..., 3:, :3].any()
    vectors = torch.randn(4, 2, 2, 6, dtype=torch.float64)
    pushed = tangents(run, 0, 4, torch.float64).push(torch.arange(4), vectors)
    assert torch.allclose(pushed, vectors @ found.mT, rtol=0, atol=1e-13)

    def constant(weights: object, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return state[0] * x, torch.ones_like(x)

    run = unroll(Cell("constant", ("h", "n"), run_step=constant), {}, inputs, direct, start)
    found = rnndiag.jacobians(run)
    assert torch.equal(found[..., :3, :3], torch.diag_embed(inputs))
    assert not found[..., 3:, :].any()
    assert not found[..., 3:].any()
