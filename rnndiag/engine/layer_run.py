"""The record of one recurrent layer, in one direction, over one forward and backward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rnndiag.engine.cells import Cell, State
from rnndiag.engine.cpu_buffers import empty
from rnndiag.errors import BadArgument


@dataclass(frozen=True, repr=False)
class LayerRun:
    """A layer run (spec: inputs x_t, states s_t, direct gradients e_t).

    All tensors are in processing order: a reverse direction is stored flipped, each sequence within its own length, so
    index 0 is the first step that the recurrence made and padding is always at the end. Index t = 0..T-1 stands for
    the spec's 1..T. Entries past a sequence's length are zeros.
    """

    name: str
    cell: Cell
    weights: Mapping[str, Tensor]
    """Effective weights by key: weight_ih (G*H, I), weight_hh (G*H, R), bias_ih, bias_hh, weight_hr (R, H), extras."""
    inputs: Tensor
    """(T, B, I)"""
    states: State
    """s_t, one tensor (T, B, S_p) a part; part 0 is h."""
    initial: State
    """s_0, one tensor (B, S_p) a part."""
    direct: State
    """e_t, one tensor (T, B, S_p) a part."""
    lengths: Tensor | None = None
    """(B,) int64; None: every sequence has T steps."""
    reverse: bool = False
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    """G, what autograd gave for the weight in that backward pass (by all calls that share the weight)."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Weight key -> qualified name of the parameter in the model; equal for runs that share the weight."""
    input_gradient: Tensor | None = None
    """(T, B, I): dL/dx_t of this run alone from autograd; None if not available."""
    initial_gradient: State | None = None
    """dL/ds_0, parts (B, S_p), from autograd; None if not available."""
    tie: str = "zero"
    """Origin of s_0: zero | given | learnt | run:NAME (end of an earlier call) | detached:NAME."""
    notes: tuple[str, ...] = ()
    """Why the run is not exact; empty if it is."""
    open: str = ""
    """The path that bypasses its states, so that e_t also holds later losses and lags are undefined; empty: none."""
    loop: str = ""
    """The loop that an open run belongs to."""
    scale: float = 1.0
    """The loss scale that has been divided out."""
    independent: bool = True
    """Whether the loss is a sum over the sequences, so that their gradients are independent draws."""
    gates: Mapping[str, Tensor] | None = None
    """Values of the gates of all steps, (T, B, H) each, if computed already; None: not computed."""

    def __repr__(self) -> str:
        sizes = named_sizes(self)
        return (
            f"LayerRun({self.name!r}, {self.cell.name}, T={self.T}, B={self.B}, "
            f"I={self.inputs.shape[-1]}, {sizes}, {str(self.dtype).removeprefix('torch.')})"
        )

    @property
    def T(self) -> int:
        """Number of time steps."""
        return int(self.states[0].shape[0])

    @property
    def B(self) -> int:
        """Number of sequences."""
        return int(self.states[0].shape[1])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Size S_p of each state part."""
        return tuple(int(part.shape[-1]) for part in self.states)

    @property
    def S(self) -> int:
        """Size of the whole state."""
        return sum(self.sizes)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the states."""
        return self.states[0].dtype

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.states[0].device

    def mask(self) -> Tensor:
        """(T, B) bool: which steps exist."""
        if self.lengths is None:
            return torch.ones(self.T, self.B, dtype=torch.bool, device=self.device)
        steps = torch.arange(self.T, device=self.device)
        return steps[:, None] < self.lengths.to(self.device)[None, :]

    def previous(self, start: int = 0, stop: int | None = None) -> State:
        """s_{t-1} at steps start..stop-1, parts (T', B, S_p). Read only: a view if start > 0."""
        return tuple(self.previous_part(p, start, stop) for p in range(len(self.states)))

    def previous_part(self, p: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Part p of s_{t-1} at the steps start..stop-1, (T', B, S_p)."""
        return shifted(self.states[p], self.initial[p], start, stop)

    def previous_at(self, times: Tensor) -> State:
        """s_{t-1} at the steps `times` (T',), parts (T', B, S_p)."""
        begins = (times == 0)[:, None, None]
        before = (times - 1).clamp(min=0)
        return tuple(
            torch.where(begins, first.to(part.dtype), part[before])
            for first, part in zip(self.initial, self.states, strict=True)
        )

    def state_vector(self) -> Tensor:
        """(T, B, S): the parts of the state concatenated."""
        return torch.cat(self.states, -1)

    def split(self, vector: Tensor) -> State:
        """Split (..., S) into parts (..., S_p)."""
        return tuple(vector.split(self.sizes, -1))

    @torch.inference_mode(
        mode=False
    )  # tensors made in inference mode could not be differentiated by
    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> LayerRun:
        """The same run in another precision or on another device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype)

        def moved(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {key: move(value) for key, value in values.items()}

        return replace(
            self,
            weights=moved(self.weights),
            inputs=move(self.inputs) if self.inputs.is_floating_point() else self.inputs.to(device),
            states=tuple(map(move, self.states)),
            initial=tuple(map(move, self.initial)),
            direct=tuple(map(move, self.direct)),
            gradients=moved(self.gradients),
            input_gradient=None if self.input_gradient is None else move(self.input_gradient),
            initial_gradient=None
            if self.initial_gradient is None
            else tuple(map(move, self.initial_gradient)),
            gates=None,
        )

    def columns(self, samples: Tensor | Sequence[int]) -> Tensor:
        """Sequence indices from a mask, or from indices that may be negative."""
        chosen = torch.as_tensor(samples, device=self.device).reshape(-1)
        if not chosen.numel():
            raise BadArgument(
                f"No sequence of {self.name} was chosen.", f"It has {self.B} of them."
            )
        return torch.arange(self.B, device=self.device)[chosen]

    @torch.inference_mode(mode=False)
    def select(self, samples: Tensor | Sequence[int]) -> LayerRun:
        """The run restricted to some sequences, without `gradients`, which hold all of them."""
        index = self.columns(samples)

        def some(values: Tensor) -> Tensor:
            return values.index_select(1, index)

        def rows(values: State) -> State:
            return tuple(part[index] for part in values)

        return replace(
            self,
            inputs=some(self.inputs),
            states=tuple(map(some, self.states)),
            initial=rows(self.initial),
            direct=tuple(map(some, self.direct)),
            lengths=None if self.lengths is None else self.lengths[index.to(self.lengths.device)],
            gradients={},
            input_gradient=None if self.input_gradient is None else some(self.input_gradient),
            initial_gradient=None if self.initial_gradient is None else rows(self.initial_gradient),
            gates=None
            if self.gates is None
            else {name: some(value) for name, value in self.gates.items()},
        )


def shifted(values: Tensor, first: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    """Steps start..stop-1 of (first, values[0], values[1], ...), values (T, ...) shifted by one step."""
    stop = len(values) if stop is None else min(stop, len(values))
    if start > 0:
        return values[start - 1 : stop - 1]
    whole = empty((stop, *values.shape[1:]), values.dtype, values.device)
    whole[:1], whole[1:] = first, values[: stop - 1]
    return whole


def named_sizes(run: LayerRun) -> str:
    """The parts of the state with their sizes, as "h 4 + c 4"."""
    return " + ".join(f"{part} {n}" for part, n in zip(run.cell.parts, run.sizes, strict=True))
