"""A program that loops over a state, written as one step on a dict of tensors, and the list of them.

`Program.window` is the reference: the gradient of a truncation window, by detaching the state by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

B, N, H = 3, 2, 4
"""Samples, inputs and units."""

State = dict[str, Any]


class Program(nn.Module):
    """One step as a function of the state, and the loop over it.

    `watched` is the module whose outputs are the state, or several joined by `+`; None where `carry` marks it.
    """

    T = 10
    watched: str | None = "cell"
    at_end = False
    """Whether only the last step has a loss."""
    steps: tuple[str, ...] = ()
    """Modules to be named to the recorder."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.x, self.y = (torch.randn(self.T, B, n, generator=draw) for n in (N, 1))
        self.keeps = (torch.rand(self.T, B, 1, generator=draw) < 0.7).to(self.x)
        self.masks = (torch.rand(self.T, B, H, generator=draw) < 0.7).to(self.x) / 0.7
        self.build()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(1.5)

    def build(self) -> None:
        """The modules."""
        self.cell, self.head = nn.GRUCell(N, H), nn.Linear(H, 1)

    def start(self) -> State:
        """The first state."""
        return {"h": torch.zeros(B, H)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        """The next state, and what the loss of this step reads."""
        raise NotImplementedError

    def run(self, cut: int | None = None, only: int | None = None, carry: Any = None) -> Tensor:
        """The loss; with `only`, that of one step, with the state detached so that it reaches `cut` steps."""
        torch.default_generator.manual_seed(1)  # the same draws in every run
        state, total = self.start(), torch.zeros(())
        last = self.T - 1 if only is None else only
        for t in range(last + 1):
            if cut is not None and t == last - cut + 1:
                state = {name: _detached(part) for name, part in state.items()}
            if carry is not None:
                state = carry(state, name="loop")
            state, read = self.step(t, state)
            if t == last or (only is None and not self.at_end):
                total = total + (read - self.y[t]).square().mean()
        return total

    def window(self, width: int, parameters: list[Tensor]) -> Tensor:
        """The gradient of a window of so many steps."""
        total = [torch.zeros_like(value) for value in parameters]
        whole = [self.run()] if width == self.T else None
        cut = (self.run(width, t) for t in range(self.T - 1 if self.at_end else 0, self.T))
        for loss in whole or cut:
            if loss.requires_grad:
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                total = [a if g is None else a + g for a, g in zip(total, found, strict=True)]
        return torch.cat([_real(value).flatten() for value in total])

    def adjoint_norms(self) -> list[float]:
        """Mean over samples of |dL/ds_t| by step, from a run in which the state at t is a leaf."""
        norms = []
        for t in range(self.T):
            leaves: list[Tensor] = []
            with _leaf_at(self, t, leaves) as carry:
                loss = self.run(carry=carry)
            found = torch.autograd.grad(loss, leaves, allow_unused=True) if leaves else ()
            rows = [_real(g).reshape(B, -1) for g in found if g is not None]
            size = torch.cat(rows, 1).norm(dim=1).mean() if rows else torch.zeros(())
            norms.append(float(size))
        return norms


def _detached(part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(map(_detached, part))
    return part.detach() if isinstance(part, Tensor) else part


def _real(value: Tensor) -> Tensor:
    return torch.view_as_real(value) if value.is_complex() else value


@contextmanager
def _leaf_at(program: Program, t: int, leaves: list[Tensor]) -> Iterator[Any]:
    """Put leaves in the place of the state that the t-th call returns; for programs with `carry`, gets."""

    def leaf(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: leaf(part) for key, part in value.items()}
        if isinstance(value, tuple):
            return tuple(map(leaf, value))
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        same = [known for known, old in made if old is value]
        if not same:
            made.append((value.detach().clone().requires_grad_(), value))
            leaves.append(made[-1][0])
            same = [made[-1][0]]
        return same[0]

    made: list[tuple[Tensor, Tensor]] = []
    if program.watched is None:
        calls = count()
        yield lambda state, name: leaf(state) if next(calls) == t else state
        return
    handles = []
    for name in program.watched.split("+"):
        own = count()
        handles.append(
            program.get_submodule(name).register_forward_hook(
                lambda _module, _given, output, own=own: leaf(output) if next(own) == t else None
            )
        )
    yield None
    for handle in handles:
        handle.remove()


PROGRAMS: dict[str, Callable[[], Program]] = {}


def listed(program: type[Program]) -> type[Program]:
    """Enter a program in the list."""
    PROGRAMS[program.__name__] = program
    return program
