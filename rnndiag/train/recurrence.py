"""A common interface of everything that can be unrolled: fused layers, cells, step functions and modules over
sequences.

An estimator of the gradient has to run stretches of a sequence: chunk by chunk, step by step, or many windows together
on the batch axis. `recurrence_of` returns such a runner for the module that a program trains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnndiag.errors import BadArgument
from rnndiag.train.nested import map_tensors, where_rows

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""(x_t (B, ...), state) -> (output (B, ...), new state)."""


@runtime_checkable
class SequenceModule(Protocol):
    """A custom module that runs over a stretch of a sequence: module(inputs (T, B, I), state, lengths)."""

    batch_dim: int
    """The dim of a state tensor that counts the sequences."""
    causal: bool
    """Whether outputs depend on the past only."""

    def __call__(self, inputs: Tensor, state: Any = None, lengths: Any = None) -> tuple[Any, Any]:
        """Outputs (T, B, F), and the state after the last step."""


class Recurrence(Protocol):
    """Runs a stretch of a sequence."""

    time_dim: int
    """The time dim of inputs and outputs."""
    causal: bool
    """Whether the sequence may be run in pieces."""
    parts: tuple[str, ...] | None
    """Names of the state's parts ("h", "c"), if known."""

    def run(self, inputs: Tensor, state: Any, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """Outputs and state of a stretch; `lengths` (B,) are counted from its first step and may be 0."""

    def start(self, inputs: Tensor) -> Any:
        """The initial state used for None; None if it is unknown."""

    def batch_dim(self, part: Tensor) -> int:
        """The dim of a state tensor that counts the sequences."""


class Fused:
    """nn.RNN, nn.LSTM or nn.GRU, with the layout of its `batch_first`."""

    def __init__(self, module: nn.RNNBase) -> None:
        self.module = module
        self.time_dim = 1 if module.batch_first else 0
        self.causal = not module.bidirectional
        self.parts: tuple[str, ...] | None = ("h", "c") if module.mode == "LSTM" else ("h",)

    def run(self, inputs: Tensor, state: Any, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """One kernel call; sequences that have ended keep their state and return zeros."""
        if lengths is None:
            output, after = self.module(inputs, state)
            return output, after
        # pack_padded_sequence refuses sequences of length 0, so they are taken out and put back.
        steps, rows = inputs.shape[self.time_dim], (lengths > 0).nonzero()[:, 0].to(inputs.device)
        before = self.start(inputs) if state is None else state
        if len(rows) == 0:
            size = getattr(self.module, "proj_size", 0) or self.module.hidden_size
            shape = [*inputs.shape[:-1], size * (2 if self.module.bidirectional else 1)]
            return inputs.new_zeros(shape), before
        whole = len(rows) == len(lengths)
        batch_dim = 1 - self.time_dim
        taken = inputs if whole else inputs.index_select(batch_dim, rows)
        mine = before if whole else map_tensors(lambda part: part.index_select(1, rows), before)
        packed = pack_padded_sequence(
            taken,
            lengths.cpu()[rows.cpu()].clamp(max=steps),
            batch_first=self.module.batch_first,
            enforce_sorted=False,
        )
        ran, after = self.module(packed, mine)
        output, _ = pad_packed_sequence(
            ran, batch_first=self.module.batch_first, total_length=steps
        )
        if whole:
            return output, after
        shape = list(output.shape)
        shape[batch_dim] = len(lengths)
        output = output.new_zeros(shape).index_copy(batch_dim, rows, output)
        return output, map_tensors(lambda old, new: old.index_copy(1, rows, new), before, after)

    def start(self, inputs: Tensor) -> Any:
        """Zeros."""
        module = self.module
        layers = module.num_layers * (2 if module.bidirectional else 1)
        batch = inputs.shape[1 - self.time_dim]
        h = inputs.new_zeros(layers, batch, getattr(module, "proj_size", 0) or module.hidden_size)
        if module.mode != "LSTM":
            return h
        return h, inputs.new_zeros(layers, batch, module.hidden_size)

    def batch_dim(self, part: Tensor) -> int:
        """1, from the layout (layers, B, H)."""
        return 1


class Stepped:
    """A step function or module, called once for every time step."""

    time_dim = 0
    causal = True
    parts: tuple[str, ...] | None = None

    def __init__(self, step: Step) -> None:
        self.step = step

    def run(self, inputs: Tensor, state: Any, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """Step by step; sequences that have ended keep their state."""
        outputs = []
        for t, x in enumerate(inputs):
            output, new = self.step(x, state)
            # None: there is nothing to keep yet, and a length of 0 cannot be told from one of 1.
            state = new if lengths is None or state is None else where_rows(lengths > t, new, state)
            outputs.append(output)
        return torch.stack(outputs), state

    def start(self, inputs: Tensor) -> Any:
        """None: the initial state is unknown."""
        return None

    def batch_dim(self, part: Tensor) -> int:
        """0, from the layout (B, ...)."""
        return 0


class Cell(Stepped):
    """nn.RNNCell, nn.LSTMCell or nn.GRUCell, whose output is h."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
            new = cell(x, state)
            return (new[0] if isinstance(new, tuple) else new), new

        super().__init__(step)
        self.cell = cell
        self.parts = ("h", "c") if isinstance(cell, nn.LSTMCell) else ("h",)

    def start(self, inputs: Tensor) -> Any:
        """Zeros."""
        h = inputs.new_zeros(inputs.shape[1], self.cell.hidden_size)
        return (h, h.clone()) if isinstance(self.cell, nn.LSTMCell) else h


class OfSequence:
    """Runs a `SequenceModule`."""

    time_dim = 0

    def __init__(self, module: SequenceModule) -> None:
        self.module = module
        self.causal = module.causal
        self.parts: tuple[str, ...] | None = getattr(module, "parts", None)

    def run(self, inputs: Tensor, state: Any, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """One call of the module."""
        if lengths is None:
            return self.module(inputs, state)
        return self.module(inputs, state, lengths)

    def start(self, inputs: Tensor) -> Any:
        """The result of the module's `initial`, if it has that method; else None."""
        initial = getattr(self.module, "initial", None)
        return None if initial is None else initial(inputs, inputs.shape[1])

    def batch_dim(self, part: Tensor) -> int:
        """The module's `batch_dim`."""
        return self.module.batch_dim


def recurrence_of(module: Any) -> Recurrence:
    """The runner of nn.RNN, nn.LSTM, nn.GRU, their cells, a `SequenceModule`, or a step function."""
    if isinstance(module, nn.RNNBase):
        return Fused(module)
    if isinstance(module, nn.RNNCellBase):
        return Cell(module)
    if isinstance(module, SequenceModule):
        return OfSequence(module)
    if callable(module):
        return Stepped(module)
    raise BadArgument(
        f"A {type(module).__name__} cannot be unrolled.",
        "Give nn.RNN, nn.LSTM, nn.GRU, a cell, or a step (x_t, state) -> (output, state).",
    )
