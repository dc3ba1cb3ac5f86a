"""Lag gradients too small to change any tail: found by a bound that costs next to nothing.

|c_d| <= Σ over rows of |∂a/∂s| |a^d| |right factor|. A lag is left out where this is below 1/D of one rounding of |g|
in the precision of the run, so that no |S_d| can tell whether all that were left out had been taken off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnndiag.engine.transition import Coefficients
from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.sweep.lag_cotangents import Lag
from rnndiag.engine.truncation.sweep.products import Rights
from rnndiag.engine.truncation.sweep.row_steps import take

ASKED_BELOW = 1e-3
"""The bound is worked out where the lag before was smaller than this share of the gradient."""


class NormBounds:
    """Upper bounds of |c_d|, of D lags of a chain of one elementwise layer."""

    def __init__(self, chain: Chain, rights: Rights, full: Tensor, lags: int) -> None:
        self.chain, self.rights = chain, rights
        size = float(torch.linalg.vector_norm(full))
        self.allowed = size * torch.finfo(full.dtype).eps / lags
        self.asked_below = (ASKED_BELOW * size) ** 2
        self._factors: Tensor | None = None

    @classmethod
    def of(cls, chain: Chain, rights: Rights, full: Tensor, lags: int) -> NormBounds | None:
        """None where there is no such bound at hand: stacks, projections, weights that enter in another way."""
        layout = rights.layout
        known = not chain.is_stack and chain.links[0].diagonal is not None
        if not known or None in rights.by_block or any(s.block is None for s in layout.slots):
            return None
        return cls(chain, rights, full, lags)

    def faint(self, lag: Lag, before: Tensor | None) -> Tensor | None:
        """Bounds of |c_d| by parameter and over all, (parameters + 1,), if it may be left out.

        before: |c_{d-1}|² likewise.
        """
        if before is None or not float(before[-1]) < self.asked_below:
            return None
        norm = lag.log_norm.exp() if lag.size is None else lag.size
        if self._factors is None:
            self._factors = self._made()
        if isinstance(lag.where, slice):
            bounds = self._factors[:, lag.where].flatten(1) @ norm.flatten()
        else:
            bounds = torch.stack([(norm * take(one, lag.where)).sum() for one in self._factors])
        found = torch.cat([bounds, bounds.sum()[None]])
        return found if float(found[-1]) <= self.allowed else None

    def _made(self) -> Tensor:
        """|∂a/∂s| |right factor| of every parameter at every step, (parameters, T, N)."""
        diagonal = self.chain.links[0].diagonal
        assert diagonal is not None
        lefts = {name: left_norm(diagonal, getattr(diagonal, name)) for name in ("a_ih", "a_hh")}
        factors = []
        for slot in self.rights.layout.slots:
            assert slot.block is not None
            right = self.rights.by_block[self.rights.layout.blocks.index(slot.block)]
            assert right is not None
            columns = right[..., slice(*slot.columns)]
            norm = torch.linalg.vector_norm(columns, dim=-1).double() / slot.factor
            factors.append(norm * lefts[slot.block.left])
        return torch.stack(factors)


def left_norm(diagonal: Coefficients, rows: tuple[Tensor | None, ...]) -> Tensor:
    """The largest singular value, or a little more, of ∂(pre-activations)/∂(state), transposed, at every step: (T, N).

    Units do not mix, so it is the largest over units of a gates x parts matrix; the Frobenius norm stands for each.
    """
    squares = [None if c is None else c.double().square().sum(-2) for c in rows]
    if diagonal.within is not None and squares[-1] is not None:
        squares[-1] = squares[-1] * (1 + diagonal.within.double().square())
    total = torch.stack([s for s in squares if s is not None]).sum(0)
    return total.amax(-1).sqrt()
