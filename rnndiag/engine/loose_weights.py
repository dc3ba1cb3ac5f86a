"""Contributions to weights that enter a step in any way: one VJP a step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.transition import pulled_back, step


def by_vjp(
    run: LayerRun, keys: tuple[str, ...], delta: State, times: Tensor | None = None
) -> dict[str, Tensor]:
    """g_t of `keys` for all steps, or those of `times`, (T, *shape) a key: all steps in one vmap, or one by one where a
    user's module cannot be mapped: it branches on a tensor, writes in place, or has an autograd.Function of its own.
    """
    previous, inputs = run.previous(), run.inputs.detach()
    if times is not None:
        previous, delta = tuple(p[times] for p in previous), tuple(p[times] for p in delta)
        inputs = inputs[times]
    chosen = {key: run.weights[key].detach() for key in keys}
    fixed = {key: value.detach() for key, value in run.weights.items() if key not in chosen}

    def one(x: Tensor, before: State, cotangent: State) -> dict[str, Tensor]:
        def forward(weights: Mapping[str, Tensor]) -> State:
            return step(run.cell, {**fixed, **weights}, x, before)

        pull = torch.func.vjp(forward, chosen)[1]
        (grads,) = pull(cotangent)
        return dict(grads)

    if run.cell.run_step is None:
        return dict(torch.vmap(one)(inputs, previous, delta))
    try:
        return dict(torch.vmap(one)(inputs, previous, delta))
    except (RuntimeError, ValueError, NotImplementedError):
        rows = [
            _one_by_one(run, {**fixed, **chosen}, keys, *step_of)
            for step_of in zip(
                inputs, zip(*previous, strict=True), zip(*delta, strict=True), strict=True
            )
        ]
    return {key: torch.stack(each) for key, each in zip(keys, zip(*rows, strict=True), strict=True)}


def _one_by_one(
    run: LayerRun,
    weights: Mapping[str, Tensor],
    keys: tuple[str, ...],
    x: Tensor,
    before: State,
    cotangent: State,
) -> State:
    with torch.enable_grad():
        leaves = {key: weights[key].detach().requires_grad_() for key in keys}
        out = step(run.cell, {**weights, **leaves}, x, before)
        return pulled_back(out, cotangent, tuple(leaves.values()))
