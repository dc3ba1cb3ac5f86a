"""Records the outputs of a recurrent layer in one call of a loss function, and replaces them by others.

`memory_need` asks for the loss if the layer had returned something else. So one pass through `loss_fn` is recorded, and
later passes run with the layer's `forward` replaced by a function that returns given outputs; the recurrence itself is
not run again. All tensors here are batch first, (B, T, ...), whatever the layout of the user.

This file handles `nn.RNN`, `nn.LSTM`, `nn.GRU` (stacks, packed sequences, several calls along time that carry the
state) and loops over `nn.RNNCell`, `nn.LSTMCell`, `nn.GRUCell`; `step_output` handles other step modules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from rnndiag.errors import NotSupported

T = TypeVar("T")
State = tuple[Tensor, ...]
"""h, or h and c, each (layers, B, size)."""


@dataclass
class Call:
    """One call of the layer: its arguments and results in the user's layout."""

    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    """Positional and keyword arguments."""
    returned: Any

    @property
    def given(self) -> Any:
        """The input of a torch layer or cell."""
        positional, named = self.arguments
        return positional[0] if positional else named["input"]

    @property
    def state(self) -> Any:
        """Its initial state, or None."""
        positional, named = self.arguments
        return positional[1] if len(positional) > 1 else named.get("hx")


@dataclass(frozen=True)
class LayerPass:
    """Inputs, outputs and states of the layer for one batch."""

    inputs: Tensor
    """(B, T, I)"""
    outputs: Tensor
    """(B, T, H): h of the top layer; (B, T, H + C) where the loss also reads the cell state c."""
    states: Tensor
    """(B, T, H + C): h of the top layer, followed by c if there is one."""
    history: tuple[Tensor, ...]
    """Each part of the state of all layers after every step: T entries of (layers, B, size)."""
    lengths: Tensor
    """(B,) number of valid steps."""
    calls: tuple[Call, ...]

    @property
    def valid(self) -> Tensor:
        """(B, T) bool: steps within the sequences."""
        steps = torch.arange(self.inputs.shape[1], device=self.lengths.device)
        return steps.unsqueeze(0) < self.lengths.unsqueeze(1)


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the module's forward meanwhile; its hooks still run."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


@contextmanager
def recorded_calls(module: nn.Module) -> Iterator[list[Call]]:
    """Record all calls of the module made inside."""
    calls: list[Call] = []
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        returned = original(*args, **kwargs)
        calls.append(Call((args, kwargs), returned))
        return returned

    with replaced_forward(module, forward):
        yield calls


