"""Converts the kernel's layout of time, batch and sequence order to (T, B, ...) in the user's order, and reverses
time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from rnndiag.recorder.capture.kernels import Plan


def lengths_of(plan: Plan) -> Tensor | None:
    """(B,) in the user's order; None if every sequence has all steps."""
    if plan.batch_sizes is None:
        return None
    sizes = plan.batch_sizes
    count = int(sizes[0])
    lengths = (sizes[:, None] > torch.arange(count)[None, :]).sum(0)
    return lengths if plan.unsorted is None else lengths[plan.unsorted.to(lengths.device)]


def to_steps(plan: Plan, values: Tensor) -> Tensor:
    """Inputs, outputs or their gradients in the kernel's layout as (T, B, F), zeros after the end of a sequence."""
    if plan.one_step:
        return values.unsqueeze(0)
    if plan.batch_sizes is not None:
        packed = PackedSequence(values, plan.batch_sizes, None, plan.unsorted)
        return pad_packed_sequence(packed)[0]
    return values.transpose(0, 1) if plan.batch_first else values


def to_user_order(plan: Plan, rows: Tensor) -> Tensor:
    """Reorder rows (B, S) from the kernel's order of sequences to the user's."""
    return rows if plan.unsorted is None else rows.index_select(0, plan.unsorted)


def flipped(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse (T, B, F) in time, each sequence within its own length. Its own inverse."""
    if lengths is None:
        return values.flip(0)
    steps = torch.arange(len(values), device=values.device)[:, None]
    last = lengths.to(values.device)[None, :] - 1
    index = torch.where(steps <= last, last - steps, steps)
    return values.gather(0, index[..., None].expand_as(values))


@dataclass(frozen=True)
class Segments:
    """Sequences cut at the resets of their state: every stretch in between is a sequence of its own.

    Sorted by their first step, so that the first B are those that begin at step 0.
    """

    starts: Tensor
    """(N,) first step."""
    rows: Tensor
    """(N,) index of the original sequence."""
    lengths: Tensor
    """(N,) number of steps."""

    @classmethod
    def of(cls, begins: Tensor) -> Segments:
        """From begins (T, B) bool: where a state begins; all do at step 0."""
        steps = len(begins)
        starts, rows = begins.nonzero().unbind(1)
        at = torch.arange(steps, device=begins.device)[:, None]
        coming = torch.where(begins, at, steps).flip(0).cummin(0).values.flip(0)
        after = torch.cat([coming[1:], torch.full_like(coming[:1], steps)])
        return cls(starts, rows, after[starts, rows] - starts)

    def cut(self, values: Tensor) -> Tensor:
        """(T, B, F) -> (longest, N, F), zeros after the end of a segment."""
        starts, rows, lengths = (
            t.to(values.device) for t in (self.starts, self.rows, self.lengths)
        )
        steps = torch.arange(int(self.lengths.max()), device=values.device)[:, None]
        times = (starts + steps).clamp(max=len(values) - 1)
        inside = (steps < lengths)[..., None]
        return torch.where(inside, values[times, rows], values.new_zeros(()))
