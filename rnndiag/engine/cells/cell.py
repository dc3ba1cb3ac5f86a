"""A recurrent cell as data: its gates, its state parts and one function of the pre-activations.

Index letters: T time, B batch, N any leading batch, I inputs, H units, R size of the recurrent part h, S whole state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from rnndiag.engine.cells.nested import Nested
from rnndiag.errors import BadArgument

State = tuple[Tensor, ...]
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Cell:
    """One recurrent cell. Give `pointwise`, or, for a step of any other form, `run_step`.

    pointwise(a_ih, a_hh, state, **extras) -> state
        a_ih (N, gates*H) = W_ih x + b_ih, a_hh (N, recurrent_gates*H) = W_hh h + b_hh, state a tuple of (N, S_p).
        The engine does these matrix products, and the projection W_hr of part 0 where that weight exists.
        Neither it nor a closed form may write into its arguments: the states are the recorded ones.
    run_step(weights, inputs, state) -> state
        A whole step, batch first. Rows of the batch must be independent.
    """

    name: str
    parts: tuple[str, ...]
    gates: tuple[str, ...] = ()
    pointwise: Callable[..., State] | None = None
    run_step: Callable[[Weights, Tensor, State], State] | None = None
    recurrent_gates: tuple[str, ...] | None = None
    """Blocks of W_hh; None: the same as `gates`, the blocks of W_ih."""
    extras: tuple[str, ...] = ()
    """Weights that only `pointwise` sees, by name (peepholes). Vectors, or matrices of H x H."""
    elementwise: bool = False
    """True if unit j of the result depends only on unit j of a_ih, a_hh and state: the Jacobian is diagonal (fast
    path)."""
    additive: bool = False
    """True if the pre-activations enter only as the sum a_ih + a_hh."""
    recover: Callable[[Mapping[str, Tensor], State], State] | None = None
    """(values of the gates (T, N, H), initial) -> the parts after h of all T steps, (T, N, S_p): a quick way to get
    what a fused kernel does not hand out, for gates that do not look at them. None: `pointwise`, step by step."""
    diagonal: Callable[..., tuple[State, list[list[Tensor | None]]]] | None = None
    """(values of the gates, state, **extras) -> the result of `pointwise`, and for each of its parts the derivatives
    by a_ih (N, gates*H), by a_hh (left out for an additive cell) and by each state part (N, H), None where zero: a
    closed form of what one VJP with ones a part gives. None: that VJP."""
    nested: Callable[..., Nested] | None = None
    """The same closed form, (values of the gates, state, **extras), for an additive cell of two parts whose h is made
    from its new last part."""
    activations: Callable[..., Mapping[str, Tensor]] | None = None
    """(a_ih, a_hh, state, **extras) -> the value of every gate, for the statistics of gates."""
    sigmoid_gates: tuple[str, ...] = ()
    """Gates with values in (0, 1), for which 'stuck open' and 'shut' are defined."""
    carry: Callable[[Mapping[str, Tensor]], Tensor] | None = None
    """Values of the gates -> the share of the state that is carried on (f of an LSTM, z of torch's GRU)."""
    derivative: Callable[[Tensor], Tensor] | None = None
    """For h = φ(a) alone: φ'(a) written in terms of h."""
    dies_at_zero: bool = False
    """True if a unit with output exactly zero passes no gradient (relu)."""
    kernels: tuple[str, ...] = ()
    """Names of torch's fused kernels over a sequence that compute this cell."""
    step_kernels: tuple[str, ...] = ()
    """Names of torch's kernels that compute one step of this cell."""

    def __post_init__(self) -> None:
        if (self.pointwise is None) == (self.run_step is None):
            raise BadArgument(
                f"The cell {self.name!r} must have either `pointwise` or `run_step`.",
                "Give the one that its step is written as.",
            )
        if (self.recover or self.diagonal or self.nested) and self.activations is None:
            raise BadArgument(
                f"The cell {self.name!r} has a closed form that takes the values of its gates, and no `activations`.",
                "Give `activations`, the function that computes them.",
            )
        if self.pointwise is not None and not (self.gates and self.blocks):
            raise BadArgument(
                f"The cell {self.name!r} has a `pointwise` but names no gates.",
                "Name the blocks of rows of W_ih, such as gates=('h',).",
            )

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the gates with rows in W_hh (blocks * H, R), in order."""
        return self.gates if self.recurrent_gates is None else self.recurrent_gates

    def units(self, weights: Weights) -> int:
        """H, the number of units."""
        return int(weights["weight_hh"].shape[0]) // len(self.blocks)

    def sizes(self, weights: Weights) -> tuple[int, ...]:
        """Size S_p of each state part."""
        recurrent = int(weights["weight_hh"].shape[1])
        return (recurrent, *[self.units(weights)] * (len(self.parts) - 1))

    def extra_weights(self, weights: Weights) -> dict[str, Tensor]:
        """The weights that `pointwise` takes by name."""
        return {name: weights[name] for name in self.extras if name in weights}

    def is_elementwise(self, weights: Weights) -> bool:
        """Whether the diagonal fast path applies; a matrix among the extras mixes the units."""
        extras = self.extra_weights(weights).values()
        return self.elementwise and all(extra.dim() <= 1 for extra in extras)


def summed(a_ih: Tensor, a_hh: Tensor) -> Tensor:
    """a_ih + a_hh of an additive cell; returns a_ih unchanged if the engine has already added them."""
    return a_ih if a_hh.dim() == 0 else a_ih + a_hh
