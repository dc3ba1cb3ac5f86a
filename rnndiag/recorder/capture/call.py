"""One watched call of a recurrent kernel or step module: what went in and out, and the gradients that came back."""

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
CallMemory = Callable[[Shaping], Keep]
Guard = Callable[[Hook], Hook]

OUTPUT = 0
"""Slot of the outputs y; the final state's part p has slot 1 + p."""


@dataclass(frozen=True)
class StateLink:
    """Where one layer's part of an initial state comes from: the end of an earlier call."""

    call: int
    slot: int
    index: int
    """Layer * directions + direction in that call."""
    attached: bool
    """Gradients flow back into that call."""
    straight: bool
    """... and arrive there as they are."""
    carried: Tensor | None = None
    """(B,) bool: of these sequences both holds, and all others were reset in between; None: `straight` says all."""
    begins: str = ""
    """zero | given | learnt: what the others were reset to."""


@dataclass(frozen=True)
class Autocast:
    """The autocast that the call ran under."""

    device: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def current(cls, device: str) -> Autocast:
        """What holds now."""
        return cls(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))

    def again(self) -> Any:
        """A context in which it holds again."""
        return torch.autocast(
            self.device, dtype=self.dtype, enabled=self.enabled, cache_enabled=False
        )


@dataclass(eq=False)
class Call:
    """What is kept of one call until it is replayed. Tensors are detached and shared, not copied, unless said."""

    number: int
    owner: str
    """Qualified name of the module."""
    plan: Plan
    inputs: Tensor
    hx: State
    hx_kind: tuple[str, ...]
    """By part: zero | given | learnt, where there is no link."""
    weights: tuple[Mapping[str, tuple[Weight, Tensor]], ...]
    """By layer and direction: key -> the weight, and its copy as it was."""
    autocast: Autocast
    random_state: Tensor | None = None
    """Of the CPU's generator before the call, where the call drew dropout masks."""
    outputs: dict[int, Tensor] = field(default_factory=dict)
    """By slot, as the kernel returned them."""
    versions: dict[int, int] = field(default_factory=dict)
    """By slot, to see whether somebody wrote to the output in place."""
    copies: dict[int, Tensor] = field(default_factory=dict)
    """By slot, for calls of one step: the outputs as they were, or the final state only."""
    links: dict[tuple[int, int], StateLink] = field(default_factory=dict)
    """(part, layer * directions + direction) -> link."""
    output_gradients: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    """Backward pass -> slot -> gradient."""
    input_gradients: dict[int, Tensor] = field(default_factory=dict)
    hx_gradients: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    """Backward pass -> part -> gradient of this call alone."""
    loose: int = 0
    """Trailing parts that no later step looks at: outputs of a step module that are no state."""
    sure: bool = True
    """False: a step module known by its argument's name only, a recurrence if its calls form a chain."""
    in_backward: bool = False
    """Made while a backward pass ran: a checkpoint's recomputation."""
    notes: list[str] = field(default_factory=list)
    refusal: str = ""
    """Why the call cannot be replayed."""
    spent: bool = False
    """A backward pass went through it and freed its graph."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision the call computed in: under autocast the coarser one, though its output may be wide."""
        returned = next(iter(self.outputs.values())).dtype
        rounds = self.autocast.enabled and returned == torch.float32
        return self.autocast.dtype if rounds else returned

    def release(self) -> None:
        """Let go of all tensors."""
        self.inputs, self.hx, self.weights = self.inputs.new_empty(0), (), ()
        for store in (self.outputs, self.copies, self.links):
            store.clear()
        self.output_gradients.clear()
        self.input_gradients.clear()
        self.hx_gradients.clear()

    def gradient(self, task: int, slot: int) -> Tensor | None:
        """What came back to an output in that backward pass; None: nothing."""
        return self.output_gradients.get(task, {}).get(slot)


def alias_in(tensor: Tensor, keep: Keep) -> Tensor:
    """The same tensor under a name of its own, whose gradient is that of the one call which gets it.

    A view shares the version counter, so autograd's checks for writes in place stay as they are.
    """
    if not tensor.requires_grad:
        return tensor
    alias = tensor.view_as(tensor)
    hook_first(alias, keep)
    return alias


def keep_under(tasks: Tasks, store: dict[int, Tensor]) -> Keep:
    """A hook that keeps a copy of a gradient by backward pass: a leaf's `.grad` may take the gradient itself over."""

    def keep(gradient: Tensor | None) -> None:
        if gradient is not None and not measuring():
            store[tasks.enter()] = gradient.detach().clone()

    return tasks.guard(keep)


def keep_slot(
    tasks: Tasks, store: dict[int, dict[int, Tensor]], slot: int, shape: Callable[[Tensor], Tensor]
) -> Keep:
    """A hook that keeps a gradient by backward pass and slot."""

    def keep(gradient: Tensor | None) -> None:
        if measuring():
            return
        task = tasks.enter()
        slots = store.setdefault(task, {})
        if gradient is not None:
            slots[slot] = shape(gradient.detach())

    return tasks.guard(keep)


def watch_output(output: Tensor, keep: CallMemory, guard: Guard) -> None:
    """Keep what goes from an output into its call, after the hooks that users put on the output have changed it.

    Of a view the base is watched: a view's own hook is lost on a write in place. guard: wraps what autograd calls.
    """
    base = output._base
    if base is None or base.grad_fn is None:
        _watch_node(output, keep(lambda gradient: gradient), guard)
        return
    size, stride = output.size(), output.stride()
    offset = output.storage_offset() - base.storage_offset()
    base_stride, base_size = base.stride(), base.size()

    def as_seen(gradient: Tensor) -> Tensor:
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
