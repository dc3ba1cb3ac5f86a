"""How much memory the measures of one recording may take, and how many sequences fit into it.

Measures run after a backward pass, when the activations that autograd kept and their gradients are free again. They may
use that much and a margin beyond it. What a measure needs is known only when it has run, so it is estimated as a
multiple of what autograd keeps for the layer: the multiples are the largest that torch's profiler showed for RNN, GRU
and LSTM at T from 50 to 200, 16 to 64 sequences and 32 to 128 units.
"""

from __future__ import annotations

from rnndiag.engine.layer_run import LayerRun
from rnndiag.errors import NotSupported

FREED = 2.0
"""A backward pass frees what autograd kept, and about as much again in gradients of it."""
MARGIN = 0.25
"""By default, the share of what autograd kept by which a recording may exceed that."""
LEAST_BYTES = 64 * 2**20
"""And the bytes that it may always take beyond it."""

CONTRIBUTIONS, SWEEP, SCORES = 5.3, 9.0, 14.0
"""Peak of contributions with their proof, of a lag sweep and of scored estimators, over what autograd kept."""


def kept_by_autograd(runs: tuple[LayerRun, ...]) -> float:
    """Bytes of inputs, gates and states of all steps: about what autograd keeps for the layers."""
    return float(
        sum(
            run.T
            * run.B
            * (_gates(run) + run.S + run.inputs.shape[-1])
            * run.states[0].element_size()
            for run in runs
        )
    )


def _gates(run: LayerRun) -> int:
    """Rows of the recurrent weights: one activation each at every step."""
    return int(run.weights["weight_hh"].shape[0]) if "weight_hh" in run.weights else run.S


def allowed(runs: tuple[LayerRun, ...], max_memory: float | None) -> float:
    """Bytes that the measures of these layers may take.

    Args:
        runs: All layer runs of the backward pass.
        max_memory: What they may take beyond what the backward pass has freed; None: the default.
    """
    kept = kept_by_autograd(runs)
    margin = max(LEAST_BYTES, MARGIN * kept) if max_memory is None else max_memory
    return FREED * kept + margin


def refuse_contributions(runs: tuple[LayerRun, ...], max_memory: float | None) -> None:
    """Raise NotSupported where contributions need more than a person allowed. They cannot look at fewer sequences."""
    need, limit = CONTRIBUTIONS * kept_by_autograd(runs), allowed(runs, max_memory)
    if max_memory is not None and need > limit:
        raise NotSupported(
            f"contributions and their proof take about {_mb(need)}, and max_memory allows {_mb(limit)}",
            "Give a larger max_memory, or smaller batches.",
        )


def sequences_that_fit(
    what: str, times: float, runs: tuple[LayerRun, ...], limit: float, most: int
) -> int:
    """How many of `most` sequences a measure of these layers may look at.

    Args:
        what: The measure, for the message.
        times: What it takes of all sequences, over what autograd kept for the layers.
        runs: The layers that it looks at, of one batch.
        limit: Bytes that it may take.
        most: As many as it would look at.

    Raises:
        NotSupported: Not even one fits.
    """
    need = times * kept_by_autograd(runs) / runs[0].B
    if need > limit:
        raise NotSupported(
            f"{what} of one sequence takes about {_mb(need)}, and max_memory allows {_mb(limit)}",
            "Give a larger max_memory, or shorter sequences.",
        )
    return min(most, int(limit / need)) if need > 0 else most


def _mb(count: float) -> str:
    return f"{count / 2**20:.3g} MB"
