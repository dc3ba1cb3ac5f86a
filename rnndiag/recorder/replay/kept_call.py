"""Calls of recurrent layers kept for rerunning under the capture, on copies of their modules.

The black box keeps references to the calls of the current step (`light_hooks`), whose weights have not changed yet. The
seams keep copies of the calls of earlier steps (`call_memory`), weights included. Both rerun them here on copies
without hooks, so that no code of the user is called twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnndiag.engine.cells import State
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.truncation.chains.seam_memory import without_gradients
from rnndiag.recorder.capture import BackwardPass, Capture
from rnndiag.recorder.faults import Faults
from rnndiag.store.layer_names import recurrence

_CHANGED = "its inputs were changed in place after the call"


@dataclass(eq=False, slots=True)
class KeptCall:
    """One call of a recurrent module and everything that its result depends on."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    random_state: Tensor | None
    """State of the CPU's random generator before the call, if the call drew dropout masks."""
    autocast: torch.dtype | None
    """The autocast precision during the call; None: no autocast."""
    versions: tuple[int, ...] = ()
    """Version counters of the arguments, if the arguments are not copies."""
    gradients: dict[int, Tensor] = field(default_factory=dict)
    """Number of the output tensor -> its gradient; empty: only the states are needed."""
    weights: Mapping[str, Tensor] | None = None
    """Copies of the weights; None: the module's weights have not changed since."""
    training: bool = True
    """The mode of the module, used if its weights are copies."""
    run: Callable[..., Any] | None = None
    """(module, *args, **kwargs): how to call the module; None: directly."""
    end: State = ()
    """The state that the call returned, parts (layers * directions, B, S_p)."""
    _layer_runs: Mapping[str, LayerRun] | None = None

    @property
    def changed(self) -> bool:
        """Whether an argument was written to since the call."""
        return self.versions != versions_of(self.args, self.kwargs)

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        weights = {} if self.weights is None else self.weights
        return sum(value.nbytes for value in (*self.inputs, *weights.values()))

    @property
    def inputs(self) -> Sequence[Tensor]:
        """All tensors among its arguments."""
        return [*tensors_in(self.args), *tensors_in(list(self.kwargs.values()))]

    @property
    def layer_runs(self) -> Mapping[str, LayerRun]:
        """Recurrence name -> layer run of the rerun call; empty if the rerun gave other results."""
        if self._layer_runs is None:
            passes, (returned,) = run_again([self])
            self._layer_runs = {}
            if all(map(near, self.end, state_of(returned[1]))):
                runs = [run for found in passes for run in found.layer_runs]
                self._layer_runs = {recurrence(run.name): without_gradients(run) for run in runs}
        return self._layer_runs

    def receive(self, number: int, gradient: Tensor) -> None:
        """Store a gradient of an output; several gradients of one output add up."""
        known = self.gradients.get(number)
        self.gradients[number] = gradient if known is None else known + gradient

    def copy_of_module(self) -> nn.Module:
        """A copy of the module as it was at the call, without hooks and gradients."""
        copied = copy.deepcopy(self.module)
        for part in copied.modules():
            for hooks in (
                part._forward_hooks,
                part._forward_pre_hooks,
                part._backward_hooks,
                part._backward_pre_hooks,
            ):
                hooks.clear()
        for parameter in copied.parameters():
            parameter.grad = None
        if self.weights is not None:
            copied.train(self.training).requires_grad_()
            with torch.no_grad():
                for name, value in copied.state_dict(keep_vars=True).items():
                    value.copy_(self.weights[name])
        return copied


def replay(
    calls: Sequence[KeptCall],
    gradients: Mapping[str, Tensor],
    faults: Faults,
    scale: float = 1.0,
) -> list[BackwardPass]:
    """The kept calls of a step as backward passes.

    Args:
        calls: Those that no gradient came back to are left out.
        gradients: The true gradients of parameters, to prove the calls by.
        faults: Takes the faults of the capture.
        scale: What came back to the outputs is this many times too large.
    """
    calls = [call for call in calls if call.gradients]
    if not calls:
        return []
    passes, _ = run_again(calls, faults, scale)
    notes = (_CHANGED,) if any(call.changed for call in calls) else ()
    return [
        replace(found, layer_runs=tuple(_with(run, gradients, notes) for run in found.layer_runs))
        for found in passes
    ]