class LayerOutput(ABC):
    """One recurrent module whose outputs can be recorded and replaced.

    Args:
        name: Qualified name of the module in the model.
        module: The module.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        self.with_cell = False
        """Whether the outputs hold the cell state c of an LSTM after h, because the loss reads it."""

    @abstractmethod
    def read(self, calls: list[Call]) -> LayerPass:
        """Inputs, outputs and states from the recorded calls."""

    @abstractmethod
    def forward_returning(self, seen: LayerPass, outputs: Tensor) -> Callable[..., Any]:
        """A replacement for the module's forward that returns `outputs` (B, T, H) in the layout of the recorded
        calls."""

    @abstractmethod
    def last_output(self, inputs: Tensor, start: State | None) -> Tensor:
        """The output (N, H) after the last step of inputs (N, d, I) from an initial state; None: zeros."""

    @abstractmethod
    def hidden_states(self, inputs: Tensor, start: State | None) -> Tensor:
        """h (N, T, H) of the top layer after every step of inputs (N, T, I); of a step module, its whole state."""

    @property
    def parts(self) -> int:
        """Number of state parts: 1 (h), or 2 (h and c)."""
        return 2 if isinstance(self.module, nn.LSTM | nn.LSTMCell) else 1

    def cell_size(self) -> int:
        """Size of c (read only if there is one)."""
        return int(self.module.hidden_size)  # type: ignore[arg-type]

    def _pass(
        self, inputs: Tensor, history: tuple[Tensor, ...], lengths: Tensor, calls: list[Call]
    ) -> LayerPass:
        h = history[0][:, -1].transpose(0, 1)
        c = history[1][:, -1].transpose(0, 1) if self.parts == 2 else None
        states = h if c is None else torch.cat([h, c], -1)
        return LayerPass(inputs, self._joined(h, c), states, history, lengths, tuple(calls))

    def _joined(self, h: Tensor, c: Tensor | None) -> Tensor:
        return torch.cat([h, c], -1) if self.with_cell and c is not None else h


def as_parts(state: Any) -> tuple[Any, ...]:
    """A state as a tuple of its parts."""
    return tuple(state) if isinstance(state, tuple | list) else (state,)


class FusedOutput(LayerOutput):
    """nn.RNN, nn.LSTM or nn.GRU of any number of layers, one direction."""

    module: nn.RNNBase

    def read(self, calls: list[Call]) -> LayerPass:
        """Join the calls along time; raises if a call does not carry the state on."""
        self._check_carried(calls)
        pieces = [self._padded(call) for call in calls]
        inputs = torch.cat([x for x, _ in pieces], 1)
        lengths = pieces[0][1] if len(pieces) == 1 else torch.full((len(inputs),), inputs.shape[1])
        start = self._start(calls[0], inputs)
        return self._pass(inputs, self._history(inputs, start), lengths.to(inputs.device), calls)

    def _check_carried(self, calls: list[Call]) -> None:
        for before, after in pairwise(calls):
            left: tuple[Tensor, ...] = as_parts(before.returned[1])
            entered: tuple[Tensor | None, ...] = as_parts(after.state)
            packed = isinstance(before.given, PackedSequence)
            carried = not packed and all(
                b is not None and a.shape == b.shape and torch.equal(a, b)
                for a, b in zip(left, entered, strict=False)
            )
            if not carried:
                raise NotSupported(
                    f"{self.name} was called {len(calls)} times from unrelated states, so its steps "
                    "form no single sequence.",
                    "Give a loss_fn that calls the layer once, or carries its state from call to call.",
                )

    def _padded(self, call: Call) -> tuple[Tensor, Tensor]:
        """Inputs of a call as (B, T, I), and lengths (B,)."""
        given = call.given
        if isinstance(given, PackedSequence):
            return pad_packed_sequence(given, batch_first=True)
        x = given.unsqueeze(0 if self.module.batch_first else 1) if given.dim() == 2 else given
        x = x if self.module.batch_first else x.transpose(0, 1)
        return x.detach(), torch.full((len(x),), x.shape[1])

    def _start(self, call: Call, inputs: Tensor) -> State | None:
        if call.state is None:
            return None
        parts = as_parts(call.state)
        return tuple((p if p.dim() == 3 else p.unsqueeze(1)).detach() for p in parts)

    def _call(self, inputs: Tensor, start: State | None) -> tuple[Tensor, State]:
        """The module itself on (N, T, I): outputs (N, T, H) and the last state."""
        module = self.module
        hx = None
        if start is not None:
            hx = tuple(p.contiguous() for p in start) if self.parts == 2 else start[0].contiguous()
        x = inputs if module.batch_first else inputs.transpose(0, 1)
        with torch.no_grad():
            y, last = module(x, hx)
        return (y if module.batch_first else y.transpose(0, 1)), as_parts(last)

    def _history(self, inputs: Tensor, start: State | None) -> tuple[Tensor, ...]:
        """The state of every layer after every step, run layer by layer: the kernels return the top layer's h only."""
        if self.module.num_layers == 1 and self.parts == 1:
            y, _ = self._call(inputs, start)
            return (y.transpose(0, 1).unsqueeze(1),)
        steps: list[State] = []
        state = start
        for t in range(inputs.shape[1]):
            _, state = self._call(inputs[:, t : t + 1], state)
            steps.append(state)
        return tuple(torch.stack(part) for part in zip(*steps, strict=True))

    def hidden_states(self, inputs: Tensor, start: State | None) -> Tensor:
        """h (N, T, H) after every step."""
        return self._call(inputs, start)[0]

    def last_output(self, inputs: Tensor, start: State | None) -> Tensor:
        """The output (N, H) after the last step."""
        y, last = self._call(inputs, start)
        return self._joined(y[:, -1], last[1][-1] if self.parts == 2 else None)

    def forward_returning(self, seen: LayerPass, outputs: Tensor) -> Callable[..., Any]:
        """A replacement forward that answers the calls in order, each with its steps of the outputs."""
        width = seen.states.shape[-1] if self.with_cell else outputs.shape[-1]
        size = self.module.proj_size or self.module.hidden_size
        h, c = outputs[..., :size], outputs[..., size:width]
        answers = self._answers(seen, h, c if self.with_cell else None)

        def forward(input: Any, hx: Any = None) -> Any:
            return next_of(answers, self.name)

        return forward

    def _answers(self, seen: LayerPass, h: Tensor, c: Tensor | None) -> Iterator[Any]:
        begin = 0
        for call in seen.calls:
            _, last = call.returned
            lengths = seen.lengths if len(seen.calls) == 1 else None
            steps = h.shape[1] if lengths is not None else self._padded(call)[0].shape[1]
            piece = h[:, begin : begin + steps]
            ends = (
                seen.lengths - 1
                if lengths is not None
                else torch.full_like(seen.lengths, begin + steps - 1)
            )
            rows = torch.arange(len(h), device=h.device)
            begin += steps
            finals = []
            for part, value in zip(as_parts(last), (h, c), strict=False):
                top = part.detach()[-1] if value is None else value[rows, ends]
                if part.dim() == 2 and value is not None:  # unbatched: (layers, size)
                    top = top[0]
                finals.append(torch.cat([part.detach()[:-1], top.unsqueeze(0)]))
            state = tuple(finals) if self.parts == 2 else finals[0]
            yield self._as_given(call.given, piece), state

    def _as_given(self, given: Any, piece: Tensor) -> Any:
        """Outputs (B, T, H) in the layout of the call's input."""
        if isinstance(given, PackedSequence):
            rows, steps = packed_places(given)
            return PackedSequence(
                piece[rows, steps], given.batch_sizes, given.sorted_indices, given.unsorted_indices
            )
        if given.dim() == 2:
            return piece[0]
        return piece if self.module.batch_first else piece.transpose(0, 1)


