"""Keeps one kernel call: aliases what goes in, hooks what comes out, and copies the weights."""

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
    """One recurrent module whose forward is running, and what it was called with."""

    owner: str
    module: Any
    grad: bool
    sure: bool = True
    asked: Any = None
    """What a step module was called with."""
    unsorted: Tensor | None = None
    """Of the PackedSequence it was called with."""
    hx: State | None = None
    """As the user gave it, where the module puts it into another order of sequences."""
    last: Call | None = None
    given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    """Arguments of the module's call."""


@dataclass(frozen=True)
class Prepared:
    """A kernel call before it ran: what is kept of it, and its arguments as the kernel gets them."""

    asked: KernelCall
    call: Call
    inputs: Tensor
    hx: State
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass
class KernelCalls:
    """Keeps calls of kernels: one half before the kernel runs, the other half after it."""

    log: CallLog

    def before(
        self,
        frame: KernelFrame,
        asked: KernelCall,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Prepared:
        """Its inputs and initial state become aliases whose gradients are this call's alone.

        A sequence kernel reads h_0 once, and x once in one direction; in two directions, and in a kernel of one step,
        an alias would change the order in which gradients add up.
        """
        call = self._new_call(frame, asked)
        inputs, hx, plan = asked.inputs, asked.hx, asked.plan
        if plan.one_step:
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
        """Keep the call, if gradients can flow back through it; what the kernel returned, under names of its own."""
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
    """A name of its own for a returned tensor that another one is computed from: its gradient is the users' alone."""
    if not part.requires_grad:
        return part
    return stand_in(part)


def _own_names(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Where a kernel is made of several operations, h is computed from the later parts."""
    h, *rest = outputs
    return (h, *(part if part.grad_fn is h.grad_fn else out_alias(part) for part in rest))


def _name(frame: KernelFrame, key: str, index: int, plan: Any) -> str:
    """The parameter's usual name in the model."""
    if plan.one_step:
        name = key
    else:
        layer, direction = divmod(index, plan.directions)
        name = f"{key}_l{layer}" + ("_reverse" if direction else "")
    return f"{frame.owner}.{name}" if frame.owner else name
