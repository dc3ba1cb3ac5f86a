"""Recognises modules that do one step of a recurrence, and parses their arguments and results."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rnndiag.engine.cells import State
from rnndiag.errors import NotSupported

STATE_NAMES = frozenset(
    (
        *("state", "states", "hidden", "hiddens", "hidden_state", "prev_state", "previous_state"),
        *(
            "h",
            "hx",
            "h_prev",
            "prev_h",
            "h_0",
            "h0",
            "carry",
            "c",
            "cx",
            "cell_state",
            "prev",
            "previous",
        ),
        *(
            "mem",
            "membrane",
            "syn",
            "v",
            "h_t",
            "s_t",
            "ht",
            "last_hidden",
            "last_state",
            "recurrent_state",
        ),
    )
)
"""A module with an argument of one of these names is a step if its calls form a chain."""


def may_be_step(module: nn.Module) -> bool:
    """Whether an argument's name suggests that the module does one step."""
    if type(module).__module__.startswith("torch."):
        return False
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (AttributeError, TypeError, ValueError):  # AttributeError: a scripted module
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) >= 2 and any(p.name in STATE_NAMES for p in positional)


@dataclass(frozen=True)
class Shape:
    """The structure of a state: a tensor, or a tuple or list of tensors, each batch first."""

    kind: type | None
    """tuple or list; None: a bare tensor."""
    sizes: tuple[torch.Size, ...]
    """Shape of every part without the batch."""

    @classmethod
    def of(cls, state: Any) -> Shape | None:
        """The shape of a state; None if it is none."""
        if isinstance(state, Tensor):
            return cls(None, (state.shape[1:],)) if state.dim() >= 2 else None
        if type(state) not in (tuple, list) or not state:
            return None
        if not all(isinstance(part, Tensor) and part.dim() >= 2 for part in state):
            return None
        return cls(type(state), tuple(part.shape[1:] for part in state))

    def build(self, parts: tuple[Tensor, ...]) -> Any:
        """Build the state that the module takes from parts (N, S_p)."""
        shaped = [
            part.reshape(part.shape[0], *size) for part, size in zip(parts, self.sizes, strict=True)
        ]
        return shaped[0] if self.kind is None else self.kind(shaped)


def tensors_of(state: Any) -> tuple[Tensor, ...]:
    """The tensors of a state, unchanged."""
    return (state,) if isinstance(state, Tensor) else tuple(state)


def flat(part: Tensor) -> Tensor:
    """(B, ...) -> (B, S_p)."""
    return part if part.dim() == 2 else part.flatten(1)


def same_build(one: Shape | None, other: Shape | None) -> bool:
    """Whether two states have the same parts; a tuple may come back as a list."""
    return (
        one is not None
        and other is not None
        and one.sizes == other.sizes
        and (one.kind is None) == (other.kind is None)
    )


@dataclass(frozen=True)
class Returned:
    """The result of a step: its new state and, if it is a separate tensor, its output."""

    state: Any
    output: Tensor | None

    @property
    def tensors(self) -> State:
        """State parts, then the output."""
        return tensors_of(self.state) + (() if self.output is None else (self.output,))


def read_returned(value: Any, given: Shape | None, owner: str) -> Returned:
    """Parse the result of a step: a state, or (output, state)."""
    whole = Shape.of(value)
    if given is not None and same_build(whole, given):
        return Returned(value, None)
    if isinstance(value, tuple) and len(value) == 2:
        output, state = value
        shape = Shape.of(state)
        if shape is not None and (given is None or same_build(shape, given)):
            inside = any(output is part for part in tensors_of(state))
            keeps = isinstance(output, Tensor) and not inside
            if isinstance(output, Tensor) or output is None:
                return Returned(state, output if keeps else None)
    if given is None and whole is not None:
        return Returned(value, None)
    raise NotSupported(
        f"The step module {owner!r} returned neither a state like the one it was given nor (output, state).",
        "Return the new state in the form of the old one, alone or after the output.",
    )


@dataclass(frozen=True)
class Arguments:
    """The arguments of a step: which one is the input, which the state, and the rest."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    names: tuple[str, str]

    @classmethod
    def read(
        cls, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], owner: str
    ) -> Arguments:
        """The first two parameters of `forward` are the input and the state."""
        parameters = list(inspect.signature(module.forward).parameters)
        if len(parameters) < 2:
            raise NotSupported(
                f"The step module {owner!r} takes one argument, its state.",
                "Its loop is measured on the graph where it is called in one.",
            )
        first, second = parameters[:2]
        found = cls(args, dict(kwargs), (first, second))
        others = [*args[2:], *(v for k, v in kwargs.items() if k not in found.names)]
        if any(isinstance(value, Tensor) for value in others):
            raise NotSupported(
                f"The step module {owner!r} was called with tensors besides its input and state.",
                "Pass one input tensor (concatenate what changes from step to step) and the state.",
            )
        if not isinstance(found.inputs, Tensor):
            raise NotSupported(
                f"The step module {owner!r} was called with an input of type "
                f"{type(found.inputs).__name__}.",
                "Pass the input of a step as one tensor, batch first.",
            )
        return found

    def _get(self, place: int) -> Any:
        return self.args[place] if len(self.args) > place else self.kwargs.get(self.names[place])

    @property
    def inputs(self) -> Any:
        """x_t."""
        return self._get(0)

    @property
    def state(self) -> Any:
        """s_{t-1}; None if the module creates its own initial state."""
        return self._get(1)

    def replaced(self, inputs: Tensor, state: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with another input and state."""
        values = (inputs, state)
        args = tuple(values[k] if k < 2 else value for k, value in enumerate(self.args))
        kwargs = {
            name: values[self.names.index(name)] if name in self.names else value
            for name, value in self.kwargs.items()
        }
        return args, kwargs
