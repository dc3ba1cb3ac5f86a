"""Time, batch and order of sequences: from the kernel's layout to (T, B, ...) in the user's order, and reversal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from rnndiag.recorder.capture.kernels import Plan


def lengths_of(plan: Plan) -> Tensor | None:
    """(B,) in the user's order; None where every sequence has all steps."""
    if plan.batch_sizes is None:
        return None
    sizes = plan.batch_sizes
    count = int(sizes[0])
    lengths = (sizes[:, None] > torch.arange(count)[None, :]).sum(0)
    return lengths if plan.unsorted is None else lengths[plan.unsorted.to(lengths.device)]


def to_steps(plan: Plan, values: Tensor) -> Tensor:
    """Inputs, outputs or their gradients as the kernel has them -> (T, B, F), zeros past a sequence's end."""
    if plan.one_step:
        return values.unsqueeze(0)
    if plan.batch_sizes is not None:
        packed = PackedSequence(values, plan.batch_sizes, None, plan.unsorted)
        return pad_packed_sequence(packed)[0]
    return values.transpose(0, 1) if plan.batch_first else values


def to_user_order(plan: Plan, rows: Tensor) -> Tensor:
    """(B, S) in the kernel's order of sequences -> in the user's."""
    return rows if plan.unsorted is None else rows.index_select(0, plan.unsorted)


def flipped(values: Tensor, lengths: Tensor | None) -> Tensor:
    """(T, B, F) turned around in time, each sequence within its own length. Its own inverse."""
    if lengths is None:
        return values.flip(0)
    steps = torch.arange(len(values), device=values.device)[:, None]
    last = lengths.to(values.device)[None, :] - 1
    index = torch.where(steps <= last, last - steps, steps)
    return values.gather(0, index[..., None].expand_as(values))
