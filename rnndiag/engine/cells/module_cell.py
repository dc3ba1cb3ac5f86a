"""A user's step module as a cell, called with functional parameters and fixed buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rnndiag.engine.cells.cell import Cell, State, Weights


def module_cell(
    module: nn.Module,
    parts: tuple[str, ...],
    call: Callable[[Callable[..., Any], Tensor, State], State],
    *,
    name: str | None = None,
    buffers: Mapping[str, Tensor] | None = None,
) -> Cell:
    """A cell whose step is one call of `module`.

    call(f, inputs (N, ...), state) -> state hands inputs and state to f as the user did, flattens what comes back
    to one (N, S_p) tensor a part, and leaves outputs out. `buffers` are those of the recorded call; a step never writes
    to the module's own.
    """
    frozen = {
        key: value.clone() for key, value in (buffers or dict(module.named_buffers())).items()
    }

    def run_step(weights: Weights, inputs: Tensor, state: State) -> State:
        def forward(*args: Any, **kwargs: Any) -> Any:
            fresh = {key: _as(value, state[0].dtype) for key, value in frozen.items()}
            return functional_call(module, {**fresh, **weights}, args, kwargs)

        return call(forward, inputs, state)

    return Cell(name=name or type(module).__name__, parts=parts, run_step=run_step)


def _as(buffer: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of a buffer, in the precision of the replay if it is a floating-point one."""
    return buffer.to(dtype, copy=True) if buffer.is_floating_point() else buffer.clone()
