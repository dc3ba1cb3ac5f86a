"""Keeps the calls of the few training steps before a recorded one, for layers whose state crosses from call to
call.

Two Python hooks per fused recurrent layer, active in those steps only. A call without an initial state, with a zero
state, or with one that gradients can flow back from crosses no seam, and is not kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rnndiag.engine.cells import State
from rnndiag.recorder.capture.hook import ModuleHook
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.replay.kept_call import KeptCall, autocast_of, copied, state_of
from rnndiag.recorder.schedule.overhead import Overhead

MOST_BYTES = 256 * 2**20
"""Most bytes of all kept calls together."""


class CallMemory:
    """The last calls of every fused recurrent layer that carries its state."""

    def __init__(self, model: nn.Module, faults: Faults, overhead: Overhead, most: int) -> None:
        """most: number of calls kept per layer, besides the current one."""
        self._model, self._faults, self._overhead = model, faults, overhead
        self._most = most
        self._handles: list[RemovableHandle] = []
        self._open: dict[str, KeptCall] = {}
        self._calls: dict[str, deque[KeptCall]] = {}
        self._carries: set[str] = set()
        """Layers that got the state of an earlier call: their calls from a zero state are kept too."""
        self.too_large = 0
        """Size in bytes of a single call that exceeds the limit."""

    @property
    def armed(self) -> bool:
        """Whether the hooks are on."""
        return bool(self._handles)

    @property
    def carries(self) -> bool:
        """Whether any call got the state of an earlier one."""
        return bool(self._carries)

    def arm(self) -> None:
        """Install the hooks."""
        if self._handles:
            return
        for name, module in self._model.named_modules():
            if isinstance(module, nn.RNNBase):
                enter, leave = self._entering(name), self._leaving(name)
                on_fault = self._faults.handler("keeping a chunk for the seam")
                before = ModuleHook(module, enter, on_fault)
                after = ModuleHook(module, leave, on_fault)
                self._handles += [
                    module.register_forward_pre_hook(before, with_kwargs=True),
                    module.register_forward_hook(after),
                ]

    def disarm(self) -> None:
        """Remove the hooks and drop the calls."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._open.clear()
        self._calls.clear()

    def calls(self) -> tuple[deque[KeptCall], ...]:
        """The kept calls of each layer, oldest first."""
        return tuple(self._calls.values())

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(
            compiling: bool, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
        ) -> None:
            self._open.pop(name, None)
            if compiling or not torch.is_grad_enabled():
                return
            if torch._C._current_graph_task_id() >= 0:  # a checkpoint's recomputation
                return
            with self._overhead.own(), self._faults.guard("keeping a chunk for the seam"):
                if self._carried(name, state_of(args[1] if len(args) > 1 else kwargs.get("hx"))):
                    self._open[name] = self._copy(name, module, args, kwargs)

        return enter

    def _leaving(self, name: str) -> Callable[..., None]:
        def leave(compiling: bool, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            call = self._open.pop(name, None)
            if call is None:
                return
            with self._overhead.own(), self._faults.guard("keeping a chunk for the seam"):
                call.end = copied(state_of(output[1]))
                self._keep(call)

        return leave

    def _carried(self, name: str, state: State) -> bool:
        if any(part.requires_grad for part in state):
            return False
        if any(bool(part.any()) for part in state):
            self._carries.add(name)
        return name in self._carries

    def _copy(
        self, name: str, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> KeptCall:
        weights = {key: value.detach() for key, value in module.state_dict().items()}
        drops = module.dropout > 0 and module.training and module.num_layers > 1
        return KeptCall(
            name,
            module,
            copied(args),
            copied(dict(kwargs)),
            torch.get_rng_state() if drops else None,
            autocast_of(next(iter(weights.values()))),
            weights=self._as_they_are(name, weights),
            training=module.training,
        )

    def _as_they_are(self, name: str, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Copies of the weights; reuses those of the previous call if no step was made since."""
        before = self._calls.get(name)
        known = (before[-1].weights if before else None) or {}
        if known.keys() == weights.keys() and all(
            torch.equal(known[key], value) for key, value in weights.items()
        ):
            return known
        return {key: value.clone() for key, value in weights.items()}

    def _keep(self, call: KeptCall) -> None:
        if call.bytes > MOST_BYTES:
            self.too_large = call.bytes
            return
        own = self._calls.setdefault(call.name, deque(maxlen=self._most + 1))
        own.append(call)
        while self._held() > MOST_BYTES:
            longest = max(self._calls.values(), key=len)
            longest.popleft()

    def _held(self) -> int:
        return sum(call.bytes for own in self._calls.values() for call in own)
