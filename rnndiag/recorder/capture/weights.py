"""The effective weights of recurrent calls: copies of their values at the call, and their gradients per backward
pass."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle, unserializable_hook

from rnndiag.recorder.capture.backward_pass import Tasks
from rnndiag.recorder.capture.engine_entry import measuring


def hook_first(tensor: Tensor, hook: Callable[[Tensor | None], None]) -> RemovableHandle:
    """Register a tensor hook that runs before the hooks of others, and so sees the unchanged gradient."""
    # torch warns when it pickles a tensor with hooks, except hooks with this mark.
    handle: RemovableHandle = tensor.register_hook(unserializable_hook(hook))
    hooks = tensor._backward_hooks
    if isinstance(hooks, OrderedDict) and handle.id in hooks:
        own = hooks.pop(handle.id)
        others = list(hooks.items())
        hooks.clear()  # autograd goes by the order of insertion, which move_to_end leaves as it is
        hooks[handle.id] = own
        hooks.update(others)
    return handle


@dataclass(eq=False)
class Weight:
    """One effective weight tensor: a parameter, or the tensor that a parametrization or functional_call computed."""

    name: str
    expected: bool
    """Whether a gradient of it without a recorded call means that a call was missed."""
    tensor: weakref.ref[Tensor]
    gradients: dict[int, Tensor] = field(default_factory=dict)
    """Backward pass -> copy of the gradient G; a copy, since the gradient's memory may be reused."""
    copy: Tensor | None = None
    version: int = -1
    hooked: bool = False

    def snapshot(self) -> Tensor:
        """A copy of the current value, shared by all calls until the weight is written to."""
        tensor = self.tensor()
        assert tensor is not None
        if self.copy is None or self.version != tensor._version:
            self.copy, self.version = tensor.detach().clone(), tensor._version
        return self.copy


class Weights:
    """All watched weights, identified by object, so that tied and shared ones are one."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._known: dict[int, Weight] = {}
        self._gone: list[Weight] = []
        """Those whose tensor is gone and whose id another tensor has taken: their gradients may still come."""
        self._handles: list[RemovableHandle] = []
        self.asleep = False
        """Whether current gradients belong to no backward pass of the user."""
        _all.add(self)

    def __iter__(self) -> Iterator[Weight]:
        return iter((*self._gone, *self._known.values()))

    def watch(self, tensor: Tensor, name: str, expected: bool = False) -> Weight:
        """The record of this tensor; the first call for a tensor hooks its gradient."""
        weight = self._known.get(id(tensor))
        if weight is None or weight.tensor() is not tensor:
            if weight is not None:
                self._gone.append(weight)
            weight = self._known[id(tensor)] = Weight(name, expected, weakref.ref(tensor))
        if tensor.requires_grad and not weight.hooked:  # it may have been frozen when first seen
            self._handles.append(hook_first(tensor, self._keep(weight)))
            weight.hooked = True
        return weight

    def _keep(self, weight: Weight) -> Callable[[Tensor | None], None]:
        tasks = self._tasks

        def keep(gradient: Tensor | None) -> None:
            if gradient is None or self.asleep or measuring():
                return
            weight.gradients[tasks.enter()] = gradient.detach().clone()
            weight.copy = (
                None  # an optimizer may write next, and a fused one leaves the version as it is
            )

        return tasks.guard(keep)

    def unhook(self) -> None:
        """Remove all hooks; the gradients stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for weight in self._known.values():
            weight.hooked = False

    def forget(self) -> None:
        """Drop recorded gradients and keep watching; without hooks, drop the weights too."""
        if not self._handles:
            self._known.clear()
        self._gone.clear()
        for key, weight in list(self._known.items()):
            weight.gradients.clear()
            weight.copy = None
            if weight.tensor() is None:
                del self._known[key]


_all: weakref.WeakSet[Weights] = weakref.WeakSet()


@contextmanager
def weights_asleep() -> Iterator[None]:
    """Weights watched now record no gradients inside; those of a probe made inside do."""
    sleeping = [weights for weights in _all if not weights.asleep]
    for weights in sleeping:
        weights.asleep = True
    try:
        yield
    finally:
        for weights in sleeping:
            weights.asleep = False


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two snapshots hold the same numbers."""
    return one is other or (one.shape == other.shape and torch.equal(one, other))
