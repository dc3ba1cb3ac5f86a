"""Derivatives of a cell whose h is computed from its new last part, h_t = φ(a, c_t), kept in that nested form.

Expanding them by the chain rule takes twice as many numbers: every gate that c depends on becomes one that h depends
on.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Nested:
    """Diagonal derivatives of (h_t, c_t) of an additive cell; every gate belongs to one of the two parts."""

    out: tuple[Tensor, ...]
    """The result of `pointwise`."""
    within: Tensor
    """∂h_t/∂c_t at fixed pre-activations, (N, H)."""
    gates: tuple[slice, slice]
    """Indices of the gates that h depends on at fixed c_t, and of those that c depends on."""
    by_gate: tuple[Tensor, Tensor]
    """Derivatives of h_t and of c_t by the pre-activations of those gates, (N, gates, H)."""
    carried: Tensor
    """∂c_t/∂c_{t-1}, (N, H)."""

    def written_out(self) -> list[list[Tensor | None]]:
        """The same derivatives in the form of a cell's `diagonal`: h as a function of pre-activations and c_{t-1}
        alone."""
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
