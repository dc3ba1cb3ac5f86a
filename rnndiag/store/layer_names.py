"""Parses the names of layer runs: the recurrence, the number of the call, and whether it is a stack cut as one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rnndiag.store.quantities import MODEL

STACK = ".."
"""Separator between the first and the last layer of a stack: `lstm.l0..l1`. Module names cannot contain it."""

_NUMBER = re.compile(r"[#@]\d+")


def recurrence(name: str) -> str:
    """The name without the number of the call or of the backward pass: `rnn.l0#3@2` is a run of `rnn.l0`."""
    return _NUMBER.sub("", name)


def is_stack(name: str) -> bool:
    """Whether the name stands for several layers."""
    return STACK in name


def stack_name(names: Sequence[str]) -> str:
    """`lstm.l0#2`, `lstm.l1#2` -> `lstm.l0..l1#2`; of several modules `first.l0..second.l0`."""
    first, last = recurrence(names[0]), recurrence(names[-1])
    owner = first.rpartition(".")[0]
    if owner and owner == last.rpartition(".")[0]:
        last = last.removeprefix(f"{owner}.")
    return f"{first}{STACK}{last}{names[0].removeprefix(first)}"


def layers_among(names: Iterable[str]) -> tuple[str, ...]:
    """The names of single layer runs, without repeats: neither the whole model nor stacks."""
    return tuple(dict.fromkeys(name for name in names if name != MODEL and not is_stack(name)))
