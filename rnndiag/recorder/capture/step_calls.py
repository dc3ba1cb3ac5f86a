"""Records one call of a user's step module: arguments, results, and its share of every gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnndiag.errors import CaptureFault
from rnndiag.recorder.capture.backward_pass import running_task
from rnndiag.recorder.capture.call import Autocast, Call
from rnndiag.recorder.capture.call_log import CallLog
from rnndiag.recorder.capture.kernel_calls import KernelFrame, out_alias
from rnndiag.recorder.capture.kernels import Plan
from rnndiag.recorder.capture.state_origin import kind_of_start, start_of
from rnndiag.recorder.capture.step_cell import StepCell, bound_cell, cell_as_it_is
from rnndiag.recorder.capture.step_signature import (
    Arguments,
    Returned,
    Shape,
    flat,
    read_returned,
    tensors_of,
)

_RANDOM = "its step draws random numbers (dropout, say), which a replay cannot draw again"
_KEEPS = "its step keeps a tensor in an attribute of its module, which a replay does not have"
_WRITTEN = "its step writes to its input or state in place"
_MIXES = "its step normalises over the batch, so its sequences cannot be told apart"


@dataclass
class Asked:
    """The arguments of a step module before it runs."""

    arguments: Arguments
    random_state: Tensor
    versions: tuple[int, ...]
    kept: dict[tuple[int, str], int]
    """Attributes of the module and its children that hold tensors -> the tensors' ids."""
    given: Shape | None


@dataclass
class StepModules:
    """The step modules of a model: one cell per module and signature, so that its calls can be joined."""

    log: CallLog
    _cells: dict[Any, StepCell] = field(default_factory=dict)

    def before(self, frame: KernelFrame, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Asked:
        """Note the arguments of a step."""
        arguments = Arguments.read(frame.module, args, kwargs, frame.owner)
        given = None if arguments.state is None else Shape.of(arguments.state)
        if arguments.state is not None and given is None:
            raise CaptureFault(
                f"The state given to the step module {frame.owner!r} is neither a tensor nor a tuple of tensors.",
                "Give every part of the state as a tensor, batch first.",
            )
        return Asked(
            arguments, torch.get_rng_state(), _versions(arguments), _kept_in(frame.module), given
        )

    def after(self, frame: KernelFrame, asked: Asked, value: Any) -> Any:
        """Store the call; returns its result, with aliases for tensors that depend on one another."""
        returned = read_returned(value, asked.given, frame.owner)
        distinct = {id(tensor): tensor for tensor in returned.tensors}
        if not any(tensor.requires_grad for tensor in distinct.values()):
            return value
        aliases = distinct
        if len(distinct) > 1 or any(tensor._is_view() for tensor in distinct.values()):
            aliases = {key: out_alias(tensor) for key, tensor in distinct.items()}
        seen = Returned(
            _swapped(returned.state, aliases),
            None if returned.output is None else aliases[id(returned.output)],
        )
        call = self._new_call(frame, asked, seen)
        self.log.keep(call, seen.tensors)
        frame.last = call
        return _swapped(value, aliases)

    def clear(self) -> None:
        """Drop the cells made so far."""
        self._cells.clear()

    def _new_call(self, frame: KernelFrame, asked: Asked, returned: Returned) -> Call:
        shape = asked.given or Shape.of(returned.state)
        assert shape is not None
        found = self._cell(frame, asked.arguments, shape, returned)
        inputs = asked.arguments.inputs
        if asked.given is None:
            given = tuple(torch.zeros_like(flat(t.detach())) for t in tensors_of(returned.state))
        else:
            given = tuple(flat(part) for part in tensors_of(asked.arguments.state))
        loose = returned.tensors[len(given) :]
        links = self.log.ends.links(given, frame.owner, one_step=True)
        unseen = tuple(torch.zeros_like(flat(part.detach())) for part in loose)
        weights = {
            key: self.log.weight(value, f"{frame.owner}.{key}" if frame.owner else key)
            for key, value in found.parameters.items()
        }
        call = Call(
            number=self.log.next_number(),
            owner=frame.owner,
            plan=Plan(found.cell, frame.module, one_step=True),
            inputs=inputs.detach(),
            hx=start_of(given, links) + unseen,
            hx_kind=() if links else tuple(kind_of_start(part) for part in given),
            weights=(weights,),
            autocast=Autocast.current(inputs.device.type),
            links=links,
            loose=len(loose),
            sure=frame.sure,
            in_backward=running_task() >= 0,
        )
        call.refusal = _refusal(frame.module, asked)
        targets = dict(enumerate(() if asked.given is None else tensors_of(asked.arguments.state)))
        self.log.watch_inputs(call, returned.tensors, inputs, targets)
        return call

    def _cell(
        self, frame: KernelFrame, asked: Arguments, shape: Shape, returned: Returned
    ) -> StepCell:
        module: nn.Module = frame.module
        buffers = tuple((id(value), value._version) for value in module.buffers())
        others = tuple(repr(v) for v in asked.args[2:]) + tuple(sorted(map(repr, asked.kwargs)))
        key = (frame.owner, shape, returned.output is None, buffers, others, module.training)
        if key not in self._cells:
            bound = bound_cell(module, returned)
            self._cells[key] = bound or cell_as_it_is(module, asked, shape, returned, frame.owner)
        return self._cells[key]


def _refusal(module: nn.Module, asked: Asked) -> str:
    if not torch.equal(asked.random_state, torch.get_rng_state()):
        return _RANDOM
    if asked.versions != _versions(asked.arguments):
        return _WRITTEN
    if asked.kept != _kept_in(module):
        return _KEEPS
    if any(part.training for part in module.modules() if isinstance(part, _BatchNorm)):
        return _MIXES
    return ""


def _kept_in(module: nn.Module) -> dict[tuple[int, str], int]:
    return {
        (number, name): id(value)
        for number, part in enumerate(module.modules())
        for name, value in vars(part).items()
        if isinstance(value, Tensor)
    }


def _versions(asked: Arguments) -> tuple[int, ...]:
    given = () if asked.state is None else tensors_of(asked.state)
    return tuple(tensor._version for tensor in (asked.inputs, *given))


def _swapped(value: Any, aliases: Mapping[int, Tensor]) -> Any:
    """The same structure with every tensor replaced by its alias."""
    if isinstance(value, Tensor):
        return aliases.get(id(value), value)
    if type(value) in (tuple, list):
        return type(value)(_swapped(part, aliases) for part in value)
    return value
