"""Memory limit of the measures of one recording, and the number of sequences that fit into it.

Measures run after a backward pass, when the activations that autograd kept and their gradients are free again. They may
use that much and a margin beyond it. The need of a measure is known only after it has run, so it is estimated as a
multiple of what autograd keeps for the layer: the multiples are the largest that torch's profiler showed for RNN, GRU
and LSTM at T from 50 to 200, 16 to 64 sequences and 32 to 128 units.
"""

from __future__ import annotations

from collections.abc import Iterable

from rnndiag.engine.adjoints import Adjoints
from rnndiag.engine.layer_run import LayerRun
from rnndiag.errors import NotSupported

FREED = 2.0
"""Bytes freed by a backward pass over what autograd kept: the activations and about as much in their gradients."""
MARGIN = 0.25
"""Default margin beyond the freed bytes, as a share of what autograd kept."""
LEAST_BYTES = 64 * 2**20
"""Least margin beyond the freed bytes."""

CONTRIBUTIONS, SWEEP, SCORES = 5.3, 9.0, 14.0
"""Peak memory of contributions with their proof, a lag sweep and scored estimators, over what autograd kept."""


def kept_by_autograd(runs: tuple[LayerRun, ...]) -> float:
    """Bytes of inputs, gates and states of all steps: approximately what autograd keeps for the layers."""
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
    """Rows of the recurrent weights: number of activations per step."""
    return int(run.weights["weight_hh"].shape[0]) if "weight_hh" in run.weights else run.S


def allowed(
    runs: tuple[LayerRun, ...], max_memory: float | None, held: Iterable[Adjoints] = ()
) -> float:
    """Bytes that the measures of these layers may take.

    Args:
        runs: All layer runs of the backward pass.
        max_memory: What they may take beyond what the backward pass has freed; None: the default.
        held: Adjoints kept for all measures, which take up part of the freed bytes.
    """
    kept = kept_by_autograd(runs)
    margin = max(LEAST_BYTES, MARGIN * kept) if max_memory is None else max_memory
    return max(0.0, FREED * kept - sum(map(_bytes_of, held))) + margin


def _bytes_of(adj: Adjoints) -> int:
    """Bytes of the adjoints and of the gradients at the gates."""
    tensors = {id(part): part for part in (*adj.parts, adj.a_ih, adj.a_hh, adj.projected)}
    return sum(part.nbytes for part in tensors.values() if part is not None)


def refuse_contributions(runs: tuple[LayerRun, ...], max_memory: float | None) -> None:
    """Raise NotSupported if contributions need more than the user's limit. They need all sequences."""
    need, limit = CONTRIBUTIONS * kept_by_autograd(runs), allowed(runs, max_memory)
    if max_memory is not None and need > limit:
        raise NotSupported(
            f"contributions and their proof take about {_mb(need)}, and max_memory allows {_mb(limit)}",
            "Give a larger max_memory, or smaller batches.",
        )


def sequences_that_fit(
    what: str, times: float, runs: tuple[LayerRun, ...], limit: float, most: int
) -> int:
    """The largest number of sequences, up to `most`, that a measure of these layers may use.

    Args:
        what: The measure, for the message.
        times: What it takes of all sequences, over what autograd kept for the layers.
        runs: The layers that it uses, of one batch.
        limit: Bytes that it may take.
        most: Number of sequences that it would use.

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
