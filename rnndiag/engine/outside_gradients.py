"""Detects gradients of a recurrent weight that do not come from its recurrent calls, such as a penalty in the loss.

The sum law then has a true remainder. A call that was not captured also leaves one, but in every weight of its layer,
biases included, and not in the span of the weight and its sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from rnndiag.engine.layer_run import LayerRun

ENOUGH_ENTRIES = 8
"""Fewest entries of a weight for this test: fewer are fitted by multiples of the weight and its sign by chance."""

WITNESS = {"weight_ih": ("bias_ih",), "weight_hh": ("bias_hh",)}
"""Weight -> biases with the same left factor: if their sum law holds, the adjoints are right."""

_ELSEWHERE = "part of its gradient comes from outside of the recurrent calls"
_PENALTY = f"{_ELSEWHERE}: a multiple of the weight itself, as a penalty on it in the loss gives"
_L1 = f"{_ELSEWHERE}: a multiple of the weight's sign, as an L1 penalty in the loss gives"
_BOTH = (
    f"{_ELSEWHERE}: multiples of the weight and of its sign, as penalties on it in the loss give"
)


def gradients_from_outside(
    runs: Sequence[LayerRun],
    failing: Mapping[str, Tensor],
    passing: Iterable[str],
    left_over: Mapping[str, float],
) -> dict[str, str]:
    """Parameter -> reason, for parameters whose sum law fails because of a gradient from outside of the recurrent
    calls.

    Args:
        runs: The layer runs of the backward pass.
        failing: Parameter -> remainder G − Σ_t g_t, float64.
        passing: The parameters whose sum law holds.
        left_over: Parameter -> rounding of the remainder: a penalty explains the remainder if no more is left without
            it.
    """
    found = {}
    sound = set(passing)
    for name, remainder in failing.items():
        used = [(run, key) for run in runs for key, p in run.parameters.items() if p == name]
        if not used or not bool(remainder.isfinite().all()):
            continue
        run, key = used[0]
        why = _penalty(remainder, run.weights[key], left_over[name])
        if why is None and all(_bias_holds(run, key, sound) for run, key in used):
            why = _ELSEWHERE
        if why is not None:
            found[name] = why
    return found


def _bias_holds(run: LayerRun, key: str, sound: set[str]) -> bool:
    if run.weights[key].dim() < 2:
        return False
    biases = [bias for bias in run.parameters if run.weights[bias].dim() == 1]
    witnesses = WITNESS.get(key, tuple(biases))
    return bool(witnesses) and all(run.parameters.get(bias) in sound for bias in witnesses)


def _penalty(remainder: Tensor, weight: Tensor, left_over: float) -> str | None:
    if weight.numel() < ENOUGH_ENTRIES:
        return None
    rest, value = remainder.double().flatten(), weight.detach().double().flatten()
    for directions, why in (
        ((value,), _PENALTY),
        ((value.sign(),), _L1),
        ((value, value.sign()), _BOTH),
    ):
        basis = torch.stack(directions, 1)
        share = torch.linalg.lstsq(basis, rest[:, None]).solution
        if float((rest - (basis @ share).squeeze(1)).norm()) <= left_over:
            return why
    return None
