"""What the black box keeps of every step: references to what goes into recurrent layers and to the gradient that comes.

Nothing is copied and no kernel is watched: two Python hooks a call, and one a tensor that comes out. After an accident
the calls are run once more on copies of the modules, which have no hooks of anyone, under the capture: the weights have
not moved yet, so these are the very states and gradients of the step. Cells in Python loops are not kept: a hook a time
step would cost too much.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle, unserializable_hook

from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.capture import BackwardPass, Capture
from rnndiag.recorder.capture.hook import ModuleHook
from rnndiag.recorder.faults import Faults

_CHANGED = "its inputs were changed in place after the call"


@dataclass(eq=False)
class Kept:
    """One call of a recurrent module."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    versions: tuple[int, ...]
    random_state: Tensor | None
    autocast: torch.dtype | None
    gradients: dict[int, Tensor] = field(default_factory=dict)
    """By number of the output tensor."""

    @property
    def changed(self) -> bool:
        """Whether an argument was written to since."""
        return self.versions != _versions(self.args, self.kwargs)


class Vigil:
    """Light hooks on all fused recurrent modules of a model; they keep something while `awake`."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._handles: list[RemovableHandle] = []
        self._modules: dict[str, nn.Module] = {}
        self._keywords: Mapping[str, Any] = {}
        self.calls: list[Kept] = []
        self.awake = False

    def attach(self, model: nn.Module) -> None:
        """Put the hooks on, if the model's recurrent modules are not those of the last time."""
        found: dict[str, nn.Module] = {
            name: m for name, m in model.named_modules() if isinstance(m, nn.RNNBase)
        }
        if found.keys() == self._modules.keys() and all(
            found[name] is module for name, module in self._modules.items()
        ):
            return
        self.release()
        self._modules = found
        for name, module in found.items():
            # a copy of a hook stands in for hooks of three arguments, so keywords are read before the call
            enter, leave = ModuleHook(module, self._enter), ModuleHook(module, self._leaving(name))
            self._handles += [
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave),
            ]

    def forget(self) -> None:
        """Drop what was kept."""
        self.calls.clear()

    def release(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._modules = {}
        self.calls.clear()

    def _enter(
        self, compiling: bool, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self._keywords = kwargs

    def _leaving(self, name: str) -> Callable[..., None]:
        def leave(compiling: bool, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self.awake and not compiling and torch.is_grad_enabled():
                with self._faults.guard("keeping a call for the black box"):
                    self._keep(name, module, args, self._keywords, output)

        return leave

    def _keep(
        self, name: str, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        tensors = list(_tensors(output))
        if not any(tensor.requires_grad for tensor in tensors):
            return
        drops = module.dropout > 0 and module.training and module.num_layers > 1
        device = tensors[0].device.type
        call = Kept(
            name,
            module,
            args,
            kwargs,
            _versions(args, kwargs),
            torch.get_rng_state() if drops else None,
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
        )
        self.calls.append(call)
        for number, tensor in enumerate(tensors):
            if tensor.requires_grad:
                tensor.register_hook(unserializable_hook(_arrival(call.gradients, number)))

    def replay(self, gradients: Mapping[str, Tensor], scale: float = 1.0) -> list[BackwardPass]:
        """The kept calls as backward passes.

        `gradients`: the true ones of parameters, to prove them by. What came to the outputs is `scale` times too large.
        """
        calls = [call for call in self.calls if call.gradients]
        if not calls:
            return []
        copies = {call.name: _bare_copy(call.module) for call in calls}
        capture = Capture(_tree(copies), loss_scale=lambda: scale, faults=self._faults)
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


def _arrival(gradients: dict[int, Tensor], number: int) -> Callable[[Tensor], None]:
    def arrive(gradient: Tensor) -> None:
        known = gradients.get(number)
        gradients[number] = gradient if known is None else known + gradient

    return arrive


def _run_again(calls: list[Kept], copies: Mapping[str, nn.Module]) -> None:
    outputs: list[Tensor] = []
    arrived: list[Tensor] = []
    with torch.enable_grad():
        for call in calls:
            if call.random_state is not None:
                torch.set_rng_state(call.random_state)
            device = next(iter(call.gradients.values())).device.type
            with torch.autocast(device, dtype=call.autocast, enabled=call.autocast is not None):
                args, kwargs = _cut(call.args), _cut(dict(call.kwargs))
                found = list(_tensors(copies[call.name](*args, **kwargs)))
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


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _versions(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    tensors = (*_tensors(args), *_tensors(list(kwargs.values())))
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)


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
