"""Marks: the places of an autograd graph at which the state of a loop is carried from one step to the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

Edge = tuple[Any, int]
"""A node of the graph, and the number of its output."""
Gradients = list[Tensor | None]
RunBackward = Callable[..., tuple[Tensor | None, ...]]
"""The entry of the autograd engine, `torch.autograd._engine_run_backward`."""

LEAF = 2**63
"""Nodes with this sequence number or a larger one are leaves."""


def sequence_number(node: Any) -> int:
    """Position of a node in the order of creation within its thread; leaves come last."""
    return int(node._sequence_nr())


def graph_behind(starts: Iterable[Any], oldest: int = 0) -> Iterator[Any]:
    """The nodes of a graph from `starts` on, leaves too, nearest first; none that was made before `oldest`."""
    seen: set[Any] = set()
    waiting = deque(starts)
    while waiting:
        node = waiting.popleft()
        if node is None or node in seen or sequence_number(node) < oldest:
            continue
        seen.add(node)
        yield node
        waiting.extend(child for child, _ in node.next_functions)


def edge_of(root: Any) -> Edge:
    """The edge of a tensor or GradientEdge that is differentiated."""
    return (
        (root.grad_fn, root.output_nr) if isinstance(root, Tensor) else (root.node, root.output_nr)
    )


def batch_rows(gradient: Tensor) -> Tensor:
    """(B, ...) -> (B, S). A vector or a number is one sample."""
    return gradient.flatten(1) if gradient.dim() > 1 else gradient.reshape(1, -1)


@dataclass(eq=False)
class Mark:
    """One part of the state after one step: an edge of the graph that all later steps go through.

    The edge's node must be used by nothing but what comes after the step, so that what arrives there is the gradient
    from later steps and from the loss alone. `unused_alias` makes such a node.
    """

    edge: GradientEdge
    root: Tensor
    """A tensor computed from the marked one and unused otherwise: a backward pass from it starts at the mark."""
    part: str = "h"
    rows: Callable[[Tensor], Tensor] = batch_rows
    """Converts the gradient to (B, S). Marks of one step with the same `part` are added up."""
    time: int = 0
    """The step, 0 .. T-1."""

    @classmethod
    def on(
        cls, tensor: Tensor, part: str = "h", rows: Callable[[Tensor], Tensor] = batch_rows
    ) -> Mark:
        """Mark a tensor that a step returned and that is only used outside of the step."""
        with torch.enable_grad():
            root = alias(tensor)
        return cls(get_gradient_edge(tensor), root, part, rows)

    @property
    def place(self) -> Edge:
        """Node and output number."""
        return self.edge.node, self.edge.output_nr

    @property
    def number(self) -> int:
        """The sequence number of its node."""
        return sequence_number(self.edge.node)


def alias(tensor: Tensor) -> Tensor:
    """The same values with a new graph node.

    Not a view for autograd: a write in place would recreate the graph of a view and lose the node.
    """
    own: Tensor = torch.ops.aten._unsafe_view(tensor, tensor.shape)
    return own


def stand_in(tensor: Tensor) -> Tensor:
    """An alias given to the user in place of a tensor; hooks put on it are installed on the tensor itself.

    There they see the same gradient as without the recorder: the sum over all users of the tensor.
    """
    own = alias(tensor)
    own.register_hook = tensor.register_hook  # type: ignore[method-assign]
    own._rnndiag_source = tensor  # type: ignore[attr-defined]
    return own


def has_hook(tensor: Tensor) -> bool:
    """Whether a hook was put on a non-leaf tensor, or on the tensor that it replaces."""
    source = getattr(tensor, "_rnndiag_source", None)
    own = bool(tensor._backward_hooks) and not tensor.is_leaf
    return own or (source is not None and has_hook(source))


@dataclass
class CutGraph:
    """Backward passes over a graph that can be cut at marks. Nothing is accumulated, and the graph is preserved.

    Within `with cut.hooked():` each mark's node has a pre-hook, which runs after the hooks that users put on the marked
    tensor.
    """

    marks: Sequence[Mark]
    parameters: Sequence[Tensor]
    run_backward: RunBackward
    zeros: bool = False
    """Whether marks without a seed send zeros, which users' hooks need; else they send no gradient, which saves
    work."""
    _before_cut: dict[int, Tensor] = field(default_factory=dict)
    _seeds: Mapping[int, Tensor | None] | None = None
    _pass_on: bool = False
    _adds: bool = False
    _slots: dict[Any, list[tuple[int, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, mark in enumerate(self.marks):
            node, number = mark.place
            self._slots.setdefault(node, []).append((number, key))

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Install the pre-hooks inside."""
        handles = [
            node.register_prehook(self._prehook(slots)) for node, slots in self._slots.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _prehook(self, slots: list[tuple[int, int]]) -> Callable[[Any], Any]:
        """A pre-hook of a node that stores what arrives at its marks, and replaces it by what they send."""

        def replace(arrived: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
            for number, key in slots:
                value = arrived[number]
                if value is not None:
                    self._before_cut[key] = value.detach()
            if self._seeds is None:
                return None
            sent = list(arrived)
            for number, key in slots:
                here = arrived[number]
                if here is None:  # the engine takes no gradient where none arrived
                    continue
                seed = self._seeds.get(key)
                if self._adds:
                    sent[number] = here if seed is None else here + seed
                    continue
                if seed is None:
                    sent[number] = torch.zeros_like(here) if self.zeros else None
                else:
                    sent[number] = here + seed if self._pass_on else seed
            return tuple(sent)

        return replace

    def whole(self, roots: Sequence[Tensor], given: Sequence[Tensor | None]) -> _Pulled:
        """An ordinary backward pass: gradients of the parameters, and of the marks."""
        return self._run(roots, given, None)

    def from_loss(self, roots: Sequence[Tensor], given: Sequence[Tensor | None]) -> _Pulled:
        """A backward pass cut at every mark: gradients that reach the marks without passing another mark."""
        return self._run(roots, given, {})

    def from_marks(self, seeds: Mapping[int, Tensor], pass_on: bool = False) -> _Pulled:
        """One backward pass that starts at the marks in `seeds` and ends at the next marks behind them.

        seeds: mark -> the gradient that it sends, whatever arrives there. pass_on: seeded marks also send what arrives
        from other seeded ones; the gradients that arrive at them are then not valid.
        """
        keys = list(seeds)
        roots = [self.marks[key].root for key in keys]
        zeros = [root.new_zeros(()).expand(root.shape) for root in roots]
        return self._run(roots, zeros, seeds, pass_on)

    def all_the_way(self, seeds: Mapping[int, Tensor]) -> _Pulled:
        """One backward pass from the seeded marks that is not cut: the sum over all further steps back.

        If seeded marks lead to others, the seeds are added to what arrives there.
        """
        self._adds = True
        try:
            return self.from_marks(seeds)
        finally:
            self._adds = False

    def _run(
        self,
        roots: Sequence[Tensor],
        given: Sequence[Tensor | None],
        seeds: Mapping[int, Tensor] | None,
        pass_on: bool = False,
    ) -> _Pulled:
        """One backward pass; `seeds` as in `from_marks`, {} cuts at every mark and None at no mark."""
        self._seeds, self._pass_on = seeds, pass_on
        self._before_cut.clear()
        inputs = (*self.parameters, *(mark.edge for mark in self.marks))
        try:
            found = self.run_backward(
                tuple(roots),
                tuple(given),
                True,
                False,
                inputs,
                allow_unreachable=True,
                accumulate_grad=False,
            )
        finally:
            self._seeds = None
        count = len(self.parameters)
        # the engine returns gradients as they were before users' hooks, unless the node itself did not have to run
        arrived = {
            key: self._before_cut.get(key, gradient).detach()
            for key, gradient in enumerate(found[count:])
            if gradient is not None
        }
        gradients = [None if value is None else value.detach() for value in found[:count]]
        return _Pulled(gradients, arrived)


@dataclass(frozen=True)
class _Pulled:
    """Result of one backward pass."""

    gradients: Gradients
    """By parameter; None: no gradient reached it."""
    arrived: dict[int, Tensor]
    """Mark -> the gradient that arrived there, after the user's hooks."""
