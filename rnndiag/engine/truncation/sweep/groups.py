"""How many groups of sequences are kept apart: the systematic part and the noise are told from their differences."""

from __future__ import annotations

from torch import Tensor

from rnndiag.engine.truncation.sweep.parameter_layout import ParameterLayout

BUFFER_BYTES = 512 * 2**20
"""The gradients of groups of sequences take at most this much."""
GROUPS = 8
"""Groups of sequences that are kept apart where sequences were sampled, and where the tails of all of them would take
more than `APART_BYTES`."""
APART_BYTES = 2**20


def group_count(layout: ParameterLayout, sequences: int, like: Tensor, most: int) -> int:
    """Groups of equal numbers of sequences whose gradients are kept apart: `most`, or as many as memory allows."""
    one = 4 * layout.P * like.element_size()
    fitting = min(max(1, BUFFER_BYTES // max(1, one)), most)
    return max(k for k in range(1, sequences + 1) if sequences % k == 0 and k <= max(fitting, 1))


def few_groups(by_sequence: Tensor) -> int:
    """How many groups of sequences a ledger of tails keeps apart, of the gradients (M, P)."""
    groups = len(by_sequence)
    if by_sequence.numel() * by_sequence.element_size() <= APART_BYTES:
        return groups
    return max(k for k in range(1, groups + 1) if groups % k == 0 and k <= GROUPS)


def regrouped(gradients: Tensor, groups: int) -> Tensor:
    """(M, P) -> (groups, P): sums of neighbours."""
    return gradients if len(gradients) == groups else gradients.unflatten(0, (groups, -1)).sum(1)
