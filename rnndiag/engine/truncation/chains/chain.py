"""A chain: the recurrence that is truncated, one layer or a stack of layers cut at the same time step.

The state of a chain is all layers' states together, lower layers first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.transition import (
    Coefficients,
    coefficients,
    gates,
)
from rnndiag.engine.truncation.sweep.row_steps import Where, take

DIAGONAL_BYTES = 2**30
"""Up to this many bytes the diagonal derivatives of all steps are kept; beyond, every step back computes them."""


@dataclass(frozen=True)
class ChainLink:
    """One layer of a chain."""

    run: LayerRun
    direct: State
    """e_t of the chain: the loss's gradient of the state at t, without the part through upper layers of the chain."""
    gain: Tensor | None = None
    """dx_t/dh_t of the layer below (T, B, I): a dropout mask; None for the lowest layer."""
    previous: State = ()
    diagonal: Coefficients | None = None

    @property
    def elementwise(self) -> bool:
        """Whether the diagonal fast path holds."""
        return self.run.cell.is_elementwise(self.run.weights)

    def at(self, where: Where) -> Coefficients:
        """The diagonal derivatives at the rows `where`."""
        if self.diagonal is not None:
            return pick(self.diagonal, where)
        rows = replace(self.run, inputs=take(self.run.inputs, where), gates=None)
        before = tuple(take(part, where) for part in self.previous)
        return coefficients(rows, previous=before, nested=True)


@dataclass(frozen=True)
class Chain:
    """Layers that are truncated together, lower ones first."""

    links: tuple[ChainLink, ...]

    @property
    def T(self) -> int:
        """Number of time steps."""
        return self.links[0].run.T

    @property
    def B(self) -> int:
        """Number of sequences."""
        return self.links[0].run.B

    @property
    def sizes(self) -> tuple[int, ...]:
        """Size of every part of the state, all layers."""
        return tuple(size for link in self.links for size in link.run.sizes)

    @property
    def direct(self) -> State:
        """e_t of every part of the state, all layers."""
        return tuple(part for link in self.links for part in link.direct)

    @property
    def name(self) -> str:
        """Name of the layer, or of the stack's layers."""
        return " + ".join(link.run.name for link in self.links)

    @property
    def is_stack(self) -> bool:
        """Whether several layers are cut together."""
        return len(self.links) > 1

    @property
    def independent(self) -> bool:
        """Whether the loss is a sum over sequences."""
        return all(link.run.independent for link in self.links)

    def mask(self) -> Tensor:
        """(T, B) bool: which steps exist."""
        return self.links[0].run.mask()

    def outputs(self) -> Tensor:
        """(T, B) bool: where a loss enters, e_t not zero. NaN counts as a loss."""
        hit = [(part != 0).any(-1) for part in self.direct]
        return torch.stack(hit).any(0) & self.mask()

    def select(self, samples: Sequence[int] | Tensor) -> Chain:
        """The chain restricted to some sequences, which may be repeated."""
        index = self.links[0].run.columns(samples)

        def columns(values: Tensor) -> Tensor:
            return values.index_select(1, index)

        return Chain(
            tuple(
                replace(
                    link,
                    run=link.run.select(index),
                    direct=tuple(map(columns, link.direct)),
                    gain=None if link.gain is None else columns(link.gain),
                    previous=tuple(map(columns, link.previous)),
                    diagonal=None if link.diagonal is None else each(link.diagonal, columns),
                )
                for link in self.links
            )
        )

    def prepared(self) -> Chain:
        """A copy with previous states and diagonal derivatives computed once for all steps back."""
        return Chain(tuple(_prepare(link) for link in self.links))


def _prepare(link: ChainLink) -> ChainLink:
    """The link with previous states and, if they fit `DIAGONAL_BYTES`, diagonal derivatives for all steps."""
    if link.diagonal is not None:
        return link
    run = link.run
    link = replace(link, previous=link.previous or run.previous())
    if not link.elementwise:
        return link
    cell, item = run.cell, run.states[0].element_size()
    blocks = len(cell.blocks) + (0 if cell.additive else len(cell.gates))
    size = run.T * run.B * run.cell.units(run.weights) * item
    if size * len(cell.parts) * (blocks + len(cell.parts)) > DIAGONAL_BYTES:
        return link
    if run.gates is None and (cell.nested or cell.diagonal):
        run = replace(run, gates=gates(cell, run.weights, run.inputs, link.previous))
        link = replace(link, run=run)
    return replace(link, diagonal=coefficients(run, previous=link.previous, nested=True))


def pick(diagonal: Coefficients, where: Where) -> Coefficients:
    """Rows of diagonal derivatives at `where`."""
    if isinstance(where, slice) and where == slice(0, diagonal.projected.shape[0]):
        return diagonal
    return each(diagonal, lambda values: take(values, where))


def each(diagonal: Coefficients, of: Callable[[Tensor], Tensor]) -> Coefficients:
    """Apply a function to all tensors of diagonal derivatives."""

    def known(row: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        return tuple(None if values is None else of(values) for values in row)

    a_hh = known(diagonal.a_hh)
    same = diagonal.a_ih[0] is diagonal.a_hh[0]
    return Coefficients(
        a_ih=a_hh if same else known(diagonal.a_ih),
        a_hh=a_hh,
        state=tuple(known(row) for row in diagonal.state),
        projected=of(diagonal.projected),
        within=None if diagonal.within is None else of(diagonal.within),
        gates=diagonal.gates,
    )
