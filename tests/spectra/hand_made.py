"""Layer runs for the tests of spectra: drawn ones, and those of small nets that have been trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import reference
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from rnndiag.engine.cells import find_cell
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.unroll import unroll

Lengths = Sequence[int] | None


def draw_run(
    cell: str,
    *,
    steps: int = 7,
    batch: int = 3,
    units: int = 5,
    projection: int = 0,
    matrix_peepholes: bool = False,
    lengths: Lengths = None,
    gain: float = 1.0,
    seed: int = 0,
) -> LayerRun:
    """A run of a registered cell with random float64 weights, inputs and initial state."""
    draw = torch.Generator().manual_seed(seed)
    weights = reference.draw_weights(
        cell, 3, units, projection=projection, matrix_peepholes=matrix_peepholes, seed=seed
    )
    weights["weight_hh"] = gain * weights["weight_hh"]
    inputs = torch.randn(steps, batch, 3, dtype=torch.float64, generator=draw)
    initial = reference.draw_state(cell, batch, units, projection, seed=seed + 1)
    return by_hand(cell, weights, inputs, initial, lengths)


def by_hand(
    cell: str,
    weights: dict[str, Tensor],
    inputs: Tensor,
    initial: tuple[Tensor, ...],
    lengths: Lengths = None,
) -> LayerRun:
    """A run with these numbers; no direct gradient."""
    direct = tuple(torch.zeros(len(inputs), *part.shape, dtype=part.dtype) for part in initial)
    return unroll(
        find_cell(cell),
        weights,
        inputs,
        direct,
        initial,
        None if lengths is None else torch.tensor(lengths),
    )


def linear_run(matrix: Tensor, steps: int, batch: int = 2) -> LayerRun:
    """h_t = W h_{t-1}: J_t = W at every step. The states are zero, so that none overflows."""
    size = len(matrix)
    weights = {"weight_ih": torch.zeros(size, 1, dtype=torch.float64), "weight_hh": matrix}
    inputs = torch.zeros(steps, batch, 1, dtype=torch.float64)
    return by_hand("linear", weights, inputs, (torch.zeros(batch, size, dtype=torch.float64),))


def orthogonal(size: int, seed: int = 0) -> Tensor:
    """A random orthogonal matrix, float64."""
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=draw)).Q


def jacobians_by_jacrev(run: LayerRun) -> Tensor:
    """J_t of each step and sequence by torch.func.jacrev of the reference step; zeros past the end."""
    step = reference.STEPS[run.cell.name]
    projected = "weight_hr" in run.weights and run.cell.name != "lstm"  # the reference LSTM does it

    def of(state: Tensor, x: Tensor) -> Tensor:
        h, *rest = step(run.weights, x, run.split(state))
        return torch.cat([h @ run.weights["weight_hr"].T if projected else h, *rest])

    before = torch.cat([torch.cat(run.initial, -1)[None], run.state_vector()[:-1]])
    found = vmap(vmap(jacrev(of)))(before, run.inputs)
    for b, length in enumerate([] if run.lengths is None else run.lengths):
        found[length:, b] = 0.0
    return found


@cache
def trained_run(mode: str, steps: int = 60) -> LayerRun:
    """An RNN, LSTM or GRU of torch that has learnt to add two marked numbers for a while, on two new sequences."""
    torch.manual_seed(0)
    units = 10
    net = getattr(nn, mode)(2, units).double()
    head = nn.Linear(units, 1).double()
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(40):
        inputs, target = _adding(20, 32)
        loss = (head(net(inputs)[0][-1])[:, 0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    inputs, _ = _adding(steps, 2)
    _, _, tapes = reference.unroll_module(net, inputs)
    weights = {
        key.removesuffix("_l0"): value.detach().clone() for key, value in net.named_parameters()
    }
    cell = reference.CELL_OF_MODE[net.mode]
    initial = tuple(part.detach() for part in tapes["l0"].initial)
    return by_hand(cell, weights, inputs, initial)


def _adding(steps: int, batch: int) -> tuple[Tensor, Tensor]:
    """Two of the numbers are marked, and the target is their sum."""
    numbers = torch.rand(steps, batch, dtype=torch.float64)
    marks = torch.zeros(steps, batch, dtype=torch.float64)
    half = steps // 2
    columns = torch.arange(batch)
    for first, last in ((0, half), (half, steps)):
        marks[torch.randint(first, last, (batch,)), columns] = 1.0
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)