def packed_places(packed: PackedSequence) -> tuple[Tensor, Tensor]:
    """For each row of `packed.data` its sequence in the user's order, and its step."""
    sizes = packed.batch_sizes.tolist()
    rows = torch.cat([torch.arange(size) for size in sizes])
    steps = torch.cat([torch.full((size,), t) for t, size in enumerate(sizes)])
    if packed.sorted_indices is not None:
        rows = packed.sorted_indices.cpu()[rows]
    return rows.to(packed.data.device), steps.to(packed.data.device)


def require_carried(
    name: str, left: Sequence[tuple[Tensor, ...]], entered: Sequence[tuple[Tensor | None, ...]]
) -> None:
    """Raise if a loop changes the state between two steps: running the module alone would not repeat that.

    Args:
        name: Of the module.
        left: The state after each call.
        entered: The state before each call but the first.
    """
    for t, (before, after) in enumerate(zip(left, entered, strict=False), 1):
        same = (b is not None and torch.equal(a, b) for a, b in zip(before, after, strict=False))
        if len(before) != len(after) or not all(same):
            raise NotSupported(
                f"The loop changes the state of {name} before step {t} (counted from 0), so {name} alone does not do "
                "what the net does.",
                "Move the change into an nn.Module that takes (input, state) and returns the new state, and name it "
                "with layer=.",
            )


def next_of(calls: Iterator[T], name: str) -> T:
    """What belongs to the next call of a module."""
    found = next(calls, None)
    if found is None:
        raise NotSupported(
            f"{name} was called more often than at first.",
            "Give a loss_fn that does the same each time it is called.",
        )
    return found


class CellOutput(LayerOutput):
    """A loop over nn.RNNCell, nn.LSTMCell or nn.GRUCell: call t is step t."""

    module: nn.RNNCellBase

    def read(self, calls: list[Call]) -> LayerPass:
        """Stack the calls along time."""
        inputs = torch.stack([self._batched(call.given) for call in calls], 1).detach()
        require_carried(
            self.name,
            [as_parts(call.returned) for call in calls],
            [as_parts(call.state) for call in calls[1:]],
        )
        finals = [tuple(self._batched(p) for p in as_parts(call.returned)) for call in calls]
        history = tuple(
            torch.stack(part).detach().unsqueeze(1) for part in zip(*finals, strict=True)
        )
        lengths = torch.full((len(inputs),), inputs.shape[1], device=inputs.device)
        return self._pass(inputs, history, lengths, calls)

    @staticmethod
    def _batched(value: Tensor) -> Tensor:
        return value if value.dim() == 2 else value.unsqueeze(0)

    def _steps(self, inputs: Tensor, start: State | None) -> Iterator[State]:
        state = None if start is None else tuple(part[0] for part in start)
        with torch.no_grad():
            for t in range(inputs.shape[1]):
                hx = None if state is None else state if self.parts == 2 else state[0]
                state = as_parts(self.module(inputs[:, t], hx))
                yield state

    def hidden_states(self, inputs: Tensor, start: State | None) -> Tensor:
        """h (N, T, H) after every step."""
        return torch.stack([state[0] for state in self._steps(inputs, start)], 1)

    def last_output(self, inputs: Tensor, start: State | None) -> Tensor:
        """The output (N, H) after the last step."""
        *_, last = self._steps(inputs, start)
        return self._joined(last[0], last[1] if self.parts == 2 else None)

    def forward_returning(self, seen: LayerPass, outputs: Tensor) -> Callable[..., Any]:
        """A replacement forward that answers the t-th call with the outputs of step t."""
        size = self.module.hidden_size
        steps = iter(range(len(seen.calls)))

        def forward(input: Tensor, hx: Any = None) -> Any:
            t = next_of(steps, self.name)
            h = outputs[:, t, :size]
            c = None
            if self.parts == 2:
                c = outputs[:, t, size:] if self.with_cell else seen.history[1][t, 0]
            if input.dim() == 1:
                h, c = h[0], None if c is None else c[0]
            return h if c is None else (h, c)

        return forward
