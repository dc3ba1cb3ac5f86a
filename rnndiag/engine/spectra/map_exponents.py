"""Lyapunov exponents of any differentiable step function, treated as a cell without inputs or weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rnndiag.engine.cells import Cell, State, Weights
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.spectra.lyapunov import Lyapunov, lyapunov
from rnndiag.errors import BadArgument

Step = Callable[[Tensor], Tensor]


def lyapunov_of_map(
    step: Step,
    x0: Tensor | float,
    steps: int,
    k: int | None = None,
    warmup: int | None = None,
    interval: int | None = None,
    *,
    dt: float = 1.0,
    blocks: int = 10,
    dtype: torch.dtype = torch.float64,
) -> Lyapunov:
    """The Lyapunov exponents of x -> step(x).

    Args:
        step: Next state from a state: (S,) for x0 of (S,), or a batch (B, S) whose rows are independent for x0 of (B,
            S).
        x0: First state, (S,), (B, S) or a number.
        steps: Number of counted steps.
        k: Number of exponents. Default: all S.
        warmup: Steps before the counted ones. Default: a tenth of `steps`, 100 at most.
        interval: Steps between two QRs. Default: by the condition of the frame.
        dt: Time that one step takes (of a flow's integrator); exponents are per unit of time.
        blocks: Number of pieces of time for the standard error over time.
        dtype: Precision of the computation.

    Returns:
        `exponents` (k,), descending, in natural logarithms per unit of time, with standard errors.

    Raises:
        BadArgument: `step` does not map x0's shape to itself, mixes rows, or leaves the finite numbers.

    Example:
        >>> found = rnndiag.lyapunov_of_map(lambda x: 4 * x * (1 - x), 0.3, steps=2000)  # logistic map: ln 2
        >>> abs(float(found.exponents[0]) - 0.693) < 0.01
        True
    """
    start = torch.as_tensor(x0).detach().to(dtype)
    single = start.dim() < 2
    start = torch.atleast_1d(start)
    batch = start[None] if single else start
    if not steps >= 1 or not dt > 0 or batch.dim() != 2 or batch.numel() == 0:
        raise BadArgument(
            f"steps = {steps}, dt = {dt} and an x0 of shape {tuple(start.shape)} make no trajectory.",
            "Give steps >= 1, dt > 0 and x0 of shape (S,) or (B, S), not empty.",
        )
    _check_step(step, start)
    warmup = min(100, steps // 10) if warmup is None else warmup
    states = [start]
    with torch.no_grad():
        for _ in range(steps + warmup):
            states.append(step(states[-1]))
    trajectory = torch.stack(states)
    _still_finite(trajectory)
    batched = _for_rows(step, start) if single else step
    run = _as_run(batched, trajectory.unsqueeze(1) if single else trajectory)
    result = lyapunov(run, k, warmup, interval, blocks=blocks, dtype=dtype)
    return result if dt == 1.0 else _per_time(result, dt)


def _check_step(step: Step, start: Tensor) -> None:
    """Raise if a step does not return the shape of its argument, or mixes rows of the batch."""
    with torch.no_grad():
        after: object = step(start)
    if not isinstance(after, Tensor) or after.shape != start.shape:
        got = tuple(after.shape) if isinstance(after, Tensor) else type(after).__name__
        raise BadArgument(
            f"step(x) gives {got} for an x of shape {tuple(start.shape)}.",
            "It must give the next state in the shape that it takes.",
        )
    if start.dim() == 2:
        with torch.no_grad():
            alone = torch.cat([step(row[None]) for row in start])
        if not torch.allclose(after, alone, rtol=1e-6, atol=0.0, equal_nan=True):
            raise BadArgument(
                "step(x) gives a row another value in a batch than alone: the rows are not trajectories of their own.",
                "Write step for a batch (B, S), as x[:, 0] instead of x[0], or give one state (S,).",
            )


def _still_finite(trajectory: Tensor) -> None:
    broken = (~trajectory.isfinite()).flatten(1).any(1).nonzero()
    if len(broken):
        raise BadArgument(
            f"The trajectory has left the finite numbers after step {int(broken[0])}.",
            "Start where it stays bounded, or take smaller steps of a flow.",
        )


def _for_rows(step: Step, start: Tensor) -> Step:
    """A step of one state (S,) as one of a batch (N, S): by vmap, or row by row if it branches on the state."""
    batched = torch.func.vmap(step)
    try:
        batched(start[None])
    except RuntimeError:
        return lambda rows: torch.stack([step(row) for row in rows])
    return batched


def _as_run(step: Step, trajectory: Tensor) -> LayerRun:
    """A trajectory (T + 1, B, S) of a batched `step` as a layer run."""

    def run_step(weights: Weights, inputs: Tensor, state: State) -> State:
        return (step(state[0]),)

    states = trajectory[1:]
    return LayerRun(
        name="map",
        cell=Cell(name="map", parts=("x",), run_step=run_step),
        weights={},
        inputs=states.new_zeros(*states.shape[:2], 0),
        states=(states,),
        initial=(trajectory[0],),
        direct=(torch.zeros_like(states),),
        tie="given",
    )


def _per_time(result: Lyapunov, dt: float) -> Lyapunov:
    return replace(
        result,
        exponents=result.exponents / dt,
        se_sequences=result.se_sequences / dt,
        se_blocks=result.se_blocks / dt,
        by_sequence=result.by_sequence / dt,
        log_det_residual=result.log_det_residual / dt,
        interval_error=result.interval_error / dt,
    )
