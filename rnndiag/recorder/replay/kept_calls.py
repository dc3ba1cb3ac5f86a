"""Runs the calls again that the black box kept of a step, under the capture, on copies that nobody has hooks on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.capture import BackwardPass, Capture
from rnndiag.recorder.faults import Faults

_CHANGED = "its inputs were changed in place after the call"


@dataclass(eq=False, slots=True)
class KeptTensors:
    """One call of a recurrent module."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    versions: tuple[int, ...]
    random_state: Tensor | None
    """Of the CPU's generator before the call, where the call drew dropout masks."""
    autocast: torch.dtype | None
    gradients: dict[int, Tensor] = field(default_factory=dict)
    """By number of the output tensor."""

    @property
    def changed(self) -> bool:
        """Whether an argument was written to since."""
        return self.versions != versions_of(self.args, self.kwargs)


def replay(
    calls: Iterable[KeptTensors],
    gradients: Mapping[str, Tensor],
    faults: Faults,
    scale: float = 1.0,
) -> list[BackwardPass]:
    """The kept calls, run again, as backward passes.

    `gradients`: the true ones of parameters, to prove them by. What came to the outputs is `scale` times too large.
    """
    calls = [call for call in calls if call.gradients]
    if not calls:
        return []
    copies = {call.name: _bare_copy(call.module) for call in calls}
    capture = Capture(_tree(copies), loss_scale=lambda: scale, faults=faults)
    capture.arm()
    try:
        device = next(iter(calls[0].gradients.values())).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            _run_again(calls, copies)
        passes = capture.take()
    finally:
        capture.disarm()
    notes = (_CHANGED,) if any(call.changed for call in calls) else ()
    return [
        replace(
            found,
            layer_runs=tuple(_with(run, gradients, notes) for run in found.layer_runs),
        )
        for found in passes
    ]


def _with(run: LayerRun, gradients: Mapping[str, Tensor], notes: tuple[str, ...]) -> LayerRun:
    true = {
        key: gradients[name].detach()
        for key, name in run.parameters.items()
        if key in run.gradients and name in gradients
    }
    return replace(run, gradients={**run.gradients, **true}, notes=(*run.notes, *notes))


def _run_again(calls: list[KeptTensors], copies: Mapping[str, nn.Module]) -> None:
    outputs: list[Tensor] = []
    arrived: list[Tensor] = []
    with torch.enable_grad():
        for call in calls:
            if call.random_state is not None:
                torch.set_rng_state(call.random_state)
            device = next(iter(call.gradients.values())).device.type
            with torch.autocast(device, dtype=call.autocast, enabled=call.autocast is not None):
                args, kwargs = _cut(call.args), _cut(dict(call.kwargs))
                found = list(tensors_in(copies[call.name](*args, **kwargs)))
            for number, gradient in call.gradients.items():
                outputs.append(found[number])
                arrived.append(gradient.detach())
        torch.autograd.backward(outputs, arrived)


def _cut(value: Any) -> Any:
    """The same arguments, cut off from the graph they came from; they take a gradient where they took one."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, PackedSequence):
        return value._replace(data=_cut(value.data))
    if isinstance(value, tuple | list):
        return type(value)(_cut(part) for part in value)
    if isinstance(value, dict):
        return {key: _cut(part) for key, part in value.items()}
    return value


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
    """How often each tensor among the arguments was written to."""
    tensors = tensors_in(args)
    if kwargs:
        tensors = [*tensors, *tensors_in(list(kwargs.values()))]
    return tuple([0 if tensor.is_inference() else tensor._version for tensor in tensors])


def autocast_of(tensor: Tensor) -> torch.dtype | None:
    """The precision of the autocast that holds now for a tensor's device; None without one."""
    if not _any_autocast():
        return None
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


_any_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)
"""One question for all devices, where this torch knows it."""


def _bare_copy(module: nn.Module) -> nn.Module:
    """A copy without anybody's hooks."""
    copied = copy.deepcopy(module)
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
    return copied


def _tree(modules: Mapping[str, nn.Module]) -> nn.Module:
    """A module that holds these under their qualified names."""
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
