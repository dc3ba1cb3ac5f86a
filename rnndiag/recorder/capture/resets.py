"""Assembles a recurrence whose sequences were reset between calls from the stretches between resets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnndiag.recorder.capture.call import Call, StateLink
from rnndiag.recorder.capture.chains import Chain
from rnndiag.recorder.capture.layout import Segments

ROOM = 2**26
"""Most numbers that one state part may take after padding, or ..."""
SPARSE = 8
"""... this many times its size before: short stretches are padded to the longest one."""

_TOLD = (
    "its state is reset within the {} sequences of the batch, which makes {} sequences of at most {} steps, "
    "in the order in which they begin: a time step counts from the last reset"
)


def unless_scattered(chain: Chain) -> tuple[Chain, ...]:
    """The chain; split into single calls if the stretches between resets would take too much memory when padded."""
    found = segments_of(chain)
    if found is None:
        return (chain,)
    rows = len(found.lengths) * int(found.lengths.max())
    before = int(found.lengths.sum())
    if rows <= SPARSE * before or rows * chain[0].hx[0].shape[-1] <= ROOM:
        return (chain,)
    return tuple((call,) for call in chain)


def segments_of(chain: Chain) -> Segments | None:
    """The stretches between resets; None if no sequence was reset."""
    carried = [_carried(call) for call in chain[1:]]
    if all(rows is None or bool(rows.all()) for rows in carried):
        return None
    count = next(len(rows) for rows in carried if rows is not None)
    begins = torch.zeros(sum(call.steps for call in chain), count, dtype=torch.bool)
    begins[0] = True
    for step, rows in zip(_first_steps(chain)[1:], carried, strict=True):
        if rows is not None:
            begins[step] = ~rows
    return Segments.of(begins)


def told(chain: Chain) -> str:
    """A sentence on the run's sequences for the user; empty if no sequence was reset."""
    found = segments_of(chain)
    if found is None:
        return ""
    whole = int((found.starts == 0).sum())
    return _TOLD.format(whole, len(found.lengths), int(found.lengths.max()))


def kinds_of_reset(chain: Chain) -> set[str]:
    """zero | given | learnt: the states that sequences were reset to."""
    return {link.begins for call in chain[1:] for link in call.links.values() if link.begins}


def sent_back(gradient: Tensor, link: StateLink) -> Tensor:
    """The part of a state's gradient, (B, S) or (layers, B, S), that reached the final state it came from."""
    if link.carried is None:
        return gradient
    rows = link.carried.to(gradient.device)[:, None]
    return torch.where(rows, gradient, gradient.new_zeros(()))


def at_starts(
    chain: Chain, segments: Segments | None, rows: Sequence[Tensor | None]
) -> Tensor | None:
    """(N, S) the initial values of all sequences, from one (B, S) per call; None if it is missing for a call that
    starts one."""
    if segments is None:
        return rows[0]
    starts = set(segments.starts.tolist())
    beginning = [
        (step, row) for step, row in zip(_first_steps(chain), rows, strict=True) if step in starts
    ]
    kept = [row for _, row in beginning if row is not None]
    if len(kept) < len(beginning):
        return None
    which = torch.searchsorted(torch.tensor([step for step, _ in beginning]), segments.starts)
    stacked = torch.stack(kept)
    return stacked[which.to(stacked.device), segments.rows.to(stacked.device)]


def at_ends(chain: Chain, finals: Sequence[Tensor | None]) -> Tensor:
    """(T, B, S): gradients of the calls' final states, (B, S) each, placed at the calls' last steps."""
    like = next(final for final in finals if final is not None)
    whole = like.new_zeros(sum(call.steps for call in chain), *like.shape)
    for step, call, final in zip(_first_steps(chain), chain, finals, strict=True):
        if final is not None:
            whole[step + call.steps - 1] = final
    return whole


def _carried(call: Call) -> Tensor | None:
    return next((link.carried for link in call.links.values()), None)


def _first_steps(chain: Chain) -> list[int]:
    found, step = [], 0
    for call in chain:
        found.append(step)
        step += call.steps
    return found
