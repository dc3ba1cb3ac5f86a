"""Records the calls of a loop as marks on the graph: outputs of step modules, and results of `rnndiag.carry`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rnndiag.engine.segments.marks import Edge, Mark, batch_rows, has_hook, stand_in
from rnndiag.recorder.capture.backward_pass import running_task
from rnndiag.recorder.capture.call import Call
from rnndiag.recorder.nested import map_tensors, tensors_in

_ONCE = (
    "it was called once, so there is no step from one state to the next: call it at the head of a loop over time (a "
    "parallel scan in chunks, with carry at their boundaries)"
)


@dataclass(eq=False)
class LoopCall:
    """One call of a step module, or of `carry`."""

    owner: str
    """Qualified name of the module, or the name of the `carry`."""
    number: int
    marks: tuple[Mark, ...]
    inputs: tuple[Tensor, ...]
    """The tensors of the first argument."""
    others: tuple[Tensor, ...]
    """The tensors of all other arguments, which include the state unless a module takes nothing else."""
    returned: tuple[Tensor, ...]
    module: nn.Module | None = None
    """The module called; None: a call of `carry`."""
    record: Call | None = None
    """The record for the replay, if the call can be replayed."""
    steps: int = 1
    """Time steps of the call; more than 1 for a sequence kernel."""
    autocast: bool = False
    """Whether the call was made under autocast."""
    name: str = ""
    """Name of the recurrence; empty: that of `owner`."""

    @property
    def has_hooks(self) -> bool:
        """Whether the user put a hook on a tensor that the call took or returned."""
        return any(has_hook(tensor) for tensor in (*self.others, *self.returned))


@dataclass
class LoopCalls:
    """All calls since the recorder was armed, in order."""

    calls: list[LoopCall] = field(default_factory=list)
    unseen: dict[str, str] = field(default_factory=dict)
    """Name of a `carry` -> why its state could not be marked."""
    _places: set[Edge] = field(default_factory=set)
    _count: int = 0

    def carried(self, site: str, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """Record a call of `carry`; returns the state with a graph node of its own for every tensor."""
        if running_task() >= 0 or _inside_a_transform() or torch.compiler.is_compiling():
            return state
        marks: list[Mark] = []
        returned: list[Tensor] = []
        known: dict[int, Tensor] = {}

        def mark(tensor: Tensor, path: str) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            own = known.get(id(tensor))
            if own is None:
                # one alias for a tensor that occurs several times: with two, gradients would add up in another order
                own = known[id(tensor)] = stand_in(tensor)
                marks.append(Mark.on(own, path))
                returned.append(own)
            return own

        given = tensors_in(state)
        if not given and any(part is not None for part in state):
            kinds = ", ".join(type(part).__name__ for part in state)
            self.unseen[f"carry {site!r}"] = (
                f"it was given {kinds}, in which it finds no tensor: give it the tensors, or tuples, dicts or "
                "dataclasses of them"
            )
        changed = tuple(map_tensors(part, mark, str(k)) for k, part in enumerate(state))
        call = LoopCall(site, self._count, tuple(marks), (), tuple(given), tuple(returned))
        call.autocast = _autocast(given)
        self._add(call)
        return changed

    def module_called(
        self,
        owner: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        record: Call | None,
    ) -> Any:
        """Record a call of a step module; returns its output, with new graph nodes for tensors that need one."""
        if running_task() >= 0:
            return output
        sequence = module if isinstance(module, nn.RNNBase) else None
        own = {id(tensor): tensor for tensor in tensors_in(output) if tensor.requires_grad}
        if not own:
            return output
        swaps = {
            key: self._with_own_node(tensor, sequence is not None) for key, tensor in own.items()
        }
        marks: list[Mark] = []
        returned: list[Tensor] = []

        def mark(tensor: Tensor, path: str) -> Tensor:
            new = swaps.get(id(tensor))
            if new is None:
                return tensor
            if not any(new is known for known in returned):
                returned.append(new)
                part, rows = _of_sequence(sequence, path) if sequence else (path or "0", batch_rows)
                marks.append(Mark.on(new, part, rows))
            return new

        changed = map_tensors(output, mark)
        steps = 1
        if record is not None and not record.plan.one_step:
            steps = 0 if record.plan.packed else record.steps
        first, rest = tensors_in(args[:1]), tensors_in((args[1:], kwargs))
        call = LoopCall(
            *(owner, self._count, tuple(marks), tuple(first), tuple(rest), tuple(returned)),
            module=module,
            record=record,
            steps=steps,
            autocast=_autocast(returned),
            name=_sequence_name(owner, sequence) if sequence else "",
        )
        self._add(call)
        return changed

    def _with_own_node(self, tensor: Tensor, sequence: bool) -> Tensor:
        """The tensor, or an alias if its node has other users or marks."""
        place = (tensor.grad_fn, tensor.output_nr)
        if tensor.grad_fn is None or place in self._places:
            return stand_in(tensor)
        # a write in place replaces a view's node; outputs of a sequence stay views, so that writes are detected
        return stand_in(tensor) if tensor._is_view() and not sequence else tensor

    def _add(self, call: LoopCall) -> None:
        self._count += 1
        self._places.update(mark.place for mark in call.marks)
        self.calls.append(call)

    def alone(self, reached: Iterable[LoopCall]) -> dict[str, str]:
        """Name of a `carry` that makes no loop in a backward pass -> why. reached: the calls that the pass goes
        through."""
        times = Counter(call.owner for call in self.calls if call.module is None)
        once = {
            f"carry {call.owner!r}": _ONCE
            for call in reached
            if call.module is None and call.marks and times[call.owner] == 1
        }
        return {**self.unseen, **once}

    def drop(self, calls: Iterable[LoopCall]) -> None:
        """Drop calls whose graph was freed."""
        gone = set(map(id, calls))
        self.calls = [call for call in self.calls if id(call) not in gone]

    def clear(self) -> None:
        """Drop all calls."""
        self.calls.clear()
        self.unseen.clear()
        self._places.clear()


def _of_sequence(module: nn.RNNBase, path: str) -> tuple[str, Callable[[Tensor], Tensor]]:
    """The part of the state that an output of nn.RNN, nn.LSTM or nn.GRU over one step is, as (B, layers * S)."""
    part = {"0": "h", "1": "h", "1.0": "h", "1.1": "c"}.get(path, path)
    layers, directions = module.num_layers, 2 if module.bidirectional else 1

    def of_state(gradient: Tensor) -> Tensor:
        if gradient.dim() == 2:  # no batch
            return gradient.reshape(1, -1)
        return gradient.transpose(0, 1).flatten(1)

    def of_output(gradient: Tensor) -> Tensor:
        """From (T = 1, B, S) or (B, 1, S) to the state of the top layer."""
        rows = gradient.reshape(-1, gradient.shape[-1])
        below = rows.new_zeros(len(rows), rows.shape[1] // directions * (layers - 1) * directions)
        return torch.cat([below, rows], 1)

    return part, of_output if path == "0" else of_state


def _sequence_name(owner: str, module: nn.RNNBase) -> str:
    if module.num_layers > 1:
        return owner or "rnn"
    return f"{owner}.l0" if owner else "l0"


def _autocast(tensors: Iterable[Tensor]) -> bool:
    return any(torch.is_autocast_enabled(tensor.device.type) for tensor in tensors)


def _inside_a_transform() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None
