"""What the black box keeps of every step: references to the inputs of recurrent layers and to their output
gradients.

Nothing is copied and no kernel is intercepted: one Python hook per call, and one per returned tensor. After an accident
the calls are rerun on copies of the modules, without hooks, under the capture: the weights have not changed yet, so
these are the very states and gradients of the step. Cells in Python loops are not kept, nor layers that are called more
than `MANY` times a step: one hook per time step would cost too much.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rnndiag.recorder.capture.compiled import is_compiling, pass_over
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.replay.kept_call import KeptCall, autocast_of, tensors_in, versions_of
from rnndiag.recorder.schedule.overhead import Overhead

MANY = 8
"""A layer called more often in one step is a loop over time, and is ignored from then on."""
_FIRST = -1
"""Key of this hook among a tensor's hooks, lower than torch's own, which count from 0."""


class LightHooks:
    """Light hooks on all fused recurrent modules of a model; they keep data while `armed`."""

    def __init__(self, faults: Faults, overhead: Overhead) -> None:
        self._on_fault, self.overhead = faults.handler("keeping a call for the black box"), overhead
        self._handles: dict[str, list[RemovableHandle]] = {}
        self._modules: dict[str, nn.RNNBase] = {}
        self._loops: set[str] = set()
        self._counts: dict[str, int] = {}
        self._random: dict[str, Tensor] = {}
        self.calls: list[KeptCall] = []
        self.armed = False

    def attach(self, model: nn.Module) -> None:
        """Install the hooks if the model's recurrent modules have changed since the last call."""
        found = {name: m for name, m in model.named_modules() if isinstance(m, nn.RNNBase)}
        if found.keys() != self._modules.keys() or any(
            found[name] is not module for name, module in self._modules.items()
        ):
            self.release()
            pass_over(LightHook.__call__, RandomHook.__call__)
            self._modules = found
        self.put_on()

    def put_on(self) -> None:
        """Install the hooks on the modules found last, if they are off."""
        for name, module in self._modules.items():
            if name in self._loops or name in self._handles:
                continue
            leave = LightHook(self, name, module)
            # stored at once, so that an error meanwhile leaves no hook behind
            handles = self._handles[name] = []
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
            if module.dropout > 0 and module.num_layers > 1:
                enter = RandomHook(self, name, module)
                handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))

    def fail(self, error: Exception) -> None:
        """Handle an error in a hook: nothing more is kept of this step."""
        self.armed = False
        self.forget()
        self._on_fault(error)

    def forget(self) -> None:
        """Drop what was kept."""
        self.calls.clear()
        self._counts.clear()
        self._random.clear()

    def release(self) -> None:
        """Remove the hooks."""
        self.take_off()
        self._modules = {}
        self.forget()

    def take_off(self) -> None:
        """Remove the hooks until `put_on`: even a hook that does nothing slows down calls of a module."""
        for name in list(self._handles):
            self._leave_alone(name)

    def _leave_alone(self, name: str) -> None:
        for handle in self._handles.pop(name, ()):
            handle.remove()

    def note_random(self, name: str) -> None:
        """Store the random state before a call that draws dropout masks."""
        self._random[name] = torch.get_rng_state()

    def keep(
        self, name: str, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        """Keep one call, and hook its outputs for their gradients."""
        count = self._counts[name] = self._counts.get(name, 0) + 1
        if count > MANY:
            self._loops.add(name)
            self._leave_alone(name)
            self.calls = [call for call in self.calls if call.name != name]
            return
        call = None
        for number, tensor in enumerate(tensors_in(output)):
            if not tensor.requires_grad:
                continue
            if call is None:
                call = KeptCall(
                    name,
                    module,
                    args,
                    kwargs,
                    self._random.pop(name, None),
                    autocast_of(tensor),
                    versions_of(args, kwargs),
                )
                self.calls.append(call)
            arrival = Arrival(call, number, self)
            node: Any = tensor.grad_fn
            if tensor._backward_hooks is None and node is not None:
                # what Tensor.register_hook does, without a handle, which costs three times as much
                tensor._backward_hooks = OrderedDict({_FIRST: arrival})
                node._register_hook_dict(tensor)
            else:
                tensor.register_hook(arrival)


class LightHook:
    """Keeps the calls of the module that it was installed on. Copies and pickles of it do nothing and need no
    rnndiag."""

    __slots__ = ("_light_hooks", "_module", "_name")

    def __init__(self, light_hooks: LightHooks, name: str, module: nn.Module) -> None:
        # The module holds the hook: a strong reference would be a cycle.
        self._light_hooks, self._name, self._module = light_hooks, name, weakref.ref(module)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        light_hooks = self._light_hooks
        try:
            if not light_hooks.armed or self._module() is not module or is_compiling():
                return
            start = perf_counter()
            light_hooks.keep(self._name, module, args, kwargs, output)
            light_hooks.overhead.spent += perf_counter() - start
        except Exception as error:  # noqa: BLE001 - no fault may end a forward pass
            light_hooks.fail(error)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        # A function of the standard library that takes any arguments and returns None.
        return contextlib.nullcontext().__exit__

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, str]]:
        return getattr, (contextlib.nullcontext(), "__exit__")


class RandomHook(LightHook):
    """Runs before a call that draws dropout masks and stores the random state."""

    __slots__ = ()

    def __call__(  # type: ignore[override]
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        light_hooks = self._light_hooks
        try:
            mine = light_hooks.armed and module.training and self._module() is module
            if mine and not is_compiling():
                light_hooks.note_random(self._name)
        except Exception as error:  # noqa: BLE001 - no fault may end a forward pass
            light_hooks.fail(error)


class Arrival:
    """A hook on a returned tensor that keeps its gradient."""

    __slots__ = ("_call", "_light_hooks", "_number")
    # torch warns when it pickles a tensor with hooks, except hooks with this mark.
    __torch_unserializable__ = True

    def __init__(self, call: KeptCall, number: int, light_hooks: LightHooks) -> None:
        self._call, self._number, self._light_hooks = call, number, light_hooks

    def __call__(self, gradient: Tensor) -> None:
        try:
            start = perf_counter()
            self._call.receive(self._number, gradient)
            self._light_hooks.overhead.spent += perf_counter() - start
        except Exception as error:  # noqa: BLE001 - no fault may end a backward pass
            self._call.gradients.clear()  # a call without gradients is not replayed
            self._light_hooks.fail(error)
