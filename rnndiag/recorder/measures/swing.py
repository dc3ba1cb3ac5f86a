"""Whether the model's output depends on its input: the effect on the loss of exchanging states between sequences.

`swing` is the size of that change to first order, Σ_{b,t} |⟨e_{b,t}, h_{π(b),t} − h_{b,t}⟩|, with e the direct gradient
and π the neighbour in the batch. A model with the same output for all inputs has a swing near zero, however far the
loss has fallen: some losses fall because the model learns where the padding is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.measures.measure import GroupCost, Measure, Subject, register_measure
from rnndiag.store.measurement import Measurement


def swing(subject: Subject, run: LayerRun) -> Iterator[Measurement]:
    """Swing of one layer run, and spread and mean of its inputs, which identify saturation caused by large inputs."""
    mask = run.mask()
    yield Measurement.of("swing", np.asarray(float(_swing(run, mask))), run.name)
    if run.inputs.is_floating_point():
        spread, mean = _spread_and_mean(run.inputs, mask)
        yield Measurement.of("input_spread", np.asarray(spread), run.name)
        yield Measurement.of("input_mean", np.asarray(mean), run.name)


def _swing(run: LayerRun, mask: Tensor) -> Tensor:
    """Σ_{b,t} |⟨e, other − own⟩|; a padded neighbour is replaced by its last valid state.

    One sequence at a time: differences of whole batches would take as much memory as the states.
    """
    total = torch.zeros((), device=mask.device)
    for b in range(run.B):
        neighbour, at = _other(run, b)
        change = torch.zeros(run.T, device=mask.device)
        for part, direct in zip(run.states, run.direct, strict=True):
            other = part[:, neighbour].float().index_select(0, at)
            change += (direct[:, b].float() * (other - part[:, b].float())).sum(-1)
        total += change[mask[:, b]].abs().sum()
    return total


def _other(run: LayerRun, b: int) -> tuple[int, Tensor]:
    """The sequence that b is compared with, and at which of its steps (T,)."""
    steps = torch.arange(run.T, device=run.states[0].device)
    if run.B == 1:  # its own states, half a sequence apart
        return 0, (steps - run.T // 2) % run.T
    neighbour = (b - 1) % run.B
    if run.lengths is None:
        return neighbour, steps
    return neighbour, steps.clamp(max=max(0, int(run.lengths[neighbour]) - 1))


def _spread_and_mean(inputs: Tensor, mask: Tensor) -> tuple[float, float]:
    """Root mean square, over the input's entries, of their standard deviation and of their mean over steps and
    sequences."""
    rows = inputs.detach().float()[mask]
    if not len(rows):
        return float("nan"), float("nan")
    variance, mean = torch.var_mean(rows, 0, unbiased=False)
    return float(variance.mean().sqrt()), float(mean.square().mean().sqrt())


SWING = register_measure(Measure("swing", GroupCost(steps=0.1), of_layer=swing, needs_finite=True))
