"""Derivatives of a cell whose h is made from its new last part, h_t = φ(a, c_t), in the order in which it computes.

Written out by the chain rule they are twice as many numbers: every gate that c sees is then one that h sees too.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Nested:
    """Diagonal derivatives of (h_t, c_t) of an additive cell; every gate belongs to one of the two parts."""

    out: tuple[Tensor, ...]
    """What `pointwise` gives."""
    within: Tensor
    """∂h_t/∂c_t at fixed pre-activations, (N, H)."""
    gates: tuple[slice, slice]
    """The gates that h sees at fixed c_t, and those that c sees, by their places."""
    by_gate: tuple[Tensor, Tensor]
    """∂h_t and ∂c_t by the pre-activations of those gates, (N, gates, H)."""
    carried: Tensor
    """∂c_t/∂c_{t-1}, (N, H)."""

    def written_out(self) -> list[list[Tensor | None]]:
        """The rows of a cell's `diagonal`: h as a function of the pre-activations and of c_{t-1} alone."""
        (of_h, of_c), (h_by_gate, c_by_gate) = self.gates, self.by_gate
        count = h_by_gate.shape[-2] + c_by_gate.shape[-2]
        shape = (*self.within.shape[:-1], count, self.within.shape[-1])
        h_by_a, c_by_a = self.within.new_empty(shape), self.within.new_zeros(shape)
        h_by_a[..., of_h, :] = h_by_gate
        c_by_a[..., of_c, :] = c_by_gate
        h_by_a[..., of_c, :] = c_by_gate * self.within.unsqueeze(-2)
        return [
            [h_by_a.flatten(-2), None, None, self.within * self.carried],
            [c_by_a.flatten(-2), None, None, self.carried],
        ]
