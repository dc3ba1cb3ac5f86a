"""Keeps one kernel call: aliases what goes in, hooks what comes out, and copies the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.recorder.capture.backward_pass import Tasks, running_task
from rnndiag.recorder.capture.call import (
    OUTPUT,
    Autocast,
    Call,
    Keep,
    alias_in,
    keep_slot,
    keep_under,
    watch_output,
)
from rnndiag.recorder.capture.kernels import KernelCall
from rnndiag.recorder.capture.links import Ends, kind_of_start, mark
from rnndiag.recorder.capture.weights import Weights
from rnndiag.recorder.faults import Faults


@dataclass
class Frame:
    """One recurrent module whose forward is running, and what it was called with."""

    owner: str
    module: Any
    grad: bool
    unsorted: Tensor | None = None
    """Of the PackedSequence it was called with."""
    hx: State | None = None
    """As the user gave it, where the module puts it into another order of sequences."""
    last: Call | None = None


@dataclass
class CallLog:
    """The calls seen since the recorder was armed."""

    tasks: Tasks
    weights: Weights
    faults: Faults
    calls: list[Call] = field(default_factory=list)
    ends: Ends = field(default_factory=Ends)

    def clear(self) -> None:
        """Forget all calls."""
        self.calls.clear()
        self.ends.clear()

    def run(self, frame: Frame, asked: KernelCall) -> tuple[Tensor, ...]:
        """Run the kernel as asked and keep the call, if gradients can flow back through it."""
        seen: list[tuple[Call, Tensor, State]] = []
        with self.faults.guard("watching a recurrent call"):
            seen.append(self._before(frame, asked))
        if not seen:
            return asked.run(asked.inputs, asked.hx)
        call, inputs, hx = seen[0]
        outputs = asked.run(inputs, hx)
        if any(output.requires_grad for output in outputs):
            if call.plan.one_step:
                outputs = (outputs[0], *(_out_alias(part, outputs[0]) for part in outputs[1:]))
            with self.faults.guard("watching a recurrent call"):
                self._after(call, outputs)
                frame.last = call
        return outputs

    def _before(self, frame: Frame, asked: KernelCall) -> tuple[Call, Tensor, State]:
        """The call so far, and aliases of its inputs and initial state, whose gradients are this call's alone."""
        call = self._new_call(frame, asked)
        inputs = asked.inputs
        if asked.plan.directions == 1:
            # in two directions the kernel reads x twice: an alias would change the order in which gradients add up
            inputs = alias_in(inputs, keep_under(self.tasks, call.input_gradients))
        hx = tuple(
            alias_in(part, keep_slot(self.tasks, call.hx_gradients, k, _same))
            for k, part in enumerate(asked.hx)
        )
        return call, inputs, hx

    def _new_call(self, frame: Frame, asked: KernelCall) -> Call:
        plan = asked.plan
        if plan.packed:
            plan = replace(plan, unsorted=frame.unsorted)
        given = asked.hx if frame.hx is None else frame.hx
        links = self.ends.links(given, frame.owner, plan.one_step)
        return Call(
            number=len(self.calls),
            owner=frame.owner,
            plan=plan,
            inputs=asked.inputs.detach(),
            hx=tuple(part.detach() if links else part.detach().clone() for part in asked.hx),
            hx_kind=() if links else tuple(kind_of_start(part) for part in given),
            weights=tuple(
                {
                    key: (
                        weight := self.weights.watch(value, _name(frame, key, index, plan)),
                        weight.snapshot(),
                    )
                    for key, value in group.items()
                }
                for index, group in enumerate(asked.weights)
            ),
            autocast=Autocast.current(asked.inputs.device.type),
            random_state=torch.get_rng_state() if plan.dropout > 0.0 else None,
            links=links,
            in_backward=running_task() >= 0,
        )

    def _after(self, call: Call, outputs: tuple[Tensor, ...]) -> None:
        first = 1 if call.plan.one_step else OUTPUT
        for slot, output in enumerate(outputs, first):
            call.outputs[slot] = output.detach()
            call.versions[slot] = output._version
            if call.plan.one_step:
                call.copies[slot] = output.detach().clone()
            if output.requires_grad:
                watch_output(output, self._keeper(call, slot))
                mark(output, call.number, slot)
        self.calls.append(call)
        self.ends.add(call)

    def _keeper(self, call: Call, slot: int) -> Callable[[Callable[[Tensor], Tensor]], Keep]:
        return lambda shape: keep_slot(self.tasks, call.output_gradients, slot, shape)


def _same(gradient: Tensor) -> Tensor:
    return gradient


def _out_alias(part: Tensor, h: Tensor) -> Tensor:
    """A later part that h was computed from would collect h's gradient too: hand out a name of its own instead."""
    if not part.requires_grad or part.grad_fn is h.grad_fn:
        return part
    alias: Tensor = torch.ops.aten._unsafe_view(part, part.shape)
    return alias


def _name(frame: Frame, key: str, index: int, plan: Any) -> str:
    """The parameter's usual name in the model."""
    if plan.one_step:
        name = key
    else:
        layer, direction = divmod(index, plan.directions)
        name = f"{key}_l{layer}" + ("_reverse" if direction else "")
    return f"{frame.owner}.{name}" if frame.owner else name