def _with(run: LayerRun, gradients: Mapping[str, Tensor], notes: tuple[str, ...]) -> LayerRun:
    true = {
        key: gradients[name].detach()
        for key, name in run.parameters.items()
        if key in run.gradients and name in gradients
    }
    return replace(run, gradients={**run.gradients, **true}, notes=(*run.notes, *notes))


def run_again(
    calls: Sequence[KeptCall],
    faults: Faults | None = None,
    scale: float = 1.0,
    independent: bool | None = None,
) -> tuple[tuple[BackwardPass, ...], list[Any]]:
    """Rerun calls, forward and backward, under the capture.

    Args:
        calls: In their order; calls of one module share a copy of it.
        faults: Takes the faults of the capture; None: they are raised.
        scale: The loss scale that is still in the kept gradients.
        independent: Whether the loss is a sum over samples, where a person said so: the kept gradients do not show it.

    Returns:
        The backward passes, and what each call returned.
    """
    copies = {call.name: call.copy_of_module() for call in calls}
    capture = Capture(_tree(copies), loss_scale=lambda: scale, faults=faults)
    capture.independent = independent
    device = calls[0].inputs[0].device
    returned: list[Any] = []
    outputs: list[Tensor] = []
    gradients: list[Tensor] = []
    capture.arm()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
            for call in calls:
                if call.random_state is not None:
                    torch.set_rng_state(call.random_state)
                on = call.autocast is not None
                with torch.autocast(device.type, dtype=call.autocast, enabled=on):
                    args, kwargs = _cut(call.args), _cut(dict(call.kwargs))
                    copy = copies[call.name]
                    ran = copy(*args, **kwargs) if call.run is None else call.run(copy, *args)
                    returned.append(ran)
                found = tensors_in(returned[-1])
                for number, gradient in (call.gradients or _zeros(found)).items():
                    outputs.append(found[number])
                    gradients.append(gradient.detach())
            torch.autograd.backward(outputs, gradients)
        return capture.take(), returned
    finally:
        capture.disarm()


def _zeros(outputs: Sequence[Tensor]) -> dict[int, Tensor]:
    """Zero gradients for the outputs: the capture only sees calls that a backward pass goes through."""
    return {k: torch.zeros_like(out) for k, out in enumerate(outputs) if out.requires_grad}


def near(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal up to rounding: a GPU kernel may add up in another order each time."""
    return torch.allclose(one.to(other.dtype), other, rtol=1e-4, atol=1e-6)


def state_of(value: Any) -> State:
    """h, or (h, c), as a tuple; empty for None."""
    if isinstance(value, Tensor):
        return (value,)
    return tuple(value) if isinstance(value, tuple | list) else ()


def tensors_in(value: Any) -> Sequence[Tensor]:
    """All tensors of nested tuples and lists, in order; of a packed sequence its data."""
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, PackedSequence):
        return (value.data,)
    if not isinstance(value, tuple | list):
        return ()
    if len(value) == 1:
        return tensors_in(value[0])
    return [tensor for part in value for tensor in tensors_in(part)]


def versions_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """The version counters of all tensors among the arguments, which count writes in place."""
    tensors = tensors_in(args)
    if kwargs:
        tensors = [*tensors, *tensors_in(list(kwargs.values()))]
    return tuple([0 if tensor.is_inference() else tensor._version for tensor in tensors])


def autocast_of(tensor: Tensor) -> torch.dtype | None:
    """The current autocast precision on a tensor's device; None without autocast."""
    if not _any_autocast():
        return None
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


_any_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)
"""Whether autocast is on for any device; always True if this torch version cannot tell."""


def copied(value: Any) -> Any:
    """Copies of the arguments without a graph."""
    return mapped(value, lambda tensor: tensor.detach().clone())


def _cut(value: Any) -> Any:
    """The arguments detached from their graph; they require a gradient if they did before."""
    return mapped(value, lambda tensor: tensor.detach().requires_grad_(tensor.requires_grad))


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nested arguments with every tensor changed."""
    if isinstance(value, PackedSequence):
        return value._replace(data=change(value.data))
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(mapped(part, change) for part in value)
    if isinstance(value, dict):
        return {key: mapped(part, change) for key, part in value.items()}
    return value


def _tree(modules: Mapping[str, nn.Module]) -> nn.Module:
    """A module that holds the given ones under their qualified names."""
    root = nn.Module()
    for name, module in modules.items():
        if not name:
            return module
        *path, last = name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        place.add_module(last, module)
    return root
