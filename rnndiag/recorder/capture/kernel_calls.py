"""Records one kernel call: aliases its inputs, hooks its outputs, and copies the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.segments.marks import stand_in
from rnndiag.recorder.capture.backward_pass import running_task
from rnndiag.recorder.capture.call import (
    Autocast,
    Call,
    alias_in,
    keep_slot,
    keep_under,
)
from rnndiag.recorder.capture.call_log import CallLog
from rnndiag.recorder.capture.kernels import KernelCall
from rnndiag.recorder.capture.stack_replay import OTHER_MASKS, tells_masks
from rnndiag.recorder.capture.state_origin import kind_of_start, start_of


@dataclass
class KernelFrame:
    """The arguments of a recurrent module whose forward is running."""

    owner: str
    module: Any
    grad: bool
    sure: bool = True
    asked: Any = None
    """The arguments of a step module."""
    unsorted: Tensor | None = None
    """`unsorted_indices` of the PackedSequence argument."""
    hx: State | None = None
    """The initial state in the user's order, if the module reorders sequences."""
    last: Call | None = None
    given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    """Arguments of the module's call."""


@dataclass(frozen=True)
class Prepared:
    """A kernel call before it runs: its record so far, and the arguments to pass to the kernel."""

    asked: KernelCall
    call: Call
    inputs: Tensor
    hx: State
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass
class KernelCalls:
    """Records kernel calls: `before` the kernel runs and `after` it."""

    log: CallLog

    def before(
        self,
        frame: KernelFrame,
        asked: KernelCall,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Prepared:
        """Replace inputs and initial state by aliases whose gradients are those of this call alone.

        A sequence kernel reads h_0 once, and x once in one direction. In two directions, and in a kernel of one step,
        an alias would change the order in which gradients add up, so none is made.
        """
        call = self._new_call(frame, asked)
        inputs, hx, plan = asked.inputs, asked.hx, asked.plan
        if plan.one_step:
            # One tensor as input and as state: give the input a graph edge of its own.
            if any(inputs is part for part in hx):
                inputs = inputs.view_as(inputs)
        else:
            if plan.directions == 1:
                inputs = alias_in(inputs, keep_under(self.log.tasks, call.input_gradients))
            hx = tuple(
                alias_in(part, keep_slot(self.log.tasks, call.hx_gradients, k, torch.clone))
                for k, part in enumerate(hx)
            )
        args, kwargs = asked.replaced(args, kwargs, inputs, hx)
        return Prepared(asked, call, inputs, hx, args, kwargs)

    def after(self, frame: KernelFrame, prepared: Prepared, returned: Any) -> Any:
        """Store the call if gradients can flow back through it; returns the kernel's outputs, aliased."""
        outputs = tuple(returned) if isinstance(returned, (tuple, list)) else (returned,)
        if not any(output.requires_grad for output in outputs):
            return returned
        asked, call = prepared.asked, prepared.call
        if call.plan.one_step:
            outputs = _own_names(outputs)
            trained = tuple(w.requires_grad for w in asked.weights[0].values())
            state = dict(enumerate(prepared.hx))
            same = (call.plan.kernel, trained)
            self.log.watch_inputs(call, outputs, prepared.inputs, state, same)
        self.log.keep(call, outputs)
        frame.last = call
        return outputs if isinstance(returned, (tuple, list)) else outputs[0]

    def _new_call(self, frame: KernelFrame, asked: KernelCall) -> Call:
        plan, log = asked.plan, self.log
        if plan.packed:
            plan = replace(plan, unsorted=frame.unsorted)
        drops, known = plan.dropout > 0.0, tells_masks(asked.inputs.device)
        given = asked.hx if frame.hx is None else frame.hx
        links = log.ends.links(given, frame.owner, plan.one_step)
        return Call(
            number=log.next_number(),
            owner=frame.owner,
            plan=plan,
            inputs=asked.inputs.detach(),
            hx=start_of(asked.hx, links),
            hx_kind=() if links else tuple(kind_of_start(part) for part in given),
            weights=tuple(
                {
                    key: log.weight(value, _name(frame, key, index, plan))
                    for key, value in group.items()
                }
                for index, group in enumerate(asked.weights)
            ),
            autocast=Autocast.current(asked.inputs.device.type),
            random_state=torch.get_rng_state() if drops and known else None,
            links=links,
            in_backward=running_task() >= 0,
            notes=[OTHER_MASKS] if drops and not known else [],
            refusal="" if asked.hx[0].numel() else "it was called without a single sequence",
        )


def out_alias(part: Tensor) -> Tensor:
    """An alias of a returned tensor that another output is computed from, so that its gradient excludes that output."""
    if not part.requires_grad:
        return part
    return stand_in(part)


def _own_names(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Alias the outputs of kernels made of several operations, where h is computed from the later parts."""
    h, *rest = outputs
    return (h, *(part if part.grad_fn is h.grad_fn else out_alias(part) for part in rest))


def _name(frame: KernelFrame, key: str, index: int, plan: Any) -> str:
    """The conventional name of a parameter in the model."""
    if plan.one_step:
        name = key
    else:
        layer, direction = divmod(index, plan.directions)
        name = f"{key}_l{layer}" + ("_reverse" if direction else "")
    return f"{frame.owner}.{name}" if frame.owner else name
