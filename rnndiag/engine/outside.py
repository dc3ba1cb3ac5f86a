"""Gradients that reach a recurrent weight by another way than its recurrent calls: a penalty on the weight in the loss.

The sum law then leaves a real remainder. It is told apart from a call that was missed: a missed call leaves a remainder
in every weight of its layer, its biases too, and no remainder of a call is a multiple of the weight itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from rnndiag.engine.layer_run import LayerRun

PARALLEL = 0.999
"""A remainder with at least this cosine to the weight, or to its sign, is a penalty's."""

ENOUGH_ENTRIES = 8
"""Fewer numbers than this are parallel by chance."""

_ELSEWHERE = "part of its gradient comes from outside of the recurrent calls"
_PENALTY = f"{_ELSEWHERE}: a multiple of the weight itself, as a penalty on it in the loss gives"
_L1 = f"{_ELSEWHERE}: a multiple of the weight's sign, as an L1 penalty in the loss gives"


def gradients_from_outside(
    runs: Sequence[LayerRun], failing: Mapping[str, Tensor], passing: Iterable[str]
) -> dict[str, str]:
    """Parameter -> why, of those whose sum law fails for a reason of their own.

    failing: parameter -> remainder G − Σ_t g_t. passing: the parameters whose sum law holds.
    """
    found = {}
    sound = set(passing)
    for name, remainder in failing.items():
        used = [(run, key) for run in runs for key, p in run.parameters.items() if p == name]
        if not used or not bool(remainder.isfinite().all()):
            continue
        run, key = used[0]
        why = _parallel(remainder, run.weights[key])
        if why is None and all(_bias_holds(run, sound) for run, _ in used):
            why = _ELSEWHERE
        if why is not None:
            found[name] = why
    return found


def _bias_holds(run: LayerRun, sound: set[str]) -> bool:
    biases = [name for key, name in run.parameters.items() if run.weights[key].dim() == 1]
    return any(name in sound for name in biases)


def _parallel(remainder: Tensor, weight: Tensor) -> str | None:
    if weight.numel() < ENOUGH_ENTRIES:
        return None
    for direction, why in ((weight, _PENALTY), (weight.sign(), _L1)):
        cosine = torch.nn.functional.cosine_similarity(
            remainder.double().flatten(), direction.double().flatten(), dim=0
        )
        if float(cosine.abs()) >= PARALLEL:
            return why
    return None
