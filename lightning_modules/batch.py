"""What a task hands to a program."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

IGNORED = -100
"""The target of a step that has no loss: padding, or a step at which nothing is asked."""


class Batch(NamedTuple):
    """One minibatch, time first. T steps, B sequences.

    inputs: token ids (T, B), numbers (T, B, I) or pictures (B, 1, height, width).
    targets: token ids (T, B) or (B,), IGNORED where nothing is asked, or numbers (T, B, O) or (B, O).
    lengths: (B,), how many of the T input steps each sequence has; None: all of them.
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor | None = None
