"""Elman cells: h_t = φ(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh) with φ tanh, relu or the identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rnndiag.engine.cells.cell import Cell, State, summed
from rnndiag.engine.cells.registry import register_cell


def _elman(
    name: str,
    activation: Callable[[Tensor], Tensor],
    derivative: Callable[[Tensor], Tensor],
    *,
    dies_at_zero: bool = False,
    kernels: tuple[str, ...] = (),
    step_kernels: tuple[str, ...] = (),
) -> Cell:
    """Register an Elman cell h' = activation(a_ih + a_hh); `derivative` takes h'."""

    def pointwise(a_ih: Tensor, a_hh: Tensor, state: State) -> State:
        return (activation(summed(a_ih, a_hh)),)

    def diagonal(
        gate: Mapping[str, Tensor], state: State
    ) -> tuple[State, list[list[Tensor | None]]]:
        return (gate["h"],), [[derivative(gate["h"]), None, None]]

    def activations(a_ih: Tensor, a_hh: Tensor, state: State) -> Mapping[str, Tensor]:
        return {"h": activation(summed(a_ih, a_hh))}

    return register_cell(
        Cell(
            name=name,
            parts=("h",),
            gates=("h",),
            pointwise=pointwise,
            elementwise=True,
            additive=True,
            diagonal=diagonal,
            activations=activations,
            derivative=derivative,
            dies_at_zero=dies_at_zero,
            kernels=kernels,
            step_kernels=step_kernels,
        )
    )


ELMAN_TANH = _elman(
    "elman_tanh",
    torch.tanh,
    lambda h: 1 - h * h,
    kernels=("rnn_tanh",),
    step_kernels=("rnn_tanh_cell",),
)
ELMAN_RELU = _elman(
    "elman_relu",
    torch.relu,
    lambda h: (h > 0).to(h.dtype),
    dies_at_zero=True,
    kernels=("rnn_relu",),
    step_kernels=("rnn_relu_cell",),
)
LINEAR = _elman("linear", lambda a: a, torch.ones_like)
