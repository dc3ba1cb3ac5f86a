"""One recorded call of a recurrent kernel or step module: inputs, outputs, and the gradients of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.recorder.capture.backward_pass import Hook, Tasks
from rnndiag.recorder.capture.engine_entry import measuring
from rnndiag.recorder.capture.kernels import Plan
from rnndiag.recorder.capture.weights import Weight, hook_first

Keep = Callable[[Tensor | None], None]
Shaping = Callable[[Tensor], Tensor]
MakeKeep = Callable[[Shaping], Keep]
"""Makes the hook that keeps a gradient, given how the gradient is brought into the shape of the output."""
Guard = Callable[[Hook], Hook]

OUTPUT = 0
"""Slot of the outputs y; the final state's part p has slot 1 + p."""


@dataclass(frozen=True)
class StateLink:
    """The origin of one layer's part of an initial state: the final state of an earlier call."""

    call: int
    slot: int
    index: int
    """Layer * directions + direction in that call."""
    attached: bool
    """Whether gradients flow back into that call."""
    straight: bool
    """Whether they arrive there unchanged."""
    carried: Tensor | None = None
    """(B,) bool: sequences whose state was carried on unchanged; all others were reset. None: no resets."""
    begins: str = ""
    """zero | given | learnt: the state that reset sequences start from."""


@dataclass(frozen=True)
class Autocast:
    """The autocast settings during the call."""

    device: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def current(cls, device: str) -> Autocast:
        """The current settings."""
        return cls(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))

    def again(self) -> Any:
        """A context with the same settings."""
        return torch.autocast(
            self.device, dtype=self.dtype, enabled=self.enabled, cache_enabled=False
        )


@dataclass(eq=False)
class Call:
    """What is stored of one call until it is replayed. Tensors are detached and shared, not copied, unless stated."""

    number: int
    owner: str
    """Qualified name of the module."""
    plan: Plan
    inputs: Tensor
    hx: State
    hx_kind: tuple[str, ...]
    """By part: zero | given | learnt; only for parts without a link."""
    weights: tuple[Mapping[str, tuple[Weight, Tensor]], ...]
    """By layer and direction: key -> the weight's record, and a copy of its value at the call."""
    autocast: Autocast
    random_state: Tensor | None = None
    """State of the CPU's random generator before the call, if the call drew dropout masks."""
    outputs: dict[int, Tensor] = field(default_factory=dict)
    """By slot, as returned by the kernel."""
    versions: dict[int, int] = field(default_factory=dict)
    """By slot, the version counter of each output, to detect writes in place."""
    copies: dict[int, Tensor] = field(default_factory=dict)
    """By slot, for calls of one step: copies of the outputs, or of the final state only."""
    links: dict[tuple[int, int], StateLink] = field(default_factory=dict)
    """(part, layer * directions + direction) -> link."""
    output_gradients: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    """Backward pass -> slot -> gradient of the output."""
    input_gradients: dict[int, Tensor] = field(default_factory=dict)
    hx_gradients: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    """Backward pass -> part -> gradient of the initial state through this call alone."""
    loose: int = 0
    """Number of trailing parts that later steps do not use: outputs of a step module that are not state."""
    sure: bool = True
    """False: a step module recognised by an argument's name only, which counts if its calls form a chain."""
    in_backward: bool = False
    """Whether the call was made during a backward pass: a checkpoint's recomputation."""
    notes: list[str] = field(default_factory=list)
    refusal: str = ""
    """Why the call cannot be replayed; empty if it can."""
    spent: bool = False
    """Whether a backward pass went through it and freed its graph."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the computation; under autocast the coarser one, even if the output is wider."""
        returned = next(iter(self.outputs.values())).dtype
        rounds = self.autocast.enabled and returned == torch.float32
        return self.autocast.dtype if rounds else returned

    @property
    def steps(self) -> int:
        """Number of time steps of a call over padded sequences or of one step."""
        return (
            1 if self.plan.one_step else int(self.inputs.shape[1 if self.plan.batch_first else 0])
        )

    def release(self) -> None:
        """Drop all tensors."""
        self.inputs, self.hx, self.weights = self.inputs.new_empty(0), (), ()
        for store in (self.outputs, self.copies, self.links):
            store.clear()
        self.output_gradients.clear()
        self.input_gradients.clear()
        self.hx_gradients.clear()

    def gradient(self, task: int, slot: int) -> Tensor | None:
        """The gradient of an output in that backward pass; None: there was none."""
        return self.output_gradients.get(task, {}).get(slot)


def alias_in(tensor: Tensor, keep: Keep) -> Tensor:
    """A view of the tensor that only one call uses, so that its gradient is that of this call alone.

    A view shares the version counter, so autograd still detects writes in place.
    """
    if not tensor.requires_grad:
        return tensor
    alias = tensor.view_as(tensor)
    hook_first(alias, keep)
    return alias


def keep_under(tasks: Tasks, store: dict[int, Tensor]) -> Keep:
    """A hook that stores a copy of a gradient by backward pass; a copy, since `.grad` may reuse the gradient's
    memory."""

    def keep(gradient: Tensor | None) -> None:
        if gradient is not None and not measuring():
            store[tasks.enter()] = gradient.detach().clone()

    return tasks.guard(keep)


def keep_slot(
    tasks: Tasks, store: dict[int, dict[int, Tensor]], slot: int, shape: Callable[[Tensor], Tensor]
) -> Keep:
    """A hook that stores a gradient by backward pass and slot."""

    def keep(gradient: Tensor | None) -> None:
        if measuring():
            return
        task = tasks.enter()
        slots = store.setdefault(task, {})
        if gradient is not None:
            slots[slot] = shape(gradient.detach())

    return tasks.guard(keep)


def watch_output(output: Tensor, keep: MakeKeep, guard: Guard) -> None:
    """Store the gradient that reaches an output, as changed by the user's own hooks.

    If the output is a view, its base is hooked instead: a write in place removes the hooks of a view. guard: wraps
    hooks called by autograd.
    """
    base = output._base
    if base is None or base.grad_fn is None:
        _watch_node(output, keep(lambda gradient: gradient), guard)
        return
    size, stride = output.size(), output.stride()
    offset = output.storage_offset() - base.storage_offset()
    base_stride, base_size = base.stride(), base.size()

    def as_seen(gradient: Tensor) -> Tensor:
        # The view is described by the strides of its base, so copy the gradient to that layout first.
        laid_out = gradient.new_empty_strided(base_size, base_stride).copy_(gradient)
        return laid_out.as_strided(size, stride, offset)

    _watch_node(base, keep(as_seen), guard)


def _watch_node(output: Tensor, keep: Keep, guard: Guard) -> None:
    node, place = output.grad_fn, output.output_nr
    if node is None:
        hook_first(output, keep)
        return

    def arrived(gradients: tuple[Tensor | None, ...]) -> None:
        keep(gradients[place])

    node.register_prehook(guard(arrived))
