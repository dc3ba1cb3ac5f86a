"""Stores the calls made since the recorder was armed, and hooks their outputs and inputs for gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from rnndiag.recorder.capture.backward_pass import Tasks
from rnndiag.recorder.capture.call import (
    OUTPUT,
    Call,
    Keep,
    MakeKeep,
    Shaping,
    keep_slot,
    watch_output,
)
from rnndiag.recorder.capture.engine_entry import measuring
from rnndiag.recorder.capture.input_gradients import InputGradients
from rnndiag.recorder.capture.node_tags import mark
from rnndiag.recorder.capture.state_origin import Ends
from rnndiag.recorder.capture.step_signature import flat
from rnndiag.recorder.capture.weights import Weight, Weights

_INPUT = -1


@dataclass
class CallLog:
    """The calls in order, and the memory addresses of their final states."""

    tasks: Tasks
    weights: Weights
    calls: list[Call] = field(default_factory=list)
    ends: Ends = field(default_factory=Ends)
    _arrivals: InputGradients = field(default_factory=InputGradients)
    _count: int = 0

    def clear(self) -> None:
        """Drop all calls. Hooks on a graph that is still alive refer to them, so their tensors are released too."""
        for call in self.calls:
            call.release()
        self.calls.clear()
        self.ends.clear()

    def clear_spent(self) -> None:
        """Drop the calls whose graph was freed."""
        kept = [call for call in self.calls if not call.spent]
        for call in self.calls:
            if call.spent:
                call.release()
        self.calls[:] = kept
        self.ends.clear()
        for call in kept:
            self.ends.add(call)

    def next_number(self) -> int:
        """A new unique number for a call."""
        self._count += 1
        return self._count - 1

    def spend(self) -> None:
        """Mark the calls that received gradients as spent: their graph was freed."""
        for call in self.calls:
            call.spent |= bool(call.output_gradients)

    def forget_gradients(self) -> None:
        """Drop the gradients but keep the calls, in which later calls may find the origin of their states."""
        for call in self.calls:
            call.output_gradients.clear()
            call.input_gradients.clear()
            call.hx_gradients.clear()

    def weight(self, tensor: Tensor, name: str) -> tuple[Weight, Tensor]:
        """The record of a weight, and a copy of its current value."""
        found = self.weights.watch(tensor, name)
        return found, found.snapshot()

    def keep(self, call: Call, outputs: Iterable[Tensor]) -> None:
        """Add a call, with hooks on its outputs: (y, h_n[, c_n]), or the state parts after one step."""
        one_step = call.plan.one_step
        for slot, output in enumerate(outputs, 1 if one_step else OUTPUT):
            value = flat(output.detach()) if one_step else output.detach()
            call.outputs[slot] = value
            call.versions[slot] = value._version
            if one_step or (slot != OUTPUT and not call.plan.packed and call.steps == 1):
                call.copies[slot] = value.clone()
            if output.requires_grad:
                watch_output(output, self._keeps(call, slot), self.tasks.guard)
                mark(output, call.number, slot)
        self.calls.append(call)
        self.ends.add(call)

    def _keeps(self, call: Call, slot: int) -> MakeKeep:
        def make(shape: Shaping) -> Keep:
            if not call.plan.one_step:
                return keep_slot(self.tasks, call.output_gradients, slot, shape)
            return keep_slot(
                self.tasks, call.output_gradients, slot, lambda g: flat(shape(g)).clone()
            )

        return make

    def watch_inputs(
        self,
        call: Call,
        outputs: Iterable[Tensor],
        inputs: Tensor,
        state: Mapping[int, Tensor],
        same: Hashable = None,
    ) -> None:
        """Store the gradients that a call of one step sends to its input and to its state's parts.

        same: key shared by calls with identical graphs, if known.
        """

        def arrived(key: int, gradient: Tensor) -> None:
            if measuring():
                return
            # a copy: a leaf's .grad may take the gradient itself over
            task, gradient = self.tasks.enter(), gradient.detach().clone()
            if key == _INPUT:
                known = call.input_gradients.get(task)
                call.input_gradients[task] = gradient if known is None else known + gradient
                return
            parts = call.hx_gradients.setdefault(task, {})
            gradient = flat(gradient)
            parts[key] = gradient if key not in parts else parts[key] + gradient

        targets = {_INPUT: inputs, **state}
        if len({id(tensor) for tensor in targets.values()}) < len(targets):
            known = Counter(map(id, targets.values()))
            targets = {key: tensor for key, tensor in targets.items() if known[id(tensor)] == 1}
        self._arrivals.watch(outputs, targets, arrived, self.tasks.guard, same)
