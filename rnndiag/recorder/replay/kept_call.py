"""One call of a recurrent layer in an earlier training step, kept so that it can be run again as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnndiag.engine.cells import State
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.truncation.chains.seam_memory import without_gradients
from rnndiag.recorder.capture import Capture
from rnndiag.store.layer_names import recurrence


@dataclass(eq=False)
class KeptCall:
    """Copies of all that the call depended on; nothing of the user's is held on to but the module."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    training: bool
    random_state: Tensor | None
    autocast: torch.dtype | None
    end: State = ()
    """The state that the call returned, (layers * directions, B, S_p) a part."""

    @property
    def bytes(self) -> int:
        """What it takes."""
        kept = (*tensors(self.args), *tensors(dict(self.kwargs)), *self.weights.values())
        return sum(value.nbytes for value in kept)

    @cached_property
    def layer_runs(self) -> Mapping[str, LayerRun]:
        """The call's layers by the name of their recurrence; empty where it does not come out as it was."""
        module = _bare(self.module).train(self.training).requires_grad_()
        with torch.no_grad():
            for name, value in module.state_dict(keep_vars=True).items():
                value.copy_(self.weights[name])
        capture = Capture(_tree(self.name, module))
        device = self.end[0].device
        capture.arm()
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                again = self._run_again(module, device.type)
            passes = capture.take()
        finally:
            capture.disarm()
        if not all(map(near, self.end, again)):
            return {}
        return {
            recurrence(run.name): without_gradients(run)
            for found in passes
            for run in found.layer_runs
        }

    def _run_again(self, module: nn.Module, device: str) -> State:
        if self.random_state is not None:
            torch.set_rng_state(self.random_state)
        on = self.autocast is not None
        with torch.enable_grad(), torch.autocast(device, dtype=self.autocast, enabled=on):
            out = module(*self.args, **self.kwargs)
            found = [value for value in tensors(out) if value.requires_grad]
            torch.autograd.backward(found, [torch.zeros_like(value) for value in found])
        return state_of(out[1])


def near(one: Tensor, other: Tensor) -> bool:
    """The same numbers but for rounding: a kernel of a GPU need not add up in the same order twice."""
    return torch.allclose(one.to(other.dtype), other, rtol=1e-4, atol=1e-6)


def state_of(value: Any) -> State:
    """h, or (h, c), as a tuple; nothing where none was given."""
    if isinstance(value, Tensor):
        return (value,)
    return tuple(value) if isinstance(value, tuple | list) else ()


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)


def copied(value: Any) -> Any:
    """The same arguments as tensors of their own, without a graph."""
    return _mapped(value, lambda tensor: tensor.detach().clone())


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, PackedSequence):
        return value._replace(data=change(value.data))
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(_mapped(part, change) for part in value)
    if isinstance(value, dict):
        return {key: _mapped(part, change) for key, part in value.items()}
    return value


def _bare(module: nn.Module) -> nn.Module:
    """A copy without anybody's hooks and gradients."""
    found = copy.deepcopy(module)
    for part in found.modules():
        for hooks in (
            part._forward_hooks,
            part._forward_pre_hooks,
            part._backward_hooks,
            part._backward_pre_hooks,
        ):
            hooks.clear()
    for parameter in found.parameters():
        parameter.grad = None
    return found


def _tree(name: str, module: nn.Module) -> nn.Module:
    """A module that holds this one under its qualified name."""
    for part in reversed(name.split(".")) if name else ():
        holder = nn.Module()
        holder.add_module(part, module)
        module = holder
    return module
