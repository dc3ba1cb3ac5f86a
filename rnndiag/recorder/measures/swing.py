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
    """Swing of one layer run, and the spread of its inputs, which identifies saturation caused by large inputs."""
    mask = run.mask()
    yield Measurement.of("swing", np.asarray(float(_swing(run, mask))), run.name)
    if run.inputs.is_floating_point():
        yield Measurement.of("input_spread", np.asarray(_spread(run.inputs, mask)), run.name)


def _swing(run: LayerRun, mask: Tensor) -> Tensor:
    """Σ_{b,t} |⟨e, other − own⟩|; a padded neighbour is replaced by its last valid state."""
    states, direct = run.state_vector().float(), torch.cat(run.direct, -1).float()
    if run.B > 1:
        other = states.roll(1, 1)
        if run.lengths is not None:
            last = (run.lengths.to(states.device).roll(1) - 1).clamp(min=0)
            at = torch.arange(run.T, device=states.device)[:, None].minimum(last[None, :])
            other = other.gather(0, at[..., None].expand_as(other))
    else:  # one sequence: its own state, half a sequence apart
        other = states.roll(run.T // 2, 0)
    change = (direct * (other - states)).sum(-1).abs()
    return change.where(mask, torch.zeros_like(change)).sum()


def _spread(inputs: Tensor, mask: Tensor) -> float:
    """Root of the mean variance of the input's entries, over steps and sequences."""
    rows = inputs.detach().float()[mask]
    return float(rows.var(0, unbiased=False).mean().sqrt()) if len(rows) else float("nan")


SWING = register_measure(Measure("swing", GroupCost(steps=0.1), of_layer=swing, needs_finite=True))
