"""The outputs of a step module that a loop calls at every step: a custom cell, with or without `carry`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rnndiag.errors import NotSupported
from rnndiag.recorder.capture.step_signature import (
    Arguments,
    Returned,
    Shape,
    flat,
    read_returned,
    tensors_of,
)
from rnndiag.recorder.need.layer_output import (
    Call,
    LayerOutput,
    LayerPass,
    State,
    next_of,
    require_carried,
)


class StepOutput(LayerOutput):
    """A module that takes (input, state) and returns the new state, or (output, state): call t is step t.

    The loss may read every tensor that it returns, so all of them together are the outputs.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__(name, module)
        self._arguments: Arguments | None = None
        self._state = Shape(None, ())

    def read(self, calls: list[Call]) -> LayerPass:
        """Stack the calls along time."""
        if len(calls) < 2:
            raise NotSupported(
                f"{self.name or 'The model'}, a {type(self.module).__name__}, ran once, so it is no step of a loop.",
                "Name an nn.RNN, nn.LSTM or nn.GRU, one of their cells, or a module that a loop calls at every step "
                "with an input and a state.",
            )
        asked = [Arguments.read(self.module, *call.arguments, self.name) for call in calls]
        # of the second call: the first may be given None for the state
        shape = Shape.of(asked[1].state)
        if shape is None:
            raise NotSupported(
                f"{self.name} was called with a {type(asked[1].state).__name__} for a state.",
                "Give it a tensor or a tuple of tensors, batch first.",
            )
        x = asked[1].inputs
        if x.dim() < 2 or not x.is_floating_point():
            raise NotSupported(
                f"{self.name} takes an input of {x.dtype} and shape {tuple(x.shape)}.",
                "Give it rows of floating-point numbers, one a sequence: embed tokens before the step.",
            )
        self._arguments, self._state = asked[1], shape
        returned = [read_returned(call.returned, shape, self.name) for call in calls]
        require_carried(
            self.name,
            [tensors_of(one.state) for one in returned],
            [tensors_of(one.state) for one in asked[1:]],
        )
        inputs = torch.stack([flat(one.inputs) for one in asked], 1).detach()
        outputs = torch.stack([_joined(one) for one in returned], 1).detach()
        history = tuple(
            torch.stack([flat(part) for part in parts]).detach().unsqueeze(1)
            for parts in zip(*(tensors_of(one.state) for one in returned), strict=True)
        )
        states = torch.cat([part[:, 0].transpose(0, 1) for part in history], -1)
        lengths = torch.full((len(inputs),), len(calls), device=inputs.device)
        return LayerPass(inputs, outputs, states, history, lengths, tuple(calls))

    def _steps(self, inputs: Tensor, start: State | None) -> Iterator[Returned]:
        asked, shape = self._arguments, self._state
        assert asked is not None
        like = tensors_of(asked.state)
        parts = (
            tuple(part.new_zeros(len(inputs), flat(part).shape[1]) for part in like)
            if start is None
            else tuple(part[0] for part in start)
        )
        with torch.no_grad():
            for x in inputs.unbind(1):
                args, kwargs = asked.replaced(
                    x.reshape(len(x), *asked.inputs.shape[1:]), shape.build(parts)
                )
                returned = read_returned(self.module(*args, **kwargs), shape, self.name)
                parts = tuple(flat(part) for part in tensors_of(returned.state))
                yield returned

    def hidden_states(self, inputs: Tensor, start: State | None) -> Tensor:
        """All parts of the state (N, T, H) after every step."""
        steps = [tensors_of(one.state) for one in self._steps(inputs, start)]
        return torch.stack([torch.cat([flat(part) for part in one], -1) for one in steps], 1)

    def last_output(self, inputs: Tensor, start: State | None) -> Tensor:
        """The output (N, H) after the last step."""
        *_, last = self._steps(inputs, start)
        return _joined(last)

    def forward_returning(self, seen: LayerPass, outputs: Tensor) -> Callable[..., Any]:
        """A replacement forward that answers the t-th call with the outputs of step t."""
        steps = iter(range(len(seen.calls)))

        def forward(*_args: Any, **_kwargs: Any) -> Any:
            t = next_of(steps, self.name)
            before = read_returned(seen.calls[t].returned, self._state, self.name)
            sizes = [flat(part).shape[1] for part in before.tensors]
            parts = outputs[:, t].split(sizes, -1)
            given = [
                part.reshape(old.shape) for part, old in zip(parts, before.tensors, strict=True)
            ]
            state = self._state.build(tuple(given[: len(self._state.sizes)]))
            if before.state is seen.calls[t].returned:
                return state
            # (output, state), where the output may be a part of the state.
            output = seen.calls[t].returned[0]
            places = [k for k, old in enumerate(before.tensors) if old is output]
            return (given[places[0]] if places else output), state

        return forward


def _joined(returned: Returned) -> Tensor:
    """All tensors returned by a step, concatenated, (B, sum of sizes)."""
    return torch.cat([flat(part) for part in returned.tensors], -1)
